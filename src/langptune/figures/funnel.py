"""The remaining counts of a dataset after each step of a protocol."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from langptune.figures.style import new_figure, of_texts, styled


@of_texts
def funnel(steps: pl.DataFrame, title: str) -> Figure:
    """The counts after each step of a protocol, with published counts as hollow marks.

    Args:
        steps: columns step, and interactions, users, items with their ``_published``; empty cells are not drawn.
    """
    counts = {"interactions": "#0072B2", "users": "#D55E00", "items": "#009E73"}
    with styled():
        figure = new_figure(5.6, 0.9 + 0.24 * len(steps))
        axis = figure.subplots()
        at = np.arange(len(steps))
        handles = []
        for name, colour in counts.items():
            ours = steps[name].cast(pl.Float64).to_numpy()
            theirs = steps[f"{name}_published"].cast(pl.Float64).to_numpy()
            axis.plot(ours, at, marker="o", markersize=5, linestyle="none", color=colour)
            handles.append(Line2D([], [], label=name, marker="o", markersize=5, linestyle="none", color=colour))
            if not np.isnan(theirs).all():
                axis.plot(theirs, at, marker="o", markersize=9, linestyle="none", color=colour, fillstyle="none")
                handles.append(
                    Line2D(
                        [],
                        [],
                        label=f"{name}, published",
                        marker="o",
                        markersize=7,
                        linestyle="none",
                        color=colour,
                        fillstyle="none",
                    )
                )
        axis.set_xscale("log")
        axis.set_yticks(at, steps["step"].to_list())
        axis.invert_yaxis()
        axis.set_xlabel("left after the step")
        axis.set_title(title)
        axis.grid(color="#e5e5e5", linewidth=0.6)
        figure.legend(handles=handles, loc="outside right center")
        return figure
