"""Draw figures of a comparison, each by its entry of ``langptune.figures.comparison``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

os.environ.setdefault("MPLBACKEND", "Agg")

from pydantic import Field

from langptune.figures import comparison, style
from langptune.figures.inputs import Comparison
from langptune.provenance import Record, file_hash
from langptune.stage import Log, run


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
