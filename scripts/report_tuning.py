"""List what was chosen on validation for each method: ranges, budgets, chosen values, scores, time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from langptune.baselines import REGISTRY as BASELINES
from langptune.comparison import tuning
from langptune.comparison.pages import to_html
from langptune.comparison.tuning import BaselineChoices, FusionChoices, TextChoices
from langptune.config.base import validate
from langptune.files import whole
from langptune.provenance import Record, file_hash
from langptune.spreadsheet import cells
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(StageSpec):
    """Choices on validation in, a table and a page out. The files of the choices are named in the entries."""

    title: str = Field(description="the dataset's title")
    baselines: list[BaselineChoices] = Field(description="baselines of the comparison")
    texts: list[TextChoices] = Field(description="methods that rank by texts; no controls, which choose nothing")
    fusions: list[FusionChoices] = Field([], description="methods that add scores with a weight")
    trials: Annotated[int, Field(ge=1)] | None = Field(
        description="number of random trials; null: every point of grids"
    )
    seed: int = Field(description="of the draw of random trials")
    tuning_out: str = Field(description="CSV: a row per choice")
    page_out: str = Field(description="the same as a page")

    def loads(self) -> tuple[str, ...]:
        """The modules of the baselines."""
        return _modules(entry.kind for entry in self.baselines)


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    from langptune.workflow.comparison import baseline_choices, fusion_choices, text_choices

    return {
        "title": project.datasets[job.dataset].title,
        "baselines": baseline_choices(project, job.dataset),
        "texts": text_choices(project, job.dataset),
        "fusions": fusion_choices(project, job.dataset),
        "trials": project.config.trials,
        "seed": project.config.seeds[0],
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=1000, minutes=10)


def loads(project: Project, job: Job) -> tuple[str, ...]:
    """The result of ``Spec.loads``, for the rule."""
    from langptune.workflow.comparison import baseline_choices

    return _modules(entry["kind"] for entry in baseline_choices(project, job.dataset))


def _modules(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(BASELINES.module(kind) for kind in sorted(set(kinds)))


def work(spec: Spec, record: Record, log: Log) -> None:
    """Read the choices, write the table."""
    baselines = []
    for entry in spec.baselines:
        kind = BASELINES.load(entry.kind).Keys
        tune = {"tune": entry.model_dump()["tune"]} if entry.tune else {}
        baselines.append((entry, validate(kind, {**entry.keys, **tune}, f"report_tuning.py --spec: {entry.method}")))
    choices = tuning.table(baselines, spec.texts, spec.trials, spec.seed, spec.fusions)
    with whole(spec.tuning_out) as part:
        cells(choices).write_csv(part)
    with whole(spec.page_out) as part:
        part.write_text(to_html(tuning.page(choices, spec.title), spec.title, wrap=True), encoding="utf-8")
    read = [entry.best_path for entry in spec.baselines if entry.best_path is not None]
    read += [weight for entry in spec.texts for weight in entry.weights.values() if isinstance(weight, str)]
    read += [path for entry in spec.fusions for path in entry.choices.values()]
    record.note(read={path: file_hash(path) for path in dict.fromkeys(read)})
    log("; ".join(tuning.remarks(choices)[:1]) or "nothing was tuned")


if __name__ == "__main__":
    run(Spec, work, __file__)
