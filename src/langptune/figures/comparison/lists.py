"""What the methods recommend, beyond accuracy."""

from __future__ import annotations

from matplotlib.figure import Figure

from langptune.figures.bar import Bar, points
from langptune.figures.inputs import Comparison
from langptune.figures.style import empty, group_legend, new_figure, of_texts, row_height, styled
from langptune.spreadsheet import plain

CAPTION = """
What the methods recommend on {dataset}: metrics of the first items of each list, in the order of the config, with the
chance level (definitions in docs/protocol.md; `lists.csv` has the numbers and differences to the reference). The lines
are percentile-bootstrap intervals over sessions and seeds; coverage and the Gini index have none: they are numbers of
all lists together. No direction is better as such: a random list covers the catalogue and is diverse. A metric that
needs what the dataset lacks is not drawn.
"""
READS = ("lists",)
COLUMNS = 4


def draw(comparison: Comparison) -> Figure:
    """A panel for each metric."""
    panels: dict[str, list[Bar]] = {}
    for row in comparison.lists.iter_rows(named=True):
        key, label = comparison.named(row)
        group = comparison.groups[row["method"], row["models"]]
        # A metric of all lists together has no interval.
        low, high = (row["mean"] if row[end] is None else row[end] for end in ("low", "high"))
        title = f"{plain(row['title'])}@{row['k']}"
        panels.setdefault(title, []).append(Bar(key, label, group, row["mean"], low, high))
    return dots(panels)


@of_texts
def dots(panels: dict[str, list[Bar]]) -> Figure:
    """One panel per metric; the methods from top to bottom, in the same order in all panels.

    Args:
        panels: metric's title -> means with intervals, of the same methods.
    """
    with styled():
        if not panels:
            return empty("No metric of lists has values here.")
        shown = next(iter(panels.values()))
        place = {bar.key: at for at, bar in enumerate(shown)}
        rows = -(-len(panels) // COLUMNS)
        height = 0.6 + row_height([bar.label for bar in shown]) * len(shown)
        figure = new_figure(2.0 + 2.1 * min(len(panels), COLUMNS), 0.4 + rows * height)
        axes = figure.subplots(rows, min(len(panels), COLUMNS), sharey=True, squeeze=False).ravel()
        for axis, (title, bars) in zip(axes, panels.items(), strict=False):
            points(axis, title, bars, place, bins=4)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        axes[0].set_yticks(range(len(shown)), [bar.label for bar in shown])
        group_legend(figure, [bar.group for bar in shown])
        return figure
