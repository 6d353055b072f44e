"""Draw figures of a comparison, each by its entry of ``langptune.figures.comparison``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

os.environ.setdefault("MPLBACKEND", "Agg")

from pydantic import Field

from langptune.figures import comparison, style
from langptune.figures.inputs import Comparison
from langptune.provenance import Record, file_hash
from langptune.stage import Log, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class PlotSpec(Comparison):
    """Figures of one comparison. The name of a file, without its suffix, says which figure it is."""

    figures_out: Annotated[list[str], Field(min_length=1)] = Field(description="figures as .png and .pdf")

    def figures(self) -> dict[str, list[str]]:
        """Name of each figure -> its files."""
        found: dict[str, list[str]] = {}
        for path in self.figures_out:
            found.setdefault(Path(path).stem, []).append(path)
        return found

    def loads(self) -> tuple[str, ...]:
        """Of the figures' modules, those of the figures to be drawn.

        Raises:
            UserError: there is no such figure.
        """
        return tuple(map(comparison.REGISTRY.module, self.figures()))


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    from langptune.workflow.comparison import baseline_curves, phase_curves, run_entry

    reads, how = comparison.entry(job.wildcards["figure"]).reads, project.config.comparison
    curves_of = {"curves": baseline_curves, "phases": phase_curves}
    return {
        **{
            name: [{"path": path, **curve} for path, curve in curves_of[name](project, job.dataset).items()]
            for name in reads
            if name in curves_of
        },
        "runs": [run_entry(project, run) for run in project.runs(job.dataset)],
        "reference": project.workflow.reference,
        "main_metric": how.main_metric,
        "confidence": how.confidence,
        "second_metric": "recall@10" if "recall@10" in how.metrics else None,
    }


def loads(project: Project, job: Job) -> tuple[str, ...]:
    """As ``PlotSpec.loads``, for the rule."""
    return (comparison.REGISTRY.module(job.wildcards["figure"]),)


def needs(project: Project, job: Job) -> Needs:
    """What a job needs."""
    return Needs(memory=1000, minutes=30)


def plot(spec: PlotSpec, record: Record, log: Log) -> None:
    """Draw each figure and save it.

    Raises:
        UserError: a figure without its inputs, a table of other runs or without the metric, a curve without its keys,
            an unknown suffix.
    """
    for name, paths in spec.figures().items():
        figure = comparison.REGISTRY.load(name).draw(spec)
        for path in paths:
            style.save(figure, path)
    reads = {kind for name in spec.figures() for kind in comparison.entry(name).reads}
    read = [entry.metrics_path for entry in spec.runs] if "metrics" in reads else []
    read += [entry.path for entry in [*spec.curves, *spec.phases]]
    record.note(read={path: file_hash(path) for path in read if Path(path).exists()})
    log(f"drawn: {', '.join(spec.figures())}")


if __name__ == "__main__":
    run(PlotSpec, plot, __file__)
