"""Published numbers beside those of this run."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
from matplotlib.figure import Figure

from langptune import metrics
from langptune.figures.inputs import Comparison
from langptune.figures.style import COLOURS, OTHER, empty, group_legend, new_figure, of_texts, row_height, styled

CAPTION = """
Whether this run agrees with published numbers on {dataset}: published means (open dots) beside ours (filled dots). The
black line is our percentile-bootstrap interval over sessions and seeds. A published number has neither interval nor
seeds. It is one run as it was reported, on another draw of sessions, so a distance between two dots is not a test.
"""
READS = ("table",)
ONLY_WITH = "published"


def draw(comparison: Comparison) -> Figure:
    """A panel for each metric that has a published number."""
    panels: dict[str, list[Pair]] = {}
    if "published" in comparison.table.columns:
        for row in comparison.table.filter(pl.col("published").is_not_null()).iter_rows(named=True):
            numbers = (row[key] for key in ("published", "mean", "low", "high"))
            pair = Pair(*comparison.named(row), row["group"], *numbers)
            panels.setdefault(metrics.title(row["metric"]), []).append(pair)
    return published(panels)


@dataclass(frozen=True)
class Pair:
    """A published number beside our mean with its interval, on one metric; ``key`` and ``label`` as in ``Bar``."""

    key: str
    label: str
    group: str
    published: float
    mean: float
    low: float
    high: float


@of_texts
def published(panels: dict[str, list[Pair]]) -> Figure:
    """Published numbers beside ours: two dots and the line between them for each method, one panel per metric.

    Args:
        panels: metric's title -> pairs. Rows are in the order of the published numbers, each method's by the first
            metric that has one; where a method has no pair, its row of the panel is empty.
    """
    with styled():
        known = {pair.key: pair for members in reversed(panels.values()) for pair in members}
        shown = sorted(known.values(), key=lambda pair: (pair.published, pair.label))
        if not shown:
            return empty("No method that has run has a published number.")
        figure = new_figure(5.6, 1.45 + row_height([pair.label for pair in shown]) * len(shown))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        place = {pair.key: at for at, pair in enumerate(shown)}
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for pair in members:
                at, colour = place[pair.key], COLOURS.get(pair.group, OTHER)
                axis.plot([pair.published, pair.mean], [at, at], color=colour, linewidth=3, alpha=0.35)
                axis.plot([pair.low, pair.high], [at, at], color="black", linewidth=1.1)
                # Not clipped at the axis, because chance is close to zero.
                dot = {"marker": "o", "markersize": 5, "markeredgecolor": colour, "clip_on": False, "zorder": 3}
                axis.plot(pair.mean, at, color=colour, **dot)
                axis.plot(pair.published, at, color="white", **dot)
            axis.set_title(title)
            axis.set_xlim(left=0)
            axis.set_ylim(-0.6, len(shown) - 0.4)
            axis.locator_params(axis="x", nbins=4)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(shown)), [pair.label for pair in shown])
        note = "open: published, one number without interval\nfilled: ours, with its interval"
        figure.supxlabel(note, fontsize=8, color="#444444")
        group_legend(figure, [pair.group for pair in shown])
        return figure
