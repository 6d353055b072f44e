"""Compute the metrics of the recommended lists of all runs: coverage, popularity, novelty, diversity, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import polars as pl
from pydantic import Field

from langptune import list_metrics
from langptune.comparison import lists
from langptune.comparison.lists import RankedRun
from langptune.data import contracts
from langptune.errors import UserError
from langptune.files import whole
from langptune.language.tastes import tastes_of
from langptune.provenance import Record, file_hash
from langptune.spreadsheet import cells
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(StageSpec):
    """The lists of all runs in, a table of metrics out."""

    runs: list[RankedRun] = Field(description="method, models, seed, ranks_path; in config order")
    reference: str = Field(description="method that differences are taken to, of the same models")
    k: Annotated[int, Field(ge=2)] = Field(10, description="items of each list that are looked at")
    genre_field: str | None = Field(None, description="item field that lists genres; null: the dataset has none")
    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="resamples of sessions and seeds")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="of the intervals")
    seed: int = Field(0, description="of the resamples")
    evaluation_in: str = Field(description="evaluation.parquet: which sessions are compared")
    sessions_in: str
    items_in: str
    lists_out: str = Field(description="CSV: a row per metric, method and models")

    def loads(self) -> tuple[str, ...]:
        """The modules of the metrics."""
        return list_metrics.modules()


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job. An oracle recommends nothing: after the target its list is the catalogue's order."""
    how = project.config.comparison
    runs = [run for run in project.runs(job.dataset) if getattr(project.methods[run.method], "scorer", "") != "oracle"]
    return {
        "runs": [
            {"method": run.method, "models": run.models, "seed": run.seed, "ranks_path": project.paths.ranks_of(run)}
            for run in runs
        ],
        "reference": project.workflow.reference,
        "k": how.list_length,
        "genre_field": project.taste_field(job.dataset),
        "bootstrap": how.bootstrap,
        "confidence": how.confidence,
        "seed": how.seed,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=1500, minutes=20)


def loads(project: Project, job: Job) -> tuple[str, ...]:
    """The result of ``Spec.loads``, for the rule."""
    return list_metrics.modules()


def work(spec: Spec, record: Record, log: Log) -> None:
    """Read the lists, compute the metrics, write one table.

    Raises:
        UserError: a run is missing, or has no list for a compared session.
    """
    items = contracts.read(spec.items_in, "items")
    columns = ["session", "user_id", "split", "history", "seen", "target"]
    sessions = contracts.read(spec.sessions_in, "sessions", columns)
    wanted = contracts.read(spec.evaluation_in, "evaluation").filter(pl.col("split") == "test").select("session")
    compared = sessions.join(wanted, on="session", how="semi").sort("session")
    if len(compared) != len(wanted) or compared.is_empty():
        raise UserError(
            f"{spec.evaluation_in}: {len(wanted)} test sessions, of which {spec.sessions_in} has {len(compared)}; "
            "rerun the rule that makes it"
        )
    # Without such a field the reader of tastes takes words of the texts, which are no genres.
    has_genres = spec.genre_field is not None and spec.genre_field in items.columns
    genres = tastes_of(items, spec.genre_field).has if has_genres else None
    facts = lists.facts_of(items, sessions, compared, genres)
    left_out = list_metrics.left_out(facts)
    rows = lists.collect(spec.runs, compared["session"].to_numpy(), facts, spec.k)
    table = lists.table(
        rows, left_out, spec.reference, len(compared), spec.k, spec.bootstrap, spec.confidence, spec.seed
    )
    with whole(spec.lists_out) as part:
        cells(table).write_csv(part)
    reasons = dict(table.drop_nulls("left_out").select("metric", "left_out").iter_rows())
    measured = [name for name in list_metrics.names() if name not in reasons]
    record.note(sessions=len(compared), metrics=measured, left_out=reasons)
    record.note(runs={entry.ranks_path: file_hash(entry.ranks_path) for entry in spec.runs})
    log(f"{len(spec.runs)} runs, {len(compared)} lists of {spec.k} items each")
    for name, reason in reasons.items():
        log(f"{name}: left out, {reason}")


if __name__ == "__main__":
    run(Spec, work, __file__)
