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
from langptune.provenance import manifest_of
from langptune.reading import read_json, read_lines

CAPTION = """
How training went on {dataset}, a block per phase, by batch. Look first at validation NDCG on the left. It is without
cut-off, on greedy profiles of validation sessions. The black dot, and the dotted line through the block, is the batch
that selection kept. The grey band around the start is the noise of validation: two standard errors of the paired
difference to the start, or of the mean where a phase has no paired difference. A curve that stays within it shows no
progress. A dot at the right end means that a longer training might have gained more. The axes of a column are equal,
so that phases compare; the losses of contrastive learning and of reinforcement learning alone have a scale each. Blue
bands span the seeds. Loss, reward, entropy and KL are of the sampled profiles, all else of validation's greedy ones.
Gain in log rank: mean log rank at the start less that now, paired. Own over shuffled: mean log rank by another user's
profile less that by the own; near 0, the profiles say nothing about their users. A cross marks a seed that was stopped
as collapsed; the best state before it is kept, which may be the start. Test sessions play no part in these.
"""
READS = ("phases",)
PANELS = {
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
"""Keys of a phase's ``curve.jsonl`` that are drawn beside validation NDCG, and the titles of their panels."""
BANDS = {"val_gain": "val_gain_se", "val_own": "val_own_se"}
"""Panels with a line at 0 and, for a single seed, an interval of two standard errors."""
COLUMNS = 5
"""Number of columns of small panels; the panel of validation NDCG is two columns wide."""


@dataclass(frozen=True)
class Training:
    """The curve of one trained phase: rows with ``batch``, ``val_ndcg``, its noise, and keys of ``PANELS``.

    key: curves with the same key are seeds of one phase.
    title: the phase's title in the figure.
    kept: the batch whose state was selected; None if unknown.
    """

    key: str
    title: str
    rows: list[dict]
    kept: int | None = None


def draw(comparison: Comparison) -> Figure:
    """The phases whose curves exist."""
    found = [entry for entry in comparison.phases if Path(entry.path).exists()]
    return training([Training(entry.key, entry.title, read_lines(entry.path), _kept(entry.path)) for entry in found])


def _kept(path: str) -> int | None:
    """The batch that was selected, from the manifest of the curve."""
    try:
        return read_json(manifest_of(path))["notes"]["best_batch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@of_texts
def training(phases: list[Training]) -> Figure:
    """Training curves, a block per phase: validation NDCG large, the other measures in small panels beside it.

    A measure has the same place in every block, and its axes there have the same size and range; only the losses of
    different kinds of training have a range each. The panels of a block share the axis of batches.

    The grey band around NDCG at the start is the noise of validation. Seeds are drawn as a band from the lowest to the
    highest around their mean; a single seed's gain and advantage have intervals of two standard errors. A black dot
    marks the batch that selection kept, a cross where a seed was stopped because it had collapsed.

    Args:
        phases: curves with the same key are seeds of one phase.
    """
    with styled():
        blocks: dict[str, list[Training]] = {}
        for phase in phases:
            blocks.setdefault(phase.key, []).append(phase)
        if not blocks:
            return empty("No method of this comparison is trained by LangPTune.")
        keys = [key for key in PANELS if any(_points(phase.rows, key) for phase in phases)]
        lines = max(1, -(-len(keys) // COLUMNS))
        figure = new_figure(9.6, len(blocks) * (0.65 + max(1.5, 1.15 * lines)))
        cells = figure.add_gridspec(len(blocks) * lines, 2 + COLUMNS)
        scales: dict[tuple[str, bool], Axes] = {}
        for top, seeds in zip(range(0, len(blocks) * lines, lines), blocks.values(), strict=True):
            reinforced = any(_points(phase.rows, "reward") for phase in seeds)
            large = figure.add_subplot(cells[top : top + lines, :2], sharey=scales.get(("val_ndcg", False)))
            scales.setdefault(("val_ndcg", False), large)
            _band(large, [_points(phase.rows, "val_ndcg") for phase in seeds])
            large.set_title(_heading(seeds), fontsize=8)
            large.set_xlabel("batch", fontsize=7)
            _noise(large, [phase.rows for phase in seeds])
            _selection(large, seeds)
            for at, key in enumerate(keys):
                if not any(_points(phase.rows, key) for phase in seeds):
                    continue
                scale = key, key == "loss" and reinforced
                cell = cells[top + at // COLUMNS, 2 + at % COLUMNS]
                axis = figure.add_subplot(cell, sharex=large, sharey=scales.get(scale))
                scales.setdefault(scale, axis)
                _band(axis, [_points(phase.rows, key) for phase in seeds])
                _kept_lines(axis, seeds)
                axis.set_title(PANELS[key], fontsize=7)
                if key in BANDS:
                    axis.axhline(0, color="black", linewidth=0.6)
                    if len(seeds) == 1:
                        _interval(axis, seeds[0].rows, key, BANDS[key])
        return figure


def _heading(seeds: list[Training]) -> str:
    """The title of a phase, and below it the title of the large panel and the selected batches."""
    kept = sorted({phase.kept for phase in seeds if phase.kept is not None})
    # On a separate line: the batches of several seeds would otherwise overlap the title of the next panel.
    note = f"\nkept: batch{'es' if len(kept) > 1 else ''} {', '.join(map(str, kept))}" if kept else ""
    return f"{textwrap.shorten(seeds[0].title, 110, placeholder=' ...')}\nvalidation NDCG{note}"


def _selection(axis: Axes, seeds: list[Training]) -> None:
    """Mark each seed's selected state and collapse in the panel of NDCG."""
    _kept_lines(axis, seeds)
    for phase in seeds:
        points = _points(phase.rows, "val_ndcg")
        if phase.kept in points:
            axis.plot(phase.kept, points[phase.kept], marker="o", markersize=4.5, color="black", zorder=3)
        for row in (row for row in phase.rows if row.get("collapsed")):
            axis.plot(row["batch"], row["val_ndcg"], marker="x", markersize=7, color="black", linestyle="none")
            axis.annotate("collapsed", (row["batch"], row["val_ndcg"]), fontsize=6, ha="right", va="bottom")


def _kept_lines(axis: Axes, seeds: list[Training]) -> None:
    for kept in sorted({phase.kept for phase in seeds if phase.kept is not None}):
        axis.axvline(kept, color="black", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0.7)


def _noise(axis: Axes, seeds: list[list[dict]]) -> None:
    """The band in which a difference to the initial NDCG is noise: two standard errors, by batch, mean over seeds.

    The error is that of the paired difference to the start, or that of the mean, which is larger, in a phase without.
    """
    starts = [rows[0]["val_ndcg"] for rows in seeds if rows and rows[0].get("val_ndcg") is not None]
    errors = [{0: 0.0} | paired for rows in seeds if (paired := _points(rows, "val_ndcg_gain_se"))]
    errors = errors or [own for rows in seeds if (own := _points(rows, "val_ndcg_se"))]
    at = sorted({batch for seed in errors for batch in seed})
    if not at or not starts:
        return
    start = float(np.mean(starts))
    error = np.array([np.mean([seed[batch] for seed in errors if batch in seed]) for batch in at])
    axis.fill_between(at, start - 2 * error, start + 2 * error, color="#bbbbbb", alpha=0.5, linewidth=0, zorder=0.5)
    axis.axhline(start, color="#666666", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.6)
    axis.annotate("noise", (at[-1], start - 2 * error[-1]), fontsize=6, color="#444444", ha="right", va="bottom")


def _interval(axis: Axes, rows: list[dict], key: str, error: str) -> None:
    """Two standard errors around one seed's line."""
    known = [row for row in rows if row.get(key) is not None and row.get(error) is not None]
    mean, spread = (np.array([row[name] for row in known]) for name in (key, error))
    at = [row["batch"] for row in known]
    if len(at) == 1:  # a band of one point would be invisible
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
    marker = "o" if len(at) <= 30 else None  # more markers would hide the line
    axis.plot(at, [np.mean(c) for c in columns], color=COLOURS["profiles"], linewidth=1.2, marker=marker, markersize=2)
    if len(seeds) > 1:
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axis.fill_between(at, low, high, color=COLOURS["profiles"], alpha=0.2, linewidth=0)
