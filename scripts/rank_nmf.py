"""Rank the test sessions by NMF of the train interactions, with the number of factors chosen on validation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from langptune import stage
from langptune.provenance import Record


class Spec(stage.StageSpec):
    """Choose the number of factors on validation, factorise the train interactions, rank the test sessions."""

    components: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = Field(
        description="numbers of factors to choose from; a single one is taken as it is"
    )
    max_iterations: Annotated[int, Field(ge=1)] = Field(200, description="of the solver")
    tune_seed: int = Field(0, description="seed of the choice, the same for all seeds of a run")
    seed: int = Field(0, description="seed of the run")
    threads: Annotated[int, Field(ge=1)] = Field(1, description="CPU threads")
    items_in: str = Field(description="items.parquet: the size of the catalogue")
    sessions_in: str
    ranks_out: str


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Choose, fit, rank."""
    stage.set_threads(spec.threads)
    import polars as pl

    from langptune.baselines import nmf
    from langptune.data import contracts

    n_items = len(contracts.read(spec.items_in, "items", ["item"]))
    sessions = contracts.read(spec.sessions_in, "sessions", nmf.COLUMNS)
    train = nmf.train_matrix(sessions, n_items)
    components, tried = spec.components[0], {}
    if len(spec.components) > 1:
        val = sessions.filter(pl.col("split") == "val")
        components, tried = nmf.select(train, val, spec.components, spec.max_iterations, spec.tune_seed, log)
    fitted = nmf.fit(train, components, spec.max_iterations, spec.seed)
    ranks = fitted.ranks(sessions.filter(pl.col("split") == "test"))
    contracts.write(ranks, spec.ranks_out, "ranks")
    record.note(
        sessions=len(ranks),
        components=components,
        val_ndcg10_by_components={str(key): value for key, value in tried.items()},
        iterations=int(fitted.model.n_iter_),
        converged=bool(fitted.model.n_iter_ < spec.max_iterations),
    )
    log(f"NMF with {components} components: ranked {len(ranks)} sessions")


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
