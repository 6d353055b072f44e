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

_BLOCK = 1 << 19
"""Number of scores that are ranked at once: 2 MiB in single precision, which stays in a core's cache."""


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
    rows, cols = flat_masks(masks)
    if len(cols) and (cols.min() < 0 or cols.max() >= n_items):
        raise UserError(f"ranking: a masked item lies outside the catalogue of {n_items} items")
    if (own := rows[cols == targets[rows]]).size:
        raise UserError(f"ranking: row {own[0]}: target {targets[own[0]]} is in its own history mask")
    top = min(top, n_items)
    out = Ranked(
        np.empty(batch, dtype=np.int32),
        np.full((batch, top), -1, dtype=np.int32),
        np.full((batch, top), np.nan, dtype=np.float32),
    )
    ends = np.searchsorted(rows, np.arange(batch + 1))
    step = max(1, _BLOCK // max(n_items, 1))
    for start in range(0, batch, step):
        stop = min(start + step, batch)
        part = slice(ends[start], ends[stop])
        place = slice(start, stop)
        masked = _masked(scores[place], rows[part] - start, cols[part])
        out.rank[place] = _ranks(masked, scores[np.arange(start, stop), targets[place]], masks[start:stop])
        if top:
            out.top[place], out.top_scores[place] = _top(masked, rows[part] - start, cols[part], top)
    return out


def _masked(scores: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """A copy of scores with -inf for masked items, in single precision or better."""
    # One pass finds both: NaN is not below infinity, and the maximum of numbers and NaN is NaN.
    if not scores.max() < np.inf:
        raise UserError("ranking: scores contain NaN or +inf; the model diverged or its input is broken")
    masked = scores.astype(np.result_type(scores.dtype, np.float32))
    masked[rows, cols] = -np.inf
    return masked


def _ranks(masked: np.ndarray, target_scores: np.ndarray, masks: Sequence[Sequence[int]]) -> np.ndarray:
    """``target_ranks`` of one block. A masked item is -inf, so it is neither above nor equal to a finite score."""
    own = target_scores.astype(masked.dtype)[:, None]
    # Rows are counted one by one because NumPy counts a whole array several times as fast as along an axis.
    higher, ties = (
        np.array([np.count_nonzero(row) for row in marks], dtype=np.int64) for marks in (masked > own, masked == own)
    )
    for row in np.flatnonzero(np.isneginf(target_scores)):
        ties[row] -= len(np.unique(masks[row]))
    return 1 + higher + ties // 2  # the target itself is among the ties


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


def _top(masked: np.ndarray, rows: np.ndarray, cols: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The best ``top`` allowed items per row, ordered by (score descending, item ascending).

    Args:
        masked: float ``[B, N]``, -inf where masked.
        rows, cols: the masked items, of which none is returned, even where other items are -inf, too.
    """
    batch, n_items = masked.shape
    items = np.full((batch, top), -1, dtype=np.int32)
    best = np.full((batch, top), np.nan, dtype=np.float32)
    enough = masked >= _bound(masked, top)
    enough[rows, cols] = False
    at, candidates = np.divmod(np.flatnonzero(enough), n_items)
    first = np.searchsorted(at, np.arange(batch + 1))
    place = np.arange(len(at)) - first[at]
    # A row of candidates per session, by ascending item: a stable sort by score leaves equal scores in this order.
    width = int(np.diff(first).max())
    values = np.full((batch, width), np.inf, dtype=masked.dtype)
    values[at, place] = -masked[at, candidates]
    order = np.argsort(values, axis=1, kind="stable")[:, :top]
    filled = np.arange(order.shape[1]) < np.diff(first)[:, None]
    row, column = np.nonzero(filled)
    chosen = candidates[first[row] + order[row, column]]
    items[row, column] = chosen
    best[row, column] = masked[row, chosen]
    return items, best


def _bound(masked: np.ndarray, top: int) -> np.ndarray:
    """A value per row, ``[B, 1]``, that at least ``top`` items reach, and hardly more.

    The catalogue is split into columns of items. As many columns as there are items to find have a maximum of at least
    the ``top``-th of their maxima. Taking maxima is far cheaper than sorting a catalogue.
    """
    batch, n_items = masked.shape
    columns = min(n_items, max(4 * top, 256))
    whole = n_items - n_items % columns
    maxima = masked[:, :whole].reshape(batch, -1, columns).max(axis=1)
    rest = n_items - whole
    np.maximum(maxima[:, :rest], masked[:, whole:], out=maxima[:, :rest])
    return np.partition(maxima, columns - top, axis=1)[:, columns - top, None]
