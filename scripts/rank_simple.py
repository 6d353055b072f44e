"""Rank the catalogue without a model: by popularity, by chance, or by the answer itself."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from langptune import stage
from langptune.baselines.simple import score_blocks
from langptune.data import contracts
from langptune.provenance import Record
from langptune.ranking.decoder import rank_sessions


class Spec(stage.StageSpec):
    """Score all test sessions with a simple scorer and write ranks."""

    scorer: Literal["pop", "random", "oracle"]
    seed: int = Field(0, description="of the random scorer")
    items_in: str
    sessions_in: str
    ranks_out: str


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Score and rank."""
    n_items = len(contracts.read(spec.items_in, "items", ["item"]))
    sessions = contracts.read(spec.sessions_in, "sessions")
    chosen = sessions.filter(pl.col("split") == "test")
    ranks = rank_sessions(chosen, score_blocks(spec.scorer, chosen, sessions, n_items, spec.seed))
    contracts.write(ranks, spec.ranks_out, "ranks")
    record.note(sessions=len(ranks))
    log(f"{spec.scorer}: ranked {len(ranks)} sessions")


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
