"""Describe a prepared dataset: a card, statistics per split, and the counts after each step of its protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from pydantic import Field

from langptune import stage
from langptune.config.datasets import DatasetEntry
from langptune.data import contracts
from langptune.data.audit import audit
from langptune.data.card import card, statistics
from langptune.errors import UserError
from langptune.figures import style
from langptune.figures.funnel import funnel as draw
from langptune.files import whole
from langptune.provenance import Record
from langptune.reading import read_json
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project

COUNTS = ("interactions", "users", "items")


class Spec(stage.StageSpec):
    """Write the dataset card, the statistics and the funnel."""

    name: str = Field(description="the dataset's name in config/datasets.yaml")
    dataset: DatasetEntry = Field(description="its registry entry")
    items_in: str
    sessions_in: str
    funnel_in: str
    manifest_in: str = Field(description="manifest of the sessions: hashes of the raw files, drops, notes")
    card_out: str
    statistics_out: str
    figure_out: list[str] = Field(description="the funnel, in one format each")


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    return {
        "name": job.dataset,
        "dataset": project.datasets[job.dataset],
        "manifest_in": f"{project.paths.data_file(job.dataset, 'sessions')}.manifest.json",
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=2000, minutes=30)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Count, draw, write."""
    items = contracts.read(spec.items_in, "items")
    sessions = contracts.read(spec.sessions_in, "sessions")
    numbers = statistics(items, sessions)
    with whole(spec.statistics_out) as part:
        numbers.write_csv(part)
    funnel = beside_published(
        contracts.read_csv(spec.funnel_in, schema_overrides=dict.fromkeys(COUNTS, pl.Int64)), spec
    )
    facts = read_json(spec.manifest_in)["notes"]
    kept = next((step["interactions"] for step in facts["funnel"] if step["step"] == "repeats"), None)
    checks = audit(items, sessions, facts["drops"], kept, facts["tied_test_targets"])
    record.note(audit={check.name: {"value": check.value, "level": check.level} for check in checks})
    with whole(spec.card_out) as part:
        part.write_text(card(spec.name, spec.dataset, numbers, funnel, facts, items, checks), encoding="utf-8")
    figure = draw(funnel, spec.dataset.title)
    for path in spec.figure_out:
        style.save(figure, path)
    log(f"{spec.name}: card, statistics and funnel written")
    for check in checks:
        if check.level == "warning":
            value = "" if check.value is None else f" {check.value:.3f}"
            log(f"{spec.name}: {check.name}{value}: {check.meaning} (see {Path(spec.card_out).name})")


def beside_published(funnel: pl.DataFrame, spec: Spec) -> pl.DataFrame:
    """The funnel with columns ``*_published``, null where no number is published.

    Raises:
        UserError: a published step is not a step of the protocol.
    """
    steps = funnel["step"].to_list()
    if unknown := [step for step in spec.dataset.published if step not in steps]:
        raise UserError(
            f"datasets.yaml: {spec.name}: published: '{unknown[0]}' is not a step of this protocol: {', '.join(steps)}"
        )
    published = [{"step": step, **counts.model_dump()} for step, counts in spec.dataset.published.items()]
    schema = {"step": pl.String, **dict.fromkeys(COUNTS, pl.Int64)}
    return funnel.join(
        pl.DataFrame(published, schema=schema), on="step", how="left", suffix="_published", maintain_order="left"
    )


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
