"""A mean with its interval, shared by several figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes

from langptune.figures.style import COLOURS, OTHER


@dataclass(frozen=True)
class Bar:
    """A row's mean with its interval on one metric.

    key: identifies the row: method and models. Rows with equal labels stay separate.
    label: its label in the figure.
    """

    key: str
    label: str
    group: str
    mean: float
    low: float
    high: float


def points(axis: Axes, title: str, bars: Iterable[Bar], place: Mapping[str, int], bins: int) -> None:
    """Draw a panel of means as points with their intervals, one row each.

    Args:
        place: key of a row -> its place from the top, including rows of other panels.
        bins: limit on the steps of the horizontal axis.
    """
    for bar in bars:
        at, colour = place[bar.key], COLOURS.get(bar.group, OTHER)
        axis.plot([bar.low, bar.high], [at, at], color=colour, linewidth=1.4)
        axis.plot(bar.mean, at, marker="o", markersize=4.5, color=colour)
    axis.set_title(title)
    axis.locator_params(axis="x", nbins=bins)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(place) - 0.4, -0.6)
