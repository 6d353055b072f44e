"""The score of an item for a text: similarity of the text, and popularity as a term of its own.

``score = cos(text, item) / TEMPERATURE + w * log(1 + count(item))``, where ``count`` is how many train users have the
item (what ``pop`` ranks by). Whatever ranks, rewards, explores or steers reads this one function. The loss of CL does
not: it trains the text's part alone, and ``w`` is chosen on validation once a decoder is trained (``choose``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from langptune.data.interactions import popularity
from langptune.errors import UserError
from langptune.files import read_json
from langptune.metrics import from_ranks
from langptune.ranking.decoder import BLOCK, ItemVectors, rank_sessions

TEMPERATURE = 0.05
"""What cosine similarities are divided by: the temperature of CL's loss in our recipes, so that a weight of popularity
means the same before and after training."""

Array = TypeVar("Array")
"""A NumPy array or a torch tensor."""


def score(similarity: Array, log_popularity: Array, weight: float) -> Array:
    """The formula itself, for NumPy arrays and torch tensors on any device.

    Args:
        similarity: float ``[B, N]``, cosines.
        log_popularity: float ``[N]``, ``log(1 + train count)``.
        weight: ``w``, at least 0; 0 is the text alone.
    """
    scaled = similarity / TEMPERATURE
    return scaled + weight * log_popularity if weight else scaled


@dataclass(frozen=True)
class Scoring:
    """A catalogue that texts are ranked in.

    items: as the decoder embeds it.
    popularity: float32 ``[N]``, ``log(1 + train count)``; not read where ``weight`` is 0.
    weight: of popularity in the score.
    """

    items: ItemVectors
    popularity: np.ndarray
    weight: float = 0.0

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """float32 ``[B, N]``: scores of every item for unit-length queries ``[B, D]``."""
        return score(self.items.scores(queries), self.popularity, self.weight)

    def blocks(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """Score blocks for ``rank_sessions`` from query vectors ``[S, D]``."""
        for start in range(0, len(queries), BLOCK):
            yield self.scores(queries[start : start + BLOCK])


def log_popularity(sessions: pl.DataFrame, n_items: int) -> np.ndarray:
    """float32 ``[N]``: ``log(1 + train count)`` of each item, the counts being those of the method ``pop``."""
    return np.log1p(popularity(sessions, n_items)).astype(np.float32)


def text_alone(items: ItemVectors) -> Scoring:
    """A scoring without popularity."""
    return Scoring(items, np.zeros(len(items.row_of_item), dtype=np.float32))


def scoring_of(items: ItemVectors, sessions: pl.DataFrame, weight: float) -> Scoring:
    """The scoring of a run; popularity is counted only where it has a weight.

    Args:
        sessions: contract ``sessions``, of all splits; train sessions alone are counted.
    """
    if not weight:
        return text_alone(items)
    return Scoring(items, log_popularity(sessions, len(items.row_of_item)), weight)


def read_weight(weight: float, path: str | Path | None) -> float:
    """The weight of a spec: what was chosen on validation where there is such a file, else the number.

    Raises:
        UserError: a file that cannot be read or holds no weight.
    """
    if path is None:
        return weight
    try:
        return float(read_json(path)["weight"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no weight of popularity in it ({type(error).__name__}: {error}); delete it and rerun "
            "choose_popularity"
        ) from None


def choose(
    sessions: pl.DataFrame, queries: np.ndarray, scoring: Scoring, weights: Sequence[float]
) -> tuple[float, list[dict[str, float]]]:
    """The weight of popularity by which texts rank validation targets best.

    Args:
        sessions: columns session, target and seen, in the order of the queries.
        queries: unit vectors ``[S, D]`` of the texts.
        scoring: with popularity counted; its own weight is not read.
        weights: the grid.

    Returns:
        The weight with the highest NDCG without cut-off, the smallest of equals; and for each weight, ascending, NDCG,
        NDCG@10 and the mean natural logarithm of the rank.
    """
    grid = []
    for weight in sorted(weights):
        ranked = rank_sessions(sessions, replace(scoring, weight=weight).blocks(queries), top=1)
        ranks = ranked["rank"].to_numpy()
        told = {name: float(from_ranks(name, ranks).mean()) for name in ("ndcg", "ndcg@10")}
        grid.append({"weight": weight, **told, "log_rank": float(np.log(ranks).mean())})
    best = max(grid, key=lambda row: row["ndcg"])  # the first of equals
    return best["weight"], grid
