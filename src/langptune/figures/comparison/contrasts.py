"""Differences of the named pairs of methods."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
from matplotlib.figure import Figure

from langptune import metrics
from langptune.figures.inputs import Comparison
from langptune.figures.style import METHODS, empty, new_figure, of_texts, styled
from langptune.spreadsheet import plain

CAPTION = """
The questions that this comparison asks on {dataset} (`comparison.contrasts`): the difference between the first and the
second method of each pair, with its interval. Right of the line the first is better, whichever way the metric goes.
Filled dots are significant after Holm's correction over all contrasts of the metric; an open dot is no answer. The
interval covers sessions and seeds and the test covers sessions alone, so the interval of a filled dot may cross the
line.
"""
READS = ("contrasts",)
ONLY_WITH = "contrasts"


def draw(comparison: Comparison) -> Figure:
    """The contrasts that have run, by the main metric, and by the log rank if it is among the metrics."""
    table, titles = comparison.contrasts, comparison.titles
    names = dict.fromkeys([comparison.main_metric, *(["log-rank"] if "log-rank" in table["metric"] else [])])
    of_method = {method: title for (method, _), title in titles.items()}
    several = len(table.select("method", "models", "against_models").unique()) > table["contrast"].n_unique()
    panels: dict[str, list[Difference]] = {}
    for name in names:
        members = panels.setdefault(metrics.title(name), [])
        for row in table.filter(pl.col("metric") == name, pl.col("difference").is_not_null()).iter_rows(named=True):
            pair = f"{titles[row['method'], row['models']]} – {titles[row['against'], row['against_models']]}"
            if row["beyond"]:
                pair = f"({pair}) – ({of_method[row['beyond']]} – {of_method[row['beyond_against']]})"
            lines = [plain(str(row["title"] or "")), pair, row["models"] if several else ""]
            members.append(
                Difference(
                    key="/".join((row["contrast"], row["models"], row["against_models"])),
                    label="\n".join(filter(None, lines)),
                    difference=row["difference"],
                    low=row["difference_low"],
                    high=row["difference_high"],
                    better=metrics.direction(name),
                    significant=row["p_permutation_holm"] < 1 - comparison.confidence,
                )
            )
    return contrasts(panels)


@dataclass(frozen=True)
class Difference:
    """A contrast on one metric: first method minus second, with its interval.

    key: identifies the row; label: its label in the figure.
    better: +1 if a higher value of the metric is better, -1 if a lower one is.
    significant: after the correction over all contrasts of the metric.
    """

    key: str
    label: str
    difference: float
    low: float
    high: float
    better: int
    significant: bool


@of_texts
def contrasts(panels: dict[str, list[Difference]]) -> Figure:
    """Differences of pairs of methods with intervals around a line at 0, one panel per metric side by side.

    Args:
        panels: metric's title -> one difference per contrast that has run, in order from the top. If lower values of a
            metric are better, its axis is inverted, so that better is always to the right.
    """
    with styled():
        rows = {one.key: one.label for members in panels.values() for one in members}
        if not rows:
            return empty("No contrast has both of its methods run.")
        labels, place = list(rows.values()), {key: at for at, key in enumerate(rows)}
        lines = max(label.count("\n") + 1 for label in labels)
        longest = max(len(line) for label in labels for line in label.splitlines())
        # A letter takes about 0.065 inches; the width of the panels does not depend on the labels.
        figure = new_figure(0.065 * longest + 1.9 * len(panels), 1.3 + (0.12 + 0.14 * lines) * len(labels))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        colour = METHODS[0]
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for one in members:
                at = place[one.key]
                axis.plot([one.low, one.high], [at, at], color=colour, linewidth=1.4)
                fill = colour if one.significant else "white"
                axis.plot(one.difference, at, marker="o", markersize=5, color=fill, markeredgecolor=colour)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_title(title.replace(" (", "\n("))
            axis.margins(x=0.1)
            axis.locator_params(axis="x", nbins=4)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(len(labels) - 0.4, -0.6)
            if members and members[0].better < 0:
                axis.invert_xaxis()
        axes[0].set_yticks(range(len(labels)), labels)
        note = "to the right: the first method is better\nfilled: significant after Holm's correction"
        figure.supxlabel(note, fontsize=8, color="#444444")
        return figure
