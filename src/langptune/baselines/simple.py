"""Scorers without a model: popularity, chance, and the answer itself. They frame what a rank can be worth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from langptune.data.interactions import popularity
from langptune.randomness import numbered

BLOCK = 4096


def score_blocks(
    scorer: str, chosen: pl.DataFrame, sessions: pl.DataFrame, n_items: int, seed: int
) -> Iterator[np.ndarray]:
    """Score blocks for ``rank_sessions``.

    Args:
        scorer: ``pop``, ``random`` or ``oracle`` (1 for the target, 0 for all else).
        chosen: the sessions to score, ascending.
        sessions: all sessions, for popularity.
        seed: of the random scorer; each session has its own stream, whatever else is scored.
    """
    counts = popularity(sessions, n_items) if scorer == "pop" else None
    for start in range(0, len(chosen), BLOCK):
        part = chosen.slice(start, BLOCK)
        scores = np.zeros((len(part), n_items))
        if scorer == "pop":
            scores[:] = counts
        elif scorer == "random":
            for row, session in enumerate(part["session"]):
                scores[row] = numbered(seed, session).random(n_items)
        else:
            scores[np.arange(len(part)), part["target"].to_numpy()] = 1.0
        yield scores
