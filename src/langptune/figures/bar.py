"""A mean with its interval, as several figures draw it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes

from langptune.figures.style import COLOURS, OTHER


@dataclass(frozen=True)
class Bar:
    """A row's mean with its interval on one metric.

    key: what makes a row: method and models. Two rows with one label stay two rows.
    label: what the figure calls it.
    """

    key: str
    label: str
    group: str
    mean: float
    low: float
    high: float


def points(axis: Axes, title: str, bars: Iterable[Bar], place: Mapping[str, int], bins: int) -> None:
    """A panel of means as points with their intervals, a row each.

    Args:
        place: key of a row -> its place from the top; rows of other panels among them.
        bins: at most so many steps on the horizontal axis.
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
