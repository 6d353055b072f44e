"""Forward simulation: can a reader who sees the profile alone tell the true next item from sampled ones?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from langptune.randomness import numbered


def candidates(target: int, seen: Sequence[int], n_items: int, count: int, seed: int, session: int) -> np.ndarray:
    """The target and ``count - 1`` items that the user has not seen, drawn evenly: int64 ``[count]``, target first.

    They depend on seed and session alone, so that every method's profiles are asked the same.
    """
    rng = numbered(seed, session)
    taken = np.zeros(n_items, dtype=bool)
    taken[np.asarray(seen, dtype=np.int64)] = True
    taken[target] = True
    free = np.flatnonzero(~taken)
    return np.concatenate([[target], rng.choice(free, min(count - 1, len(free)), replace=False)])


def outcome(scores: np.ndarray) -> tuple[float, int]:
    """Of scores ``[n]``, the target's first: whether it was told (1, 0, or a share in a tie), and its place from 1.

    Of k equal best scores the target is told once in k; its place among equals is the middle one, rounded up.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("a reader's score is NaN")
    own = scores[0]
    higher = int((scores[1:] > own).sum())
    ties = int((scores[1:] == own).sum())
    return (1 / (1 + ties) if not higher else 0.0), 1 + higher + (ties + 1) // 2
