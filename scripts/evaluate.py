"""Compute the per-session metrics of one run from its ranks, for exactly the sessions of the comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import polars as pl
from pydantic import Field

from langptune import metrics
from langptune.data import contracts
from langptune.errors import UserError
from langptune.provenance import Record
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class EvaluateSpec(StageSpec):
    """Per-session metrics of one run: session, user_id, rank and one float64 column per metric."""

    ranks_in: str = Field(description="ranks.parquet of the run; it may hold more sessions than are compared")
    evaluation_in: str = Field(description="evaluation.parquet: which sessions are compared")
    sessions_in: str = Field(description="sessions.parquet: users and targets, against which the ranks are checked")
    items_in: str = Field(description="items.parquet: the size of the catalogue")
    metrics: list[str] = Field(list(metrics.DEFAULT), description="recall@K, ndcg@K, mrr@K, ndcg, mrr, log-rank")
    split: Literal["train", "val", "test"] = Field("test", description="split that is evaluated")
    metrics_out: str = Field(description="metrics.parquet")

    def loads(self) -> tuple[str, ...]:
        """The modules of the metrics."""
        return tuple(metrics.module(name) for name in self.metrics)


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    return {"metrics": project.config.comparison.metrics}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=500, minutes=10, per_sessions=5)


def loads(project: Project, job: Job) -> tuple[str, ...]:
    """The result of ``EvaluateSpec.loads``, for the rule."""
    return tuple(metrics.module(name) for name in project.config.comparison.metrics)


def evaluate(spec: EvaluateSpec, record: Record, log: Log) -> None:
    """Check the ranks against the sessions, compute the metrics, write them.

    Raises:
        UserError: a cut-off is larger than the catalogue, a compared session has no rank, or a rank or target
            contradicts the data.
    """
    n_items = len(contracts.read(spec.items_in, "items", ["item"]))
    for name in spec.metrics:
        k = metrics.parse(name)[1]
        if k is not None and k > n_items:
            raise UserError(
                f"{name}: the cut-off {k} is larger than the catalogue of {n_items} items ({spec.items_in}); "
                "change comparison.metrics"
            )
    wanted = contracts.read(spec.evaluation_in, "evaluation").filter(pl.col("split") == spec.split)
    if wanted.is_empty():
        raise UserError(f"{spec.evaluation_in}: no session of split '{spec.split}' is to be compared")
    sessions = contracts.read(spec.sessions_in, "sessions", ["session", "user_id", "split", "target"])
    ranks = contracts.read(spec.ranks_in, "ranks", ["session", "target", "rank"])
    frame = (
        wanted.select("session")
        .join(sessions.rename({"target": "true_target"}), on="session", how="left")
        .join(ranks.with_columns(ranked=True), on="session", how="left")
        .sort("session")
    )
    if ranks["session"].is_duplicated().any():
        raise UserError(f"{spec.ranks_in}: some sessions are ranked twice; rerun the rule that makes it")
    for bad, message in (
        (
            pl.col("split").is_null() | (pl.col("split") != spec.split),
            f"are not {spec.split} sessions of {spec.sessions_in}; rerun the rule that makes {spec.evaluation_in}",
        ),
        (
            pl.col("ranked").is_null(),
            f"have no rank in {spec.ranks_in}; rerun the rule that makes it",
        ),
        (
            pl.col("target") != pl.col("true_target"),
            f"have another target in {spec.ranks_in} than in {spec.sessions_in}; the ranks are of other data",
        ),
        (
            ~pl.col("rank").is_between(1, n_items),
            f"have a rank outside 1..{n_items} in {spec.ranks_in}; the ranks are of another catalogue",
        ),
    ):
        broken = frame.filter(bad)
        if len(broken):
            raise UserError(
                f"{len(broken)} of {len(frame)} compared sessions (first: session {broken['session'][0]}) {message}"
            )

    values = frame["rank"].to_numpy()
    out = frame.select("session", "user_id", "rank").with_columns(
        [pl.Series(name, metrics.from_ranks(name, values), dtype=pl.Float64) for name in spec.metrics]
    )
    contracts.write_parquet(out, spec.metrics_out)
    means = {name: float(out[name].mean()) for name in spec.metrics}
    record.note(sessions=len(out), items=n_items, split=spec.split, means=means)
    log(f"{len(out)} {spec.split} sessions: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items()))


if __name__ == "__main__":
    run(EvaluateSpec, evaluate, __file__)
