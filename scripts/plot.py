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
    """Figures of one comparison. The name of an output file, without its suffix, is the name of its figure."""

    figures_out: Annotated[list[str], Field(min_length=1)] = Field(description="figures as .png and .pdf")

    def figures(self) -> dict[str, list[str]]:
        """Name of each figure -> its files."""
        files: dict[str, list[str]] = {}
        for path in self.figures_out:
            files.setdefault(Path(path).stem, []).append(path)
        return files

    def loads(self) -> tuple[str, ...]:
        """The modules of the figures to be drawn.

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
    """The result of ``PlotSpec.loads``, for the rule."""
    return (comparison.REGISTRY.module(job.wildcards["figure"]),)


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=1000, minutes=30)


def plot(spec: PlotSpec, record: Record, log: Log) -> None:
    """Draw each figure and save it.

    Raises:
        UserError: a figure's inputs are missing, the table has other runs or lacks the metric, a curve lacks its keys,
            or a suffix is unknown.
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
