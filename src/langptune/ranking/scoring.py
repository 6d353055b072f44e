"""The score by which a text ranks the catalogue; whatever ranks, rewards or explores reads it here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from langptune.ranking.decoder import ItemVectors

TEMPERATURE = 0.05
"""Cosine similarities are divided by this."""


@dataclass(frozen=True)
class Scoring:
    """A catalogue as a decoder sees it, and how much an item's popularity counts.

    popularity: float32 ``[N]``, log(1 + number of train sessions whose target the item is).
    weight: of popularity; 0: the text alone.
    """

    items: ItemVectors
    popularity: np.ndarray
    weight: float = 0.0

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """float32 ``[B, N]``: cosine similarity / ``TEMPERATURE`` + weight * popularity of unit-length queries."""
        scores = self.items.scores(queries) / np.float32(TEMPERATURE)
        return scores + np.float32(self.weight) * self.popularity if self.weight else scores
