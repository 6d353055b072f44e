"""The score of an item for a text: a similarity and a popularity term.

``score = cos(text, item) / TEMPERATURE + w * log(1 + count(item))``, where ``count`` is the number of train users with
the item (the score of ``pop``). Ranking, rewards, explorer and steering all use this function. The loss of CL does not:
it trains only the similarity, and ``w`` is chosen on validation after the decoder is trained (``choose``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import polars as pl

from langptune.data.interactions import popularity
from langptune.errors import UserError
from langptune.metrics import from_ranks
from langptune.ranking.decoder import BLOCK, ItemVectors, rank_sessions
from langptune.reading import read_json

TEMPERATURE = 0.05
"""The divisor of cosine similarities: the temperature of CL's loss in our recipes, so that a weight of popularity means
the same before and after training."""

Array = TypeVar("Array")
"""A NumPy array or a torch tensor."""


def score(similarity: Array, log_popularity: Array, weight: float) -> Array:
    """The formula, for NumPy arrays and torch tensors on any device.

    Args:
        similarity: float ``[B, N]``, cosines.
        log_popularity: float ``[N]``, ``log(1 + train count)``.
        weight: ``w``, at least 0; 0 is similarity only.
    """
    scaled = similarity / TEMPERATURE
    return scaled + weight * log_popularity if weight else scaled


@dataclass(frozen=True)
class Scoring:
    """Scores a catalogue by texts.

    items: the decoder's embeddings of the items.
    popularity: float32 ``[N]``, ``log(1 + train count)``; not used if ``weight`` is 0.
    weight: weight of popularity in the score.
    """

    items: ItemVectors
    popularity: np.ndarray
    weight: float = 0.0

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """float32 ``[B, N]``: scores of every item for queries ``[B, D]`` (``langptune.ranking.queries``)."""
        return score(self.items.scores(queries), self.popularity, self.weight)

    def blocks(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """Score blocks for ``rank_sessions`` from query vectors ``[S, D]``."""
        for start in range(0, len(queries), BLOCK):
            yield self.scores(queries[start : start + BLOCK])


def log_popularity(sessions: pl.DataFrame, n_items: int) -> np.ndarray:
    """float32 ``[N]``: ``log(1 + train count)`` of each item, with the counts of the method ``pop``."""
    return np.log1p(popularity(sessions, n_items)).astype(np.float32)


def text_alone(items: ItemVectors) -> Scoring:
    """A scoring without popularity."""
    return Scoring(items, np.zeros(len(items.row_of_item), dtype=np.float32))


def scoring_of(items: ItemVectors, sessions: pl.DataFrame, weight: float) -> Scoring:
    """The scoring of a run; popularity is counted only if it has a weight.

    Args:
        sessions: contract ``sessions``, of all splits; only train sessions are counted.
    """
    if not weight:
        return text_alone(items)
    return Scoring(items, log_popularity(sessions, len(items.row_of_item)), weight)


def read_weight(weight: float, path: str | Path | None, key: Literal["weight", "denials"] = "weight") -> float:
    """A weight of a spec: the one chosen on validation if ``path`` is given, else the number.

    Args:
        key: ``weight``: that of popularity; ``denials``: that of denials.

    Raises:
        UserError: the file cannot be read or contains no such weight.
    """
    if path is None:
        return weight
    try:
        return float(read_json(path)[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no {key} in it ({type(error).__name__}: {error}); delete it and rerun the rule that makes it"
        ) from None


def choose(
    sessions: pl.DataFrame, queries: np.ndarray, scoring: Scoring, weights: Sequence[float]
) -> tuple[float, list[dict[str, float]]]:
    """The weight of popularity with which texts rank validation targets best.

    Args:
        sessions: columns session, target and seen, in the order of the queries.
        queries: unit vectors ``[S, D]`` of the texts.
        scoring: with popularity; its own weight is ignored.
        weights: the grid.

    Returns:
        The weight with the highest NDCG without cut-off (the smallest of equals); and for each weight, ascending, NDCG,
        NDCG@10 and the mean natural logarithm of the rank.
    """
    grid = []
    for weight in sorted(weights):
        ranked = rank_sessions(sessions, replace(scoring, weight=weight).blocks(queries), top=1)
        ranks = ranked["rank"].to_numpy()
        means = {name: float(from_ranks(name, ranks).mean()) for name in ("ndcg", "ndcg@10")}
        grid.append({"weight": weight, **means, "log_rank": float(np.log(ranks).mean())})
    best = max(grid, key=lambda row: row["ndcg"])  # max() returns the first of equals
    return best["weight"], grid


def choose_both(
    sessions: pl.DataFrame, queries: Mapping[float, np.ndarray], scoring: Scoring, weights: Sequence[float]
) -> tuple[float, float, list[dict[str, float]]]:
    """The weights of popularity and of denials with which texts rank validation targets best, chosen together.

    Args:
        sessions, scoring, weights: as for ``choose``.
        queries: weight of denials -> the texts' vectors ``[S, D]`` with it.

    Returns:
        The two weights with the highest NDCG without cut-off, and the rows of ``choose``, each with its weight of
        denials. Of equals the largest weight of denials is taken, because texts without denials do not constrain it;
        then the smallest weight of popularity.
    """
    grid: list[dict[str, float]] = []
    rows: list[dict[str, float]] = []
    before: np.ndarray | None = None
    for denials in sorted(queries, reverse=True):
        if before is None or not np.array_equal(before, queries[denials]):
            rows = choose(sessions, queries[denials], scoring, weights)[1]
        before = queries[denials]
        grid += [{"denials": denials, **row} for row in rows]
    best = max(grid, key=lambda row: row["ndcg"])  # max() returns the first of equals
    return best["weight"], best["denials"], grid
