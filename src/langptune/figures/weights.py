"""Accuracy against steerability along the weights of popularity."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from langptune.figures.style import DASHES, METHODS, empty, new_figure, of_texts, styled


@dataclass(frozen=True)
class WeightLine:
    """One method along its weights, ascending.

    chosen: whether the method ranks with this weight, in any of its seeds.
    """

    label: str
    weights: list[float]
    accuracy: list[float]
    steering: list[float]
    low: list[float]
    high: list[float]
    chosen: list[bool]


@of_texts
def along_weights(lines: list[WeightLine], metric: str, measure: str) -> Figure:
    """Accuracy (upwards) against steerability (sideways), a line per method from its smallest weight to its largest.

    A filled mark is a weight that the method ranks with; the first and the last weight are labelled.

    Args:
        metric: title of the accuracy.
        measure: title of the steerability, with its interval.
    """
    with styled():
        if not lines:
            return empty("No method has a weight that was chosen on validation.")
        figure = new_figure(5.2, 3.4 + 0.18 * len(lines))
        axis = figure.subplots()
        for turn, line in enumerate(lines):
            colour = METHODS[turn % len(METHODS)]
            axis.plot(
                line.steering, line.accuracy, color=colour, linestyle=DASHES[turn % len(DASHES)], linewidth=1.2,
                label=line.label,
            )  # fmt: skip
            points = zip(line.accuracy, line.steering, line.low, line.high, line.chosen, strict=True)
            for up, mean, low, high, chosen in points:
                axis.plot([low, high], [up, up], color=colour, linewidth=0.8, alpha=0.4)
                axis.plot(
                    mean,
                    up,
                    marker="o",
                    markersize=6 if chosen else 4,
                    color=colour,
                    markerfacecolor=colour if chosen else "white",
                )
            for at in sorted({0, len(line.weights) - 1}):
                axis.annotate(
                    f"{line.weights[at]:g}", (line.steering[at], line.accuracy[at]), xytext=(3, 4),
                    textcoords="offset points", fontsize=7, color=colour,
                )  # fmt: skip
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_xlabel(measure)
        axis.set_ylabel(metric)
        axis.grid(color="#e5e5e5", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=min(3, len(lines)))
        return figure
