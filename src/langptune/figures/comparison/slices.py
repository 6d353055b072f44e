"""The main metric on parts of the sessions."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
from matplotlib.figure import Figure

from langptune import metrics
from langptune.comparison.slices import FEWEST
from langptune.figures.inputs import Comparison
from langptune.figures.style import METHODS, empty, new_figure, of_texts, styled
from langptune.spreadsheet import plain

CAPTION = """
Who gains on {dataset}: the main metric on parts of the test sessions, for the three best profile methods and the best
method of each other group (`slices.csv` has all methods and metrics, and differences to the reference). Compare the
methods within a part; the level of a part also depends on how hard its sessions are. Grey parts have fewer than 30
sessions. The lines are percentile-bootstrap intervals over the sessions of the part and over seeds. Nothing is tested
here: with so many parts some would differ by chance.
"""
READS = ("slices",)
SHAPES = ("o", "s", "^", "D", "v", "P", "X")


def draw(comparison: Comparison) -> Figure:
    """A panel for each way to part the sessions."""
    table = comparison.slices.filter(pl.col("metric") == comparison.main_metric)
    panels: dict[str, list[Point]] = {}
    for row in table.iter_rows(named=True):
        key, label = comparison.named(row)
        panels.setdefault(plain(row["title"]), []).append(
            Point(
                key,
                label,
                comparison.groups[row["method"], row["models"]],
                plain(row["slice"]),
                row["sessions"],
                *(row[name] for name in ("mean", "low", "high")),
            )
        )
    return slices(panels, metrics.title(comparison.main_metric), metrics.direction(comparison.main_metric))


@dataclass(frozen=True)
class Point:
    """A method's mean with its interval on one slice."""

    key: str
    label: str
    group: str
    slice: str
    sessions: int
    mean: float
    low: float
    high: float


@of_texts
def slices(panels: dict[str, list[Point]], title: str, better: int = 1) -> Figure:
    """One panel per slicing; in each the slices from left to right, and the methods side by side.

    Args:
        panels: slicing's title -> points.
        title: of the metric.
        better: +1 if a higher value is better, -1 if a lower one is.
    """
    with styled():
        if not panels:
            return empty("The sessions cannot be parted: all are alike.")
        shown = _chosen(next(iter(panels.values())), better)
        colours = dict(zip(shown, METHODS, strict=False))
        widths = [len({point.slice for point in points}) for points in panels.values()]
        figure = new_figure(1.2 + 1.35 * sum(widths), 3.4)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
        step = 0.8 / max(1, len(shown))
        for axis, (name, points) in zip(axes, panels.items(), strict=True):
            sizes = {point.slice: point.sessions for point in points}
            place = {label: at for at, label in enumerate(sizes)}
            for label, size in sizes.items():
                if size < FEWEST:
                    axis.axvspan(place[label] - 0.5, place[label] + 0.5, color="#e4e4e4", linewidth=0)
            for number, (key, label) in enumerate(shown.items()):
                for point in (point for point in points if point.key == key):
                    x = place[point.slice] + (number - (len(shown) - 1) / 2) * step
                    colour = colours[key]
                    axis.plot([x, x], [point.low, point.high], color=colour, linewidth=1.2)
                    axis.plot(
                        x,
                        point.mean,
                        marker=SHAPES[number % len(SHAPES)],
                        markersize=4,
                        color=colour,
                        linestyle="none",
                        label=label if axis is axes[0] and place[point.slice] == 0 else None,
                    )
            axis.set_title(name)
            axis.set_xticks(range(len(sizes)), [f"{label}\nn = {size}" for label, size in sizes.items()])
            axis.set_xlim(-0.5, len(sizes) - 0.5)
            axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes[0].set_ylabel(title)
        if better > 0:
            axes[0].set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def _chosen(points: list[Point], better: int) -> dict[str, str]:
    """Key -> label of the methods to draw: all if they are few, else the best profiles and the best of other groups."""
    weighted: dict[str, list[float]] = {}
    labels, groups = {}, {}
    for point in points:
        total = weighted.setdefault(point.key, [0.0, 0.0])
        total[0] += point.mean * point.sessions
        total[1] += point.sessions
        labels[point.key], groups[point.key] = point.label, point.group
    means = {key: better * total / sessions for key, (total, sessions) in weighted.items()}
    keys = [key for key in means if groups[key] != "bounds"]
    if len(keys) > len(SHAPES):
        best = {
            group: max((k for k in keys if groups[k] == group), key=means.__getitem__)
            for group in groups.values()
            if group != "bounds"
        }
        profiles = sorted((k for k in keys if groups[k] == "profiles"), key=means.__getitem__, reverse=True)[:3]
        keys = [key for key in keys if key in profiles or key in best.values()]
    return {key: labels[key] for key in keys}
