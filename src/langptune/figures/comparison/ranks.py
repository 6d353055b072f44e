"""The distribution of the target's rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from langptune.comparison import grid
from langptune.figures.inputs import Comparison
from langptune.figures.style import COLOURS, DASHES, OTHER, new_figure, of_texts, shade, styled

CAPTION = """
Where the target lands in the list on {dataset}: the share of sessions, over all seeds, whose target is at or above each
rank. The height at rank k is Recall@k; the grey line is at 10. The dotted grey curve is chance. A method that leaves it
only far to the right orders the catalogue better than chance, but not where a user would look.
"""
READS = ("items", "metrics")


def draw(comparison: Comparison) -> Figure:
    """All runs that exist."""
    collected = grid.collect(comparison.runs, [comparison.main_metric], allow_missing=True)
    methods = [
        Ranks(comparison.labels[row.method, row.models], row.group, row.ranks.ravel())
        for row in collected.rows
        if not row.missing
    ]
    return rank_distributions(methods, comparison.catalogue)


@dataclass(frozen=True)
class Ranks:
    """The ranks of a method's targets over sessions and seeds: int ``[S * R]``, 1-based."""

    label: str
    group: str
    ranks: np.ndarray


@of_texts
def rank_distributions(methods: list[Ranks], n_items: int) -> Figure:
    """The share of sessions whose target ranks at or above each rank: Recall@k at every k at once.

    Args:
        methods: sorted by the share within the first ten; bounds are left out, because chance is the dotted curve
            ``rank / n_items`` (a diagonal on linear axes) and an oracle is the upper edge.
        n_items: size of the catalogue.
    """
    with styled():
        shown = sorted(
            (method for method in methods if method.group != "bounds"),
            key=lambda m: (-float((m.ranks <= 10).mean()), -float(np.mean(1.0 / m.ranks)), m.label),
        )
        figure = new_figure(5.6, max(3.2, 0.9 + 0.2 * (len(shown) + 1)))
        axis = figure.subplots()
        at = np.unique(np.round(np.geomspace(1, n_items, 400)).astype(int))
        handles = []
        used = dict.fromkeys(COLOURS, 0)
        for method in shown:
            share = np.searchsorted(np.sort(method.ranks), at, side="right") / len(method.ranks)
            turn = used.get(method.group, 0)
            used[method.group] = turn + 1
            look = {
                "color": shade(COLOURS.get(method.group, OTHER), turn // len(DASHES)),
                "linestyle": DASHES[turn % len(DASHES)],
                "linewidth": 1.5,
            }
            axis.plot(at, share, drawstyle="steps-post", **look)
            handles.append(Line2D([], [], label=method.label, **look))
        chance = {"color": COLOURS["bounds"], "linestyle": (0, (1, 2)), "linewidth": 1.2}
        axis.plot(at, at / n_items, **chance)
        handles.append(Line2D([], [], label="chance", **chance))
        axis.axvline(10, color="#bbbbbb", linewidth=0.8, zorder=0)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlim(1, n_items)
        axis.set_ylim(0, 1)
        axis.set_xlabel(f"rank (of {n_items} items)")
        axis.set_ylabel("share of sessions at or above")
        axis.grid(color="#e5e5e5", linewidth=0.6)
        figure.legend(handles=handles, loc="outside right center", handlelength=2.6)
        return figure
