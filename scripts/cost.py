"""The cost of a dataset's results, by stage and model: a table and a figure, from Snakemake's benchmark files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

os.environ.setdefault("MPLBACKEND", "Agg")

from pydantic import Field

from langptune import benchmarks, cost, inference, plan
from langptune.config.datasets import DatasetEntry
from langptune.config.sample import Sample
from langptune.figures import style
from langptune.figures.cost import draw
from langptune.files import whole
from langptune.markup import duration
from langptune.provenance import ROOT, Record
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class CostSpec(StageSpec):
    """Benchmark files of the jobs behind some results in, a table and a figure out."""

    name: str = Field(description="the dataset's registry name")
    dataset: DatasetEntry = Field(description="registry entry: sizes that the data do not tell")
    sample: Sample = Field(description="as in the config")
    targets: Annotated[list[str], Field(min_length=1)] = Field(
        description="results of the dataset; the jobs are those that made them and what they were made from"
    )
    folder: str = Field(description="the dataset's results; jobs whose outputs lie elsewhere are shared")
    benchmarks: list[str] = Field(description="folders of benchmark files, one below it for each rule")
    models: dict[str, str] = Field({}, description="a model's source as JSON (config.identity) -> its name")
    rates: str | None = Field(None, description="YAML of stated speeds; null: config/rates.yaml of the repository")
    runs: list[inference.RankedRun] = Field([], description="the runs of the comparison, for time and energy per user")
    table_out: str = Field(description="CSV, one line per rule, model and kind of device")
    inference_out: str = Field(description="CSV, one line per method and models: time and energy per user")
    page_out: str = Field(description="the same for people (Markdown)")
    figure_out: list[str] = Field(description="the figure as .png and .pdf")


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    from langptune.workflow import targets

    return {
        "name": job.dataset,
        "dataset": project.datasets[job.dataset],
        "sample": project.config.sample,
        "targets": targets.results(project, job.dataset),
        "folder": f"{project.results}/{job.dataset}",
        "benchmarks": [project.benchmarks],
        "models": targets.model_names(project, job.dataset),
        "runs": [
            {
                "method": run.method,
                "title": project.methods[run.method].title,
                "models": run.models,
                "ranks_path": project.paths.ranks_of(run),
            }
            for run in project.runs(job.dataset)
        ],
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=1000, minutes=10)


def gather(spec: CostSpec, record: Record, log: Log) -> None:
    """Find the jobs, read their measurements, predict their time, write table and figure.

    Raises:
        UserError: the stated speeds cannot be read, or their unit is not that of the work.
    """
    rates = plan.stated(
        Path(spec.rates) if spec.rates else ROOT / "config" / "rates.yaml",
        [path.stem for path in (ROOT / "scripts").glob("*.py")],
    )
    jobs, lost = cost.reached(spec.targets)
    measured = benchmarks.gather(path for folder in spec.benchmarks for path in sorted(Path(folder).glob("*/*.jsonl")))
    sizes = plan.Sizes({spec.name: spec.dataset}, spec.sample)
    costs = cost.table(cost.spent(jobs, measured, spec.folder, sizes, rates, spec.models))
    machines = {f"{manifest['host']} ({manifest['device']})" for manifest in jobs.values()}
    with whole(spec.table_out) as part:
        costs.write_csv(part)
    users = inference.table(spec.runs)
    with whole(spec.inference_out) as part:
        users.write_csv(part)
    with whole(spec.page_out) as part:
        page = [cost.page(costs, spec.dataset.title, machines, lost), inference.section(users)]
        part.write_text("\n".join(page if len(users) else page[:1]), encoding="utf-8")
    figure = draw(costs)
    for path in spec.figure_out:
        style.save(figure, path)
    counted, missing = int(costs["jobs"].sum()), int(costs["missing"].sum())
    record.note(jobs=counted, missing=missing, without_manifest=lost)
    log(f"{spec.name}: {counted - missing} of {counted} jobs, {duration(costs['seconds'].sum())} in all")


if __name__ == "__main__":
    run(CostSpec, gather, __file__)
