"""Figures of a study: one metric over the values of a key, over variants of a recipe, or over pairs of models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from langptune.figures.bar import Bar, points
from langptune.figures.style import COLOURS, DASHES, OTHER, new_figure, of_texts, row_height, shade, styled


def draw(table: list[dict], key: str, settings: list[str], metric: str) -> Figure:
    """The figure of a study, depending on what varies in it.

    Args:
        table: a row per method, models and value or variant, with the keys of the study's CSV.
        key: the varied key of a method, ``models`` or ``recipe``.
        settings: for a study of a recipe, ``variant`` and the varied keys.
        metric: the metric's title.
    """
    if key == "recipe":
        return _variants(table, settings, metric)
    return _grid(table, metric) if key == "models" else _lines(table, key, metric)


def _lines(table: list[dict], key: str, metric: str) -> Figure:
    several = len({row["models"] for row in table}) > 1
    lines = []
    for method, models in dict.fromkeys((row["method"], row["models"]) for row in table):
        points = sorted(
            (row for row in table if (row["method"], row["models"]) == (method, models)), key=lambda row: row["value"]
        )
        label = f"{points[0]['label']}\n{models}" if several else points[0]["label"]
        columns = [[row[name] for row in points] for name in ("value", "mean", "low", "high")]
        lines.append(StudyLine(label, points[0]["group"], *columns))
    values = [row["value"] for row in table]
    return study(lines, key.replace("_", " "), metric, logarithmic=max(values) / min(values) > 5)


def _variants(table: list[dict], named: list[str], metric: str) -> Figure:
    """Variants as rows, with one panel for each value of the last varied key."""
    several = len({(row["method"], row["models"]) for row in table if row["variant"]}) > 1
    panels: dict[str, list[Bar]] = {}
    lines = {}
    for row in table:
        where = f"{row['label']} {row['models']}"
        if not row["variant"]:
            lines[where if several else row["label"]] = row["mean"]
            continue
        label = f"{row['variant']}\n{where}" if several else row["variant"]
        label += f"\n({row['collapsed']} of {row['seeds']} collapsed)" if row["collapsed"] else ""
        title = f"{named[-1]} {row[named[-1]]}" if len(named) > 2 else ""
        panels.setdefault(title, []).append(Bar(label, label, row["group"], row["mean"], row["low"], row["high"]))
    return variants(panels, lines, metric)


def _grid(table: list[dict], metric: str) -> Figure:
    panels = []
    for method, label in {row["method"]: row["label"] for row in table}.items():
        cells = {tuple(row["models"].split("+")): row["mean"] for row in table if row["method"] == method}
        encoders, decoders = (list(dict.fromkeys(pair[side] for pair in cells)) for side in (0, -1))
        values = np.array([[cells.get((encoder, decoder), np.nan) for decoder in decoders] for encoder in encoders])
        panels.append((label, encoders, decoders, values))
    return models_grid(panels, metric)


@dataclass(frozen=True)
class StudyLine:
    """One method of a study: a metric with its interval at each value."""

    label: str
    group: str
    values: list[float]
    means: list[float]
    low: list[float]
    high: list[float]


@of_texts
def study(lines: list[StudyLine], key: str, metric: str, logarithmic: bool) -> Figure:
    """One metric over the values of one key, a line with its interval per method.

    Args:
        key: the varied key, for the axis label.
        metric: the metric's title.
    """
    with styled():
        figure = new_figure(4.2, 3.0)
        axis = figure.subplots()
        for turn, line in enumerate(lines):
            look = {"color": shade(COLOURS.get(line.group, OTHER), turn), "linestyle": DASHES[turn % len(DASHES)]}
            axis.plot(line.values, line.means, marker="o", markersize=3.5, linewidth=1.4, label=line.label, **look)
            axis.fill_between(line.values, line.low, line.high, color=look["color"], alpha=0.15, linewidth=0)
        if logarithmic:
            axis.set_xscale("log")
        ticks = sorted({value for line in lines for value in line.values})
        axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axis.minorticks_off()
        axis.set_xlabel(key)
        axis.set_ylabel(metric)
        axis.set_ylim(bottom=0)
        axis.grid(color="#e5e5e5", linewidth=0.6)
        figure.legend(loc="outside upper center", fontsize=8)
        return figure


@of_texts
def variants(panels: dict[str, list[Bar]], lines: dict[str, float], metric: str) -> Figure:
    """Means of variants as points with their intervals, a panel for each value of one varied key.

    Args:
        panels: title of the panel -> its variants, in order from the top.
        lines: label -> mean of a method that is not varied, drawn through all panels.
        metric: the metric's title.
    """
    with styled():
        rows = {bar.key: bar.label for members in panels.values() for bar in members}
        labels, place = list(rows.values()), {key: at for at, key in enumerate(rows)}
        height = 1.1 + row_height(labels) * len(labels) + 0.16 * len(lines)
        figure = new_figure(2.2 + 2.1 * len(panels), height)
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, members) in zip(axes, panels.items(), strict=True):
            for turn, (label, value) in enumerate(lines.items()):
                style = {"color": "#444444", "linestyle": DASHES[(turn + 1) % len(DASHES)], "linewidth": 1.0}
                axis.axvline(value, label=label if axis is axes[0] else None, **style)
            points(axis, title, members, place, bins=4)
        axes[0].set_yticks(range(len(labels)), labels)
        figure.supxlabel(metric, fontsize=8, color="#444444")
        if lines:
            figure.legend(loc="outside upper right", fontsize=8)
        return figure


@of_texts
def models_grid(panels: list[tuple[str, list[str], list[str], np.ndarray]], metric: str) -> Figure:
    """A metric over pairs of encoder and decoder, one panel per method.

    Args:
        panels: for each method its label, encoders (rows), decoders (columns), means ``[E, D]`` (NaN if not run).
    """
    with styled():
        figure = new_figure(2.6 * len(panels) + 1.2, 2.4)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        top = max(float(np.nanmax(values)) for *_, values in panels)
        for axis, (label, encoders, decoders, values) in zip(axes, panels, strict=True):
            axis.imshow(values, cmap="Blues", vmin=0, vmax=top, aspect="auto")
            axis.set_xticks(range(len(decoders)), decoders, rotation=20, ha="right")
            axis.set_yticks(range(len(encoders)), encoders)
            axis.set_title(label)
            for (row, column), value in np.ndenumerate(values):
                dark = np.isfinite(value) and value > 0.6 * top
                text = f"{value:.4f}" if np.isfinite(value) else "-"
                axis.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=8)
        figure.supxlabel(metric, fontsize=8)
        return figure
