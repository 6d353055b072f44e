"""Which sessions gain over the reference, and how far the target moves."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from langptune import metrics
from langptune.errors import UserError
from langptune.figures.inputs import Comparison
from langptune.figures.style import COLOURS, OTHER, empty, group_legend, new_figure, of_texts, row_height, styled

CAPTION = """
Which sessions gain over the reference (of the same models) on {dataset}. Left: the share of sessions on which a method
is better (filled) or worse (hatched) by the main metric. For all other sessions the metric is zero, or nearly so,
under both. A method with several seeds enters with its mean, so it differs from the reference as soon as one seed
does. Right: how many times higher or lower the session's target is in the list, whether or not the metric sees it. The
dot is the median session, the bar the middle half, the line the middle 90%. Look for methods whose whole bar lies
right of the line.
"""
READS = ("gains",)


def draw(comparison: Comparison) -> Figure:
    """All methods but the reference.

    Raises:
        UserError: the reference is not among the runs.
    """
    labels, metric = comparison.labels, comparison.main_metric
    bases = list(dict.fromkeys(key for key in labels if key[0] == comparison.reference))
    if not bases:
        raise UserError(f"reference '{comparison.reference}' is not among the runs")
    against = labels[bases[0]] if len(bases) == 1 else f"{comparison.titles[bases[0]]} of the same models"
    better = metrics.direction(metric)
    methods = [
        Gain(
            labels[key], comparison.groups[key], better * frame["difference"].to_numpy(), frame["rank_gain"].to_numpy()
        )
        for key, frame in comparison.gains.group_by("method", "models", maintain_order=True)
        if key not in bases
    ]
    by = metrics.title(metric)
    if better < 0:  # the shares are of sessions that improve, so the hint about the direction would mislead
        by = f"improvement in {by.partition(' (')[0].lower()}"
    return gains(methods, against, by)


@dataclass(frozen=True)
class Gain:
    """A method against the reference, per session (float64 ``[S]``).

    differences: differences of the main metric, positive where the method is better.
    rank_gains: log2 of the ratio of the target's ranks, positive where the method ranks it higher.
    """

    label: str
    group: str
    differences: np.ndarray
    rank_gains: np.ndarray


@of_texts
def gains(methods: list[Gain], reference: str, metric: str) -> Figure:
    """Gains over the reference: shares of sessions won and lost, and the shift of the targets' ranks.

    A top-k metric is zero for most sessions under both methods, so its differences are nearly all zero: the
    left panel counts them, the right panel shows what the metric cannot see, the move of every target's rank.

    Args:
        methods: in any order; drawn by the balance of wins and losses. Bounds are left out.
        reference: name of the reference.
        metric: the metric's title.
    """
    with styled():
        shown = sorted(
            (method for method in methods if method.group != "bounds"),
            key=lambda m: (float(np.sign(m.differences).mean()), float(np.median(m.rank_gains)), m.label),
        )
        if not shown:
            return empty("No method besides the reference has run.")
        figure = new_figure(5.6, 1.5 + row_height([method.label for method in shown]) * len(shown))
        left, right = figure.subplots(1, 2, sharey=True)
        for at, method in enumerate(shown):
            won = 100 * float((method.differences > 0).mean())
            lost = 100 * float((method.differences < 0).mean())
            colour = COLOURS.get(method.group, OTHER)
            left.barh(at, won, height=0.66, color=colour, linewidth=0)
            left.barh(at, -lost, height=0.66, facecolor="white", edgecolor=colour, hatch="//////", linewidth=0.8)
            tail, quarter, middle, three, top = np.quantile(method.rank_gains, [0.05, 0.25, 0.5, 0.75, 0.95])
            right.plot([tail, top], [at, at], color=colour, linewidth=1.2)
            right.plot([quarter, three], [at, at], color=colour, linewidth=5.5, solid_capstyle="butt")
            right.plot(middle, at, marker="o", markersize=4.5, color="white", markeredgecolor="black")
        left.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
        left.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        left.set_title(f"Sessions by {metric}")
        left.set_xlabel("% worse  |  % better", fontsize=8)
        left.set_yticks(range(len(shown)), [method.label for method in shown])
        right.set_title("Target's place in the list")
        right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
        right.xaxis.set_major_formatter(lambda doublings, _: f"{'÷' if doublings < 0 else '×'}{2 ** abs(doublings):g}")
        right.set_xlabel("times lower  |  times higher", fontsize=8)
        for axis in (left, right):
            axis.axvline(0, color="black", linewidth=0.8)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(-0.6, len(shown) - 0.4)
        against = " ".join(reference.split())
        figure.supxlabel(
            f"Against {against}\nbars: 25 to 75%, lines: 5 to 95% of sessions", fontsize=8, color="#444444"
        )
        group_legend(figure, [method.group for method in shown])
        return figure
