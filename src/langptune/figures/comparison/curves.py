"""Learning curves of the methods that train by epochs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from langptune import metrics
from langptune.errors import UserError
from langptune.figures.inputs import Comparison, CurveEntry
from langptune.figures.style import COLOURS, DASHES, empty, new_figure, of_texts, styled
from langptune.reading import from_json, read_plain

CAPTION = """
How the trained baselines learned on {dataset}: NDCG@10 on validation by epoch, one panel per method, one line per seed.
The dot is the epoch that was kept. A curve that still climbs at its right end was stopped too early. Test sessions play
no part in these.
"""
READS = ("curves",)


def draw(comparison: Comparison) -> Figure:
    """The curves that exist."""
    key = comparison.curve_metric
    found = [_curve(entry, key) for entry in comparison.curves if Path(entry.path).exists()]
    # A closed-form model has no epochs: its single point shows nothing about stopping.
    found = [curve for curve in found if curve.epochs.max() > 0]
    return learning_curves(found, metrics.title(key.removeprefix("val_")))


def _curve(entry: CurveEntry, metric: str) -> Curve:
    points = []
    for number, text in enumerate(read_plain(entry.path).decode().splitlines(), start=1):
        try:
            line = from_json(text)
            if line.get(metric) is not None:  # epochs without a validation have only the loss
                points.append((float(line["epoch"]), float(line[metric])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{entry.path}: line {number}: no epoch and {metric} in it ({error})") from None
    if not points:
        raise UserError(f"{entry.path}: no line holds '{metric}'; retrain the run or set curve_metric")
    epochs, values = np.array(sorted(points)).T
    return Curve(entry.key, entry.title, epochs, values)


@dataclass(frozen=True)
class Curve:
    """Learning curve of a trained method: validation metric (float64 ``[E]``) by epoch (``[E]``).

    key: curves with the same key are seeds of one method.
    label: the method's label in the figure.
    """

    key: str
    label: str
    epochs: np.ndarray
    values: np.ndarray


@of_texts
def learning_curves(curves: list[Curve], metric: str) -> Figure:
    """Validation metric by epoch, one small panel per method, so that long and short trainings stay readable.

    Args:
        curves: curves that share a key (seeds of one method) share a panel; dots are best epochs.
        metric: the metric's title.
    """
    with styled():
        panels: dict[str, list[Curve]] = {}
        for curve in curves:
            panels.setdefault(curve.key, []).append(curve)
        if not panels:
            return empty("No trained method in this run has a learning curve.")
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = new_figure(max(2.6, 1.87 * columns), 0.5 + 1.5 * rows)
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axis, members in zip(axes, panels.values(), strict=False):
            for turn, curve in enumerate(members):
                axis.plot(
                    curve.epochs,
                    curve.values,
                    color=COLOURS["baselines"],
                    linestyle=DASHES[turn % len(DASHES)],
                    linewidth=1.1,
                )
                best = int(np.argmax(curve.values))
                axis.plot(curve.epochs[best], curve.values[best], "o", markersize=3.5, color="black")
            axis.set_title(members[0].label, fontsize=8)
            axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
            axis.grid(color="#e5e5e5", linewidth=0.6)
        axes[0].set_ylim(bottom=0)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel(f"{metric} on validation", fontsize=8)
        return figure
