"""Training of encoders and decoders, phase by phase."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from langptune.figures.inputs import Comparison
from langptune.figures.style import COLOURS, empty, new_figure, of_texts, styled
from langptune.files import read_lines

CAPTION = """
Training of encoders and decoders on {dataset}: a block per phase, by batch; bands span the seeds. Validation NDCG is
without cut-off, on greedy profiles of validation sessions; the state where it is highest is kept. The grey band is the
noise of validation, two standard errors of the paired difference to the start: what stays within it is no progress.
Loss, reward, entropy and KL are of the sampled profiles, the rest of validation's greedy ones. Gain: mean log rank at
the start less that now, paired. Own over shuffled: mean log rank by another user's profile less that by the own; near
0, the profiles say nothing about their users. A cross: stopped as collapsed, the best state before is kept, which may
be the start. Test sessions play no part in these.
"""
READS = ("phases",)


def draw(comparison: Comparison) -> Figure:
    """The phases whose curves exist."""
    return training(
        [
            Training(entry.key, entry.title, read_lines(entry.path))
            for entry in comparison.phases
            if Path(entry.path).exists()
        ]
    )


TRAINING_PANELS = {
    "loss": "loss",
    "reward": "reward",
    "entropy": "entropy, nats a token",
    "kl": "KL to the start",
    "val_gain": "gain in log rank",
    "val_own": "own over shuffled",
    "val_finished": "share finished",
    "val_distinct": "share distinct",
    "val_repetition": "repetition",
    "val_tokens": "tokens",
}
"""Keys of a phase's ``curve.jsonl`` that are drawn beside validation NDCG, and what the panels are called."""
TRAINING_BANDS = {"val_gain": "val_gain_se", "val_own": "val_own_se"}
"""Panels with a line at 0 and, of a single seed, an interval of two standard errors."""
TRAINING_COLUMNS = 5


@dataclass(frozen=True)
class Training:
    """The curve of one trained phase: rows with ``batch``, ``val_ndcg``, its noise, and keys of ``TRAINING_PANELS``.

    key: curves with the same one are seeds of one phase.
    title: what the figure calls the phase.
    """

    key: str
    title: str
    rows: list[dict]


@of_texts
def training(phases: list[Training]) -> Figure:
    """How training went, a block per phase: validation NDCG large, the other measures in small panels beside it.

    The grey band around NDCG at the start is the noise of validation: two standard errors of the paired difference to
    the start. What stays within it is no progress. Seeds are drawn as a band from the lowest to the highest around
    their mean; a single seed's gain and advantage have intervals of two standard errors. A cross marks where a seed was
    stopped because it had collapsed; its best state before is kept.

    Args:
        phases: curves with the same key are seeds of one phase.
    """
    with styled():
        by_key: dict[str, list[Training]] = {}
        for phase in phases:
            by_key.setdefault(phase.key, []).append(phase)
        if not by_key:
            return empty("No method of this comparison is trained by LangPTune.")
        shown = [
            [key for key in TRAINING_PANELS if any(row.get(key) is not None for one in seeds for row in one.rows)]
            for seeds in by_key.values()
        ]
        lines = [max(1, -(-len(keys) // TRAINING_COLUMNS)) for keys in shown]
        heights = [0.5 + max(1.7, 1.15 * count) for count in lines]
        figure = new_figure(9.6, sum(heights))
        blocks = np.atleast_1d(figure.subfigures(len(by_key), 1, height_ratios=heights))
        for block, seeds, keys, count in zip(blocks, by_key.values(), shown, lines, strict=True):
            block.suptitle(textwrap.shorten(seeds[0].title, 110, placeholder=" ..."), x=0.01, ha="left", fontsize=9)
            cells = block.add_gridspec(count, TRAINING_COLUMNS + 2)
            large = block.add_subplot(cells[:, :2])
            _band(large, [_points(phase.rows, "val_ndcg") for phase in seeds])
            large.set_title("validation NDCG", fontsize=8)
            large.set_xlabel("batch", fontsize=7)
            _noise(large, [phase.rows for phase in seeds])
            for row in (row for phase in seeds for row in phase.rows if row.get("collapsed")):
                large.plot(row["batch"], row["val_ndcg"], marker="x", markersize=7, color="black", linestyle="none")
                large.annotate("collapsed", (row["batch"], row["val_ndcg"]), fontsize=6, ha="right", va="bottom")
            for at, key in enumerate(keys):
                axis = block.add_subplot(cells[at // TRAINING_COLUMNS, 2 + at % TRAINING_COLUMNS])
                _band(axis, [_points(phase.rows, key) for phase in seeds])
                axis.set_title(TRAINING_PANELS[key], fontsize=7)
                if key in TRAINING_BANDS:
                    axis.axhline(0, color="black", linewidth=0.6)
                    if len(seeds) == 1:
                        _interval(axis, seeds[0].rows, key, TRAINING_BANDS[key])
        return figure


def _noise(axis: Axes, seeds: list[list[dict]]) -> None:
    """The band in which a difference to the start's NDCG is noise, by batch, mean over seeds."""
    errors = [_points(rows, "val_ndcg_gain_se") for rows in seeds]
    at = sorted({batch for seed in errors for batch in seed})
    starts = [rows[0]["val_ndcg"] for rows in seeds if rows and rows[0].get("val_ndcg") is not None]
    if not at or not starts:
        return
    start = float(np.mean(starts))
    error = np.array([0.0, *(np.mean([seed[batch] for seed in errors if batch in seed]) for batch in at)])
    axis.fill_between(
        [0, *at], start - 2 * error, start + 2 * error, color="#bbbbbb", alpha=0.5, linewidth=0, zorder=0.5
    )
    axis.axhline(start, color="#666666", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.6)
    axis.annotate("noise", (at[-1], start - 2 * error[-1]), fontsize=6, color="#444444", ha="right", va="bottom")


def _interval(axis: Axes, rows: list[dict], key: str, error: str) -> None:
    """Two standard errors around one seed's line."""
    told = [row for row in rows if row.get(key) is not None and row.get(error) is not None]
    mean, spread = (np.array([row[name] for row in told]) for name in (key, error))
    at = [row["batch"] for row in told]
    if len(at) == 1:  # a band of one point would not be seen
        axis.errorbar(at, mean, 2 * spread, color=COLOURS["profiles"], linewidth=1.2, capsize=2)
        return
    axis.fill_between(at, mean - 2 * spread, mean + 2 * spread, color=COLOURS["profiles"], alpha=0.2, linewidth=0)


def _points(rows: list[dict], key: str) -> dict[float, float]:
    return {row["batch"]: row[key] for row in rows if row.get(key) is not None}


def _band(axis: Axes, seeds: list[dict[float, float]]) -> None:
    at = sorted({batch for seed in seeds for batch in seed})
    axis.grid(color="#e5e5e5", linewidth=0.6)
    axis.tick_params(labelsize=7)
    axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3, integer=True))
    axis.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    if not at:
        axis.set_visible(False)
        return
    columns = [[seed[batch] for seed in seeds if batch in seed] for batch in at]
    marker = "o" if len(at) <= 30 else None  # more would hide the line
    axis.plot(at, [np.mean(c) for c in columns], color=COLOURS["profiles"], linewidth=1.2, marker=marker, markersize=2)
    if len(seeds) > 1:
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axis.fill_between(at, low, high, color=COLOURS["profiles"], alpha=0.2, linewidth=0)
