"""The cost of a dataset's jobs, by stage and model."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from langptune.figures.style import empty, new_figure, styled
from langptune.markup import duration

COLOURS = {"cpu": "#56B4E9", "gpu": "#D55E00"}


def draw(costs: pl.DataFrame) -> Figure:
    """Time, GPU-hours if there are any, measured over predicted time, and memory: a row per stage and model.

    Args:
        costs: the result of ``langptune.cost.table``; rows without a benchmark file are not drawn.
    """
    shown = costs.filter(pl.col("jobs") > pl.col("missing")).reverse()
    with styled():
        rows = list(shown.iter_rows(named=True))
        if not rows:
            return empty("No job of this run has a benchmark file.")
        on_gpu = any(row["gpu_hours"] for row in rows)
        figure = new_figure(7.6 + 1.6 * on_gpu, 1.5 + 0.24 * len(rows))
        axes = list(figure.subplots(1, 3 + on_gpu, sharey=True, width_ratios=[1.4, *[1] * (2 + on_gpu)]))
        _bars(axes[0], rows, "seconds", "Time, all jobs together")
        if on_gpu:
            _bars(axes[1], [{**row, "seconds": row["gpu_hours"] * 3600} for row in rows], "seconds", "GPU time")
        _ratios(axes[-2], rows)
        _memory(axes[-1], rows)
        axes[0].set_yticks(range(len(rows)), [_label(row) for row in rows])
        for axis in axes:
            axis.set_ylim(-0.7, len(rows) - 0.3)
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.tick_params(axis="y", length=0)
        devices = [name for name in COLOURS if any(row["device"] == name for row in rows)]
        handles = [Patch(facecolor=COLOURS[name], label=f"on {name.upper()}") for name in devices]
        handles.append(Line2D([], [], marker="|", markersize=8, color="black", linestyle="none", label="requested"))
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.2)
        return figure


def _label(row: dict[str, Any]) -> str:
    details = [*([row["model"]] if row["model"] else []), *(["shared"] if row["shared"] else [])]
    return row["rule"].replace("_", " ") + (f" ({', '.join(details)})" if details else "")


def _bars(axis: Axes, rows: list[dict[str, Any]], name: str, title: str) -> None:
    top = max(row[name] for row in rows) or 1.0
    size, unit = next(
        ((size, unit) for size, unit in ((3600, "hours"), (60, "minutes")) if top >= 2 * size), (1, "seconds")
    )
    for at, row in enumerate(rows):
        axis.barh(at, row[name] / size, height=0.66, color=COLOURS[row["device"]], linewidth=0)
        if row[name]:
            text = duration(row[name]) + (f" ({row['resumed']} resumed)" if row["resumed"] else "")
            axis.annotate(text, (row[name] / size, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.set_title(title)
    room = 1.8 if any(row["resumed"] for row in rows) else 1.35  # for the longest bar's text
    axis.set_xlim(0, room * top / size)
    axis.locator_params(axis="x", nbins=4)
    axis.set_xlabel(unit, fontsize=8)


def _ratios(axis: Axes, rows: list[dict[str, Any]]) -> None:
    known = [(at, row) for at, row in enumerate(rows) if row["ratio"]]
    for at, row in enumerate(rows):
        if not row["ratio"]:
            axis.text(
                0.52,
                at,
                "no prediction",
                fontsize=7,
                color="#444444",
                va="center",
                transform=axis.get_yaxis_transform(),
            )
    for at, row in known:
        axis.plot([1, row["ratio"]], [at, at], color=COLOURS[row["device"]], linewidth=1.6)
        axis.plot(row["ratio"], at, marker="o", markersize=4.5, color=COLOURS[row["device"]], markeredgecolor="black")
    # Symmetric, in powers of two, so that factors are easy to read.
    reach = max(2, *(math.ceil(abs(math.log2(row["ratio"])) + 0.3) for _, row in known)) if known else 2
    step = math.ceil(reach / 2)
    axis.set_xscale("log", base=2)
    axis.set_xlim(2.0**-reach, 2.0**reach)
    axis.xaxis.set_major_locator(mpl.ticker.FixedLocator([2.0 ** (step * k) for k in range(-2, 3)]))
    axis.xaxis.set_major_formatter(lambda value, _: f"÷{1 / value:g}" if value < 1 else f"×{value:g}")
    axis.minorticks_off()
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_title("Measured / predicted")
    axis.set_xlabel("less time  |  more time", fontsize=8)


def _memory(axis: Axes, rows: list[dict[str, Any]]) -> None:
    for at, row in enumerate(rows):
        if row["peak_mb"] is not None:
            axis.barh(at, row["peak_mb"] / 1000, height=0.66, color=COLOURS[row["device"]], linewidth=0)
        if row["requested_mb"] is not None:
            axis.plot(row["requested_mb"] / 1000, at, marker="|", markersize=9, color="black")
    axis.set_title("Memory, one job")
    axis.set_xlim(left=0)
    axis.locator_params(axis="x", nbins=4)
    axis.set_xlabel("GB", fontsize=8)
