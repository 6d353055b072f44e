"""Accuracy against the measures of interpretability."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from langptune.figures.bar import Bar
from langptune.figures.style import METHODS, new_figure, of_texts, styled


@of_texts
def tradeoff(accuracy: list[Bar], panels: dict[str, list[Bar]], metric: str, better: int = 1) -> Figure:
    """Accuracy (better upwards) against other measures (sideways, one panel each), a cross of intervals per method.

    More than four panels are drawn in rows of three.

    Args:
        accuracy: one per method.
        panels: measure's title -> one per method; methods without a value are not drawn.
        metric: title of the accuracy.
        better: +1 if a higher accuracy is better, -1 if a lower one is: its axis is then inverted.
    """
    with styled():
        columns = len(panels) if len(panels) <= 4 else 3
        rows = -(-len(panels) // columns)
        figure = new_figure(2.7 * columns + 0.4, 3.1 if rows == 1 else 2.5 * rows + 0.6)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        axes = grid.ravel()[: len(panels)]
        for axis in grid.ravel()[len(panels) :]:
            axis.set_axis_off()
        marks = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")
        looks = {bar.key: (METHODS[at % len(METHODS)], marks[at % len(marks)]) for at, bar in enumerate(accuracy)}
        heights = {bar.key: bar for bar in accuracy}
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for bar in members:
                up, (colour, mark) = heights[bar.key], looks[bar.key]
                axis.plot([bar.low, bar.high], [up.mean] * 2, color=colour, linewidth=1.0, alpha=0.7)
                axis.plot([bar.mean] * 2, [up.low, up.high], color=colour, linewidth=1.0, alpha=0.7)
                axis.plot(bar.mean, up.mean, marker=mark, color=colour, markersize=6, markeredgecolor="white")
            axis.set_title(title, fontsize=8)
            axis.grid(color="#e5e5e5", linewidth=0.6)
            axis.locator_params(axis="x", nbins=5)
        for axis in grid[:, 0]:
            axis.set_ylabel(metric)
        axes[0].margins(y=0.1)  # the axis would hide an interval at 0
        if better < 0:
            axes[0].invert_yaxis()
        handles = [
            Line2D([], [], label=heights[key].label, color=colour, marker=mark, linestyle="none", markersize=6)
            for key, (colour, mark) in looks.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
        return figure
