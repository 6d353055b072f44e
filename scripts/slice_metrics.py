"""Compute the metrics of all runs on slices of the test sessions: by history length, target popularity, new users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from langptune.comparison import grid, slices
from langptune.comparison.grid import RunEntry
from langptune.data import contracts
from langptune.files import whole
from langptune.provenance import Record, file_hash
from langptune.spreadsheet import cells
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(StageSpec):
    """Per-session metrics of all runs in, a table of slices out."""

    runs: Annotated[list[RunEntry], Field(min_length=1)] = Field(description="as in the comparison")
    reference: str = Field(description="method that differences are taken to, of the same models")
    metrics: list[str] = Field(description="as in the comparison")
    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="resamples of sessions and seeds")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="of the intervals")
    seed: int = Field(0, description="of the resamples")
    sessions_in: str
    items_in: str
    slices_out: str = Field(description="CSV: a row per slicing, slice, method, models and metric")


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    from langptune.workflow.comparison import run_entry

    how = project.config.comparison
    return {
        "runs": [run_entry(project, run) for run in project.runs(job.dataset)],
        "reference": project.workflow.reference,
        "metrics": how.metrics,
        "bootstrap": how.bootstrap,
        "confidence": how.confidence,
        "seed": how.seed,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    # A way to part the sessions may read any of their columns.
    return Needs(memory=1000, minutes=10, per_sessions=150)


def work(spec: Spec, record: Record, log: Log) -> None:
    """Collect the runs, slice the sessions, write one table.

    Raises:
        UserError: a run is missing, or runs have different sessions.
    """
    collected = grid.collect(spec.runs, spec.metrics)
    sessions = contracts.read(spec.sessions_in, "sessions")
    n_items = len(contracts.read(spec.items_in, "items", ["item"]))
    table = slices.table(collected, spec.reference, sessions, n_items, spec.bootstrap, spec.confidence, spec.seed)
    with whole(spec.slices_out) as part:
        cells(table).write_csv(part)
    record.note(runs={entry.metrics_path: file_hash(entry.metrics_path) for entry in spec.runs})
    sizes = table.select("slicing", "slice", "sessions").unique(maintain_order=True)
    for slicing, name, size in sizes.iter_rows():
        log(f"{slicing}: {name}: {size} sessions" + (" (too few to read)" if size < slices.FEWEST else ""))


if __name__ == "__main__":
    run(Spec, work, __file__)
