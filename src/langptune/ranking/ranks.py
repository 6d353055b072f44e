"""Converts scores to ranks: every method of the benchmark uses ``full_ranks``.

The rank of a target is ``1 + (unmasked items scored strictly higher) + ceil(ties / 2)``, where ties are the
*other* unmasked items with exactly the target's score. A constant scorer therefore ranks every target in the middle of
the catalogue, independent of the order of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from langptune.errors import UserError

Array = TypeVar("Array")
"""A NumPy array or a torch tensor."""

TOP = 50
"""Number of best items per session in ``ranks.parquet``."""


@dataclass(frozen=True)
class Ranked:
    """Ranks of a batch of sessions.

    rank: int32 ``[B]``, 1-based, over the unmasked catalogue.
    top: int32 ``[B, T]``, the best unmasked items, best first, equal scores by ascending item; padded with -1
        if fewer than ``T`` items are unmasked.
    top_scores: float32 ``[B, T]``, their scores (NaN where padded).
    """

    rank: np.ndarray
    top: np.ndarray
    top_scores: np.ndarray


def full_ranks(
    scores: np.ndarray, targets: Sequence[int] | np.ndarray, masks: Sequence[Sequence[int]], top: int = TOP
) -> Ranked:
    """Exact rank of each session's target in the full catalogue without masked items.

    Args:
        scores: float ``[B, N]``, higher is better; every value finite or ``-inf``. Not modified.
        targets: int ``[B]``, item indices in ``0..N-1``.
        masks: per session, the items that may not be recommended (the user has already seen them).
            Duplicates are allowed; the target must not be among them.
        top: number of best items to return.

    Raises:
        UserError: scores are NaN or +inf, a target is outside the catalogue or in its own mask, or the shapes do not
            agree.
    """
    scores = np.asarray(scores)
    targets = np.asarray(targets, dtype=np.int64)
    if scores.ndim != 2 or targets.shape != (scores.shape[0],) or len(masks) != scores.shape[0]:
        raise UserError(
            f"ranking: scores {scores.shape}, targets {targets.shape} and {len(masks)} masks do not describe "
            "the same sessions"
        )
    batch, n_items = scores.shape
    if batch and (targets.min() < 0 or targets.max() >= n_items):
        raise UserError(f"ranking: a target lies outside the catalogue of {n_items} items")
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise UserError("ranking: scores contain NaN or +inf; the model diverged or its input is broken")

    rows, cols = flat_masks(masks)
    if len(cols) and (cols.min() < 0 or cols.max() >= n_items):
        raise UserError(f"ranking: a masked item lies outside the catalogue of {n_items} items")
    allowed = np.ones((batch, n_items), dtype=bool)
    allowed[rows, cols] = False
    here = np.arange(batch)
    if not allowed[here, targets].all():
        row = int(np.flatnonzero(~allowed[here, targets])[0])
        raise UserError(f"ranking: row {row}: target {targets[row]} is in its own history mask")
    rank = target_ranks(scores, scores[here, targets], allowed).astype(np.int32)

    best, best_scores = _top(scores, allowed, min(top, n_items))
    return Ranked(rank, best, best_scores)


def target_ranks(scores: Array, target_scores: Array, allowed: Array) -> Array:
    """The rank formula, for NumPy arrays and torch tensors on any device.

    Args:
        scores: float ``[B, N]``.
        target_scores: float ``[B]``, each target's entry of ``scores``.
        allowed: bool ``[B, N]``, false where masked; true at every target.
    """
    higher = ((scores > target_scores[:, None]) & allowed).sum(1)
    ties = ((scores == target_scores[:, None]) & allowed).sum(1) - 1  # the target itself
    return 1 + higher + (ties + 1) // 2


def flat_masks(masks: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of masked items as row and column indices."""
    rows = np.repeat(np.arange(len(masks)), [len(mask) for mask in masks])
    return rows, np.concatenate([np.asarray(mask, dtype=np.int64) for mask in masks]) if len(masks) else rows


def _top(scores: np.ndarray, allowed: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The best ``top`` allowed items per row, ordered by (score descending, item ascending)."""
    batch, n_items = scores.shape
    items = np.full((batch, top), -1, dtype=np.int32)
    best = np.full((batch, top), np.nan, dtype=np.float32)
    if not batch or not top:
        return items, best
    masked = np.where(allowed, scores, np.asarray(-np.inf, dtype=np.result_type(scores.dtype, np.float32)))
    # All items at least as good as the top-th value: more than `top` items if several share it.
    least = np.partition(masked, n_items - top, axis=1)[:, n_items - top, None]
    rows, candidates = np.divmod(np.flatnonzero((masked >= least) & allowed), n_items)
    values = masked[rows, candidates]
    order = np.lexsort((candidates, -values, rows))
    rows, candidates, values = rows[order], candidates[order], values[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = place < top
    items[rows[kept], place[kept]] = candidates[kept]
    best[rows[kept], place[kept]] = values[kept]
    return items, best
