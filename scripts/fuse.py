"""Combine two methods: add their scores with a weight chosen on validation, or take the better of both ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import polars as pl
from pydantic import Field

from langptune import provenance, stage
from langptune.data import contracts
from langptune.data.sample import sampled
from langptune.errors import UserError
from langptune.meter import Meter
from langptune.provenance import Record
from langptune.ranking import fusion, kept
from langptune.ranking.decoder import rank_sessions
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project

Two = Annotated[list[str], Field(min_length=2, max_length=2)]


class Spec(stage.StageSpec):
    """Scores or ranks of two methods in; ranks, and a JSON file with what was chosen, out.

    With ``scores``, the weight is chosen on the validation scores before the test scores are read.
    """

    of: Two = Field(description="names of the methods")
    combine: Literal["scores", "better-rank"] = Field(description="as in the entry of methods.yaml")
    weights: list[float] = Field([], description="candidate weights of the second method, for scores")
    items_in: str
    sessions_in: str
    evaluation_in: str = Field(description="evaluation.parquet: the test sessions")
    training_in: str | None = Field(None, description="training.parquet: the validation sessions, for scores")
    scores_in: Two | None = Field(None, description="test scores of both methods, for scores")
    val_scores_in: Two | None = Field(None, description="validation scores of both methods, for scores")
    parts_in: Two | None = Field(None, description="ranks.parquet of both methods, for better-rank")
    ranks_out: str
    choice_out: str = Field(
        description="JSON: the weight, and validation metrics of each weight; or how many sessions take which rank"
    )


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    method = project.methods[job.method]
    return {"of": method.of, "combine": method.combine, "weights": [point["weight"] for point in method.points()]}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=1500, minutes=20)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Choose, combine, write the ranks.

    Raises:
        UserError: the two methods were not ranked on the same sessions, or these are not those of the comparison.
    """
    needed = {"scores": ("training_in", "scores_in", "val_scores_in"), "better-rank": ("parts_in",)}[spec.combine]
    if lacking := [name for name in needed if getattr(spec, name) is None]:
        raise UserError(f"fuse.py --spec: combine '{spec.combine}' needs '{lacking[0]}'")
    test = _sessions(spec, spec.evaluation_in, "test")
    meter = Meter()
    ranks, choice = (_by_scores if spec.combine == "scores" else _by_ranks)(spec, test, meter, log)
    contracts.write(ranks, spec.ranks_out, "ranks")
    files = [*(spec.val_scores_in or []), *(spec.parts_in or [])]
    inputs = {path: provenance.input_hash(Path(path)) for path in files}
    provenance.write_json(spec.choice_out, {"of": spec.of, **choice, "inputs": inputs})
    record.note(**meter.note(len(ranks)))
    record.note(sessions=len(ranks), **{key: choice[key] for key in ("weight", "better") if key in choice})


def _sessions(spec: Spec, path: str, split: str) -> pl.DataFrame:
    """The sampled sessions of a split, ascending, with target and seen."""
    sessions = contracts.read(spec.sessions_in, "sessions", ["session", "seen", "target"])
    return sampled(path, split).select("session").join(sessions, on="session", how="left", maintain_order="left")


def _by_scores(spec: Spec, test: pl.DataFrame, meter: Meter, log: stage.Log) -> tuple[pl.DataFrame, dict[str, Any]]:
    n_items = len(contracts.read(spec.items_in, "items", ["item"]))

    def pairs(paths: list[str], sessions: pl.DataFrame) -> Iterator[fusion.Pair]:
        return zip(*(kept.read(path, sessions, n_items) for path in paths), strict=True)

    val = _sessions(spec, spec.training_in, "val")
    weight, grid = fusion.choose(val, pairs(spec.val_scores_in, val), spec.weights)
    for row in grid:
        log(
            f"weight {row['weight']:g} of {spec.of[1]}: NDCG {row['ndcg']:.4f}, NDCG@10 {row['ndcg@10']:.4f}, log rank "
            f"{row['log_rank']:.3f}" + (" (chosen)" if row["weight"] == weight else "")
        )
    with meter.running():
        ranks = rank_sessions(test, fusion.fused(test, pairs(spec.scores_in, test), weight))
    return ranks, {"weight": weight, "sessions": len(val), "grid": grid}


def _by_ranks(spec: Spec, test: pl.DataFrame, meter: Meter, log: stage.Log) -> tuple[pl.DataFrame, dict[str, Any]]:
    first, second = (_ranks(path, test) for path in spec.parts_in)
    with meter.running():
        ranks = fusion.better(first, second)
    one, two = first["rank"], second["rank"]
    counts = {spec.of[0]: int((one < two).sum()), spec.of[1]: int((two < one).sum()), "equal": int((one == two).sum())}
    log(f"better rank of {len(ranks)} sessions: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return ranks, {"better": counts, "sessions": len(ranks)}


def _ranks(path: str, test: pl.DataFrame) -> pl.DataFrame:
    """The ranks of the compared sessions by one method, in their order."""
    found = test.select("session", "target").join(
        contracts.read(path, "ranks"), on=["session", "target"], how="inner", maintain_order="left"
    )
    if missing := len(test) - len(found):
        raise UserError(
            f"{path}: {missing} of {len(test)} compared sessions have no rank with their target. A fusion needs both "
            "methods on the same sessions (sample, protocol); rerun the rule that makes this file"
        )
    return found


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
