"""Means of all methods with their intervals."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure

from langptune import metrics
from langptune.errors import UserError
from langptune.figures.bar import Bar
from langptune.figures.inputs import Comparison
from langptune.figures.style import COLOURS, OTHER, empty, group_legend, new_figure, of_texts, row_height, styled

CAPTION = """
Which methods are ahead on {dataset}, and by how much: means over sessions and seeds, the best on top, both panels in
the order of the left one. The black line is a percentile-bootstrap interval, over sessions alone for methods that draw
nothing. Two intervals that overlap are not a test: the table and the contrasts have those. Chance and oracle are given
below the axes: on their scale the others could not be distinguished.
"""
READS = ("table",)


def draw(comparison: Comparison) -> Figure:
    """Panels of the main and the second metric.

    Raises:
        UserError: the table lacks one of them.
    """
    panels = {}
    for metric in dict.fromkeys(filter(None, [comparison.main_metric, comparison.second_metric])):
        rows = comparison.table.filter(pl.col("metric") == metric)
        if rows.is_empty():
            raise UserError(f"{comparison.table_in}: holds no metric '{metric}'; add it to comparison.metrics")
        panels[metrics.title(metric)] = [
            Bar(*comparison.named(row), row["group"], row["mean"], row["low"], row["high"])
            for row in rows.iter_rows(named=True)
        ]
    return bars(panels, metrics.direction(comparison.main_metric))


@of_texts
def bars(panels: dict[str, list[Bar]], better: int = 1) -> Figure:
    """Means with intervals, one panel per metric side by side, the best on top.

    Args:
        panels: metric's title -> bars. The first panel is sorted, the others follow its order. Bounds are
            listed below the axes: an oracle at 1 would flatten everything else.
        better: +1 if a higher value of the first panel is better, -1 if a lower one is.
    """
    with styled():
        first = next(iter(panels.values()))
        shown = sorted((bar for bar in first if bar.group != "bounds"), key=lambda bar: (better * bar.mean, bar.label))
        if not shown:
            return empty("Only bounds have run; there is no method to draw.")
        figure = new_figure(5.6, 1.35 + row_height([bar.label for bar in shown]) * len(shown))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        place = {bar.key: at for at, bar in enumerate(shown)}
        notes = []
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for bar in members:
                if bar.key not in place:
                    continue
                colour = COLOURS.get(bar.group, OTHER)
                axis.barh(place[bar.key], bar.mean, height=0.66, color=colour, alpha=0.85, linewidth=0)
                axis.plot([bar.low, bar.high], [place[bar.key]] * 2, color="black", linewidth=1.1)
            axis.set_title(title)
            axis.set_xlim(left=0)
            axis.margins(y=0.02)
            axis.locator_params(axis="x", nbins=4)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
            bounds = [bar for bar in members if bar.group == "bounds"]
            notes.append(f"{title}: " + ", ".join(f"{bar.label} {bar.mean:.4f}" for bar in bounds))
        axes[0].set_yticks(range(len(shown)), [bar.label for bar in shown])
        group_legend(figure, [bar.group for bar in shown])
        if any(bar.group == "bounds" for bar in first):
            figure.supxlabel("Not drawn\n" + "\n".join(notes), fontsize=8, color="#444444")
        return figure
