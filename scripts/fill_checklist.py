"""Fill in the checklist of a comparison: every variable that a paper should report, read from manifests and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from langptune import cost, inference
from langptune.comparison import checklist, tuning
from langptune.comparison.manifests import Manifests
from langptune.comparison.pages import to_html
from langptune.comparison.variables import Tables
from langptune.data import contracts
from langptune.files import whole
from langptune.provenance import Record
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(StageSpec):
    """Manifests of the jobs behind some results in, a checklist out."""

    title: str = Field(description="the dataset's title")
    targets: Annotated[list[str], Field(min_length=1)] = Field(
        description="results of the dataset; the jobs are those that made them and what they were made from"
    )
    tuning_in: str = Field(description="tuning.csv of the comparison")
    costs_in: str = Field(description="cost.csv of the comparison")
    users_in: str = Field(description="inference.csv of the comparison")
    tests_in: str = Field(description="comparisons.csv of the comparison; only its columns are used")
    checklist_out: str = Field(description="Markdown: group, variable, value, source")
    page_out: str = Field(description="the same as a page")


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    from langptune.workflow import targets

    return {"title": project.datasets[job.dataset].title, "targets": targets.results(project, job.dataset)}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=1000, minutes=10)


def work(spec: Spec, record: Record, log: Log) -> None:
    """Find the manifests, read the variables, write the page."""
    jobs, lost = cost.reached(spec.targets)
    tables = Tables(
        tuning=contracts.read_csv(spec.tuning_in, schema_overrides=tuning.SCHEMA),
        tuning_path=spec.tuning_in,
        costs=contracts.read_csv(spec.costs_in, schema_overrides=cost.SCHEMA),
        costs_path=spec.costs_in,
        tests=contracts.read_csv(spec.tests_in, infer_schema=False),
        tests_path=spec.tests_in,
        users=contracts.read_csv(spec.users_in, schema_overrides=inference.SCHEMA),
        users_path=spec.users_in,
    )
    found = checklist.lines(Manifests(jobs), tables)
    text = checklist.page(found, spec.title, lost)
    with whole(spec.checklist_out) as part:
        part.write_text(text, encoding="utf-8")
    with whole(spec.page_out) as part:
        part.write_text(to_html(text, f"Checklist: {spec.title}", wrap=True), encoding="utf-8")
    unknown = [line.variable for line in found if line.value == checklist.UNKNOWN]
    record.note(variables=len(found), not_recorded=unknown, without_manifest=lost)
    log(f"{len(found) - len(unknown)} of {len(found)} variables; not recorded: {', '.join(unknown) or 'none'}")


if __name__ == "__main__":
    run(Spec, work, __file__)
