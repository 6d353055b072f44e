"""The effect of edits of a profile on the ranking."""

from __future__ import annotations

from matplotlib.figure import Figure

from langptune.figures.bar import Bar, points
from langptune.figures.style import empty, new_figure, of_texts, row_height, styled


@of_texts
def intervals(panels: dict[str, list[Bar]], measure: str) -> Figure:
    """Means as points with their intervals around a line at 0, one panel side by side for each of several conditions.

    Args:
        panels: condition -> one bar per method, in order from the top.
        measure: label of the axis.
    """
    with styled():
        rows = {bar.key: bar.label for members in panels.values() for bar in members}
        if not rows:
            return empty("Nothing could be edited.")
        labels, place = list(rows.values()), {key: at for at, key in enumerate(rows)}
        figure = new_figure(6.4, 1.0 + row_height(labels) * len(labels))
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            points(axis, title, members, place, bins=3)
            axis.axvline(0, color="black", linewidth=0.8)
        axes[0].set_yticks(range(len(labels)), labels)
        figure.supxlabel(measure, fontsize=8, color="#444444")
        return figure
