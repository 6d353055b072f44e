"""Two methods combined: the weighted sum of their scores, and the better of both ranks as its bound.

Scores of different methods have different units, so each is standardised per session: mean 0 and standard deviation 1
over the items that may be recommended. The fused score is ``(1 - w) * first + w * second`` of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import polars as pl

from langptune.metrics import from_ranks
from langptune.ranking.ranks import flat_masks, full_ranks

Pair = tuple[np.ndarray, np.ndarray]
"""Scores float ``[b, N]`` of the same sessions by two methods."""


def standardised(scores: np.ndarray, masks: Sequence[Sequence[int]]) -> np.ndarray:
    """Scores float64 ``[B, N]`` with mean 0 and standard deviation 1 in each row, over its items that are not masked.

    A row with equal scores becomes 0. Items of score ``-inf`` keep it, and do not count.

    Args:
        scores: float ``[B, N]``. Not modified.
        masks: per session, the items that may not be recommended.
    """
    scores = np.asarray(scores, dtype=np.float64)
    counted = np.isfinite(scores)
    rows, cols = flat_masks(masks)
    counted[rows, cols] = False
    mean = scores.mean(axis=1, keepdims=True, where=counted)
    spread = scores.std(axis=1, keepdims=True, where=counted)
    low = scores.min(axis=1, keepdims=True, where=counted, initial=np.inf)
    # By rounding, equal scores may have a spread above 0.
    constant = low == scores.max(axis=1, keepdims=True, where=counted, initial=-np.inf)
    return np.where(constant & np.isfinite(scores), 0.0, (scores - mean) / np.where(constant, 1.0, spread))


def _sums(
    first: np.ndarray, second: np.ndarray, masks: Sequence[Sequence[int]], weights: Iterable[float]
) -> Iterator[np.ndarray]:
    """The fused scores ``[B, N]`` by each weight; at 0 and 1 the scores of one method, unchanged."""
    one, two = standardised(first, masks), standardised(second, masks)
    for weight in weights:
        if weight in (0, 1):
            yield second if weight else first
        else:
            yield (1 - weight) * one + weight * two


def fused(sessions: pl.DataFrame, pairs: Iterable[Pair], weight: float) -> Iterator[np.ndarray]:
    """Fused score blocks for ``rank_sessions``.

    At the weights 0 and 1 these are the scores of one method as it ranked by them, so that its ranks are the same to
    the last tie.

    Args:
        sessions: column seen (the mask), in the order of the scores.
        pairs: scores of consecutive sessions by the two methods.
        weight: weight of the second method, from 0 to 1.
    """
    for masks, first, second in _blocks(sessions, pairs):
        yield from _sums(first, second, masks, [weight])


def choose(
    sessions: pl.DataFrame, pairs: Iterable[Pair], weights: Sequence[float]
) -> tuple[float, list[dict[str, float]]]:
    """The weight of the second method with which validation targets rank best.

    Args:
        sessions: columns target and seen, in the order of the scores.
        pairs: scores of consecutive sessions by the two methods; read once.
        weights: the grid.

    Returns:
        The weight with the highest NDCG without cut-off (the smallest of equals); and for each weight, ascending, NDCG,
        NDCG@10 and the mean natural logarithm of the rank.
    """
    ranks: dict[float, list[np.ndarray]] = {weight: [] for weight in sorted(weights)}
    targets, start = sessions["target"].to_numpy(), 0
    for masks, first, second in _blocks(sessions, pairs):
        here = targets[start : start + len(first)]
        start += len(first)
        for parts, scores in zip(ranks.values(), _sums(first, second, masks, ranks), strict=True):
            parts.append(full_ranks(scores, here, masks, top=0).rank)
    grid = []
    for weight, parts in ranks.items():
        found = np.concatenate(parts)
        means = {name: float(from_ranks(name, found).mean()) for name in ("ndcg", "ndcg@10")}
        grid.append({"weight": weight, **means, "log_rank": float(np.log(found).mean())})
    best = max(grid, key=lambda row: row["ndcg"])  # max() returns the first of equals
    return best["weight"], grid


def better(first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame:
    """Of each session the row with the better rank (contract ``ranks``); of equal ranks the first method's.

    It depends on the target, so no recommender can do this: it bounds every rule that chooses one of two methods by
    session.

    Args:
        first, second: ranks of the same sessions, in the same order.
    """
    takes_second = (second["rank"] < first["rank"]).alias("second")
    rows = pl.concat([first.with_row_index(), second.with_row_index()])
    taken = pl.concat([~takes_second, takes_second])
    return rows.filter(taken).sort("index").drop("index")


def _blocks(sessions: pl.DataFrame, pairs: Iterable[Pair]) -> Iterator[tuple[list[np.ndarray], np.ndarray, np.ndarray]]:
    """The masks of each pair of blocks, with the pair."""
    start = 0
    for first, second in pairs:
        yield [seen.to_numpy() for seen in sessions["seen"].slice(start, len(first))], first, second
        start += len(first)
