"""Forward simulation: whether a reader who sees only the profile identifies the next item among sampled ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from langptune.randomness import numbered


def candidates(target: int, seen: Sequence[int], n_items: int, count: int, seed: int, session: int) -> np.ndarray:
    """The target and ``count - 1`` unseen items, drawn uniformly: int64 ``[count]``, target first.

    They depend on seed and session only, so that all methods have the same candidates.
    """
    rng = numbered(seed, session)
    taken = np.zeros(n_items, dtype=bool)
    taken[np.asarray(seen, dtype=np.int64)] = True
    taken[target] = True
    free = np.flatnonzero(~taken)
    return np.concatenate([[target], rng.choice(free, min(count - 1, len(free)), replace=False)])


def outcome(scores: np.ndarray) -> tuple[float, int]:
    """Whether the target (first of scores ``[n]``) is identified (1, 0, or a fraction in a tie), and its rank from 1.

    If k best scores are equal, the target is identified with probability 1/k; its rank among equals is the middle one,
    rounded up.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("a reader's score is NaN")
    own = scores[0]
    higher = int((scores[1:] > own).sum())
    ties = int((scores[1:] == own).sum())
    return (1 / (1 + ties) if not higher else 0.0), 1 + higher + (ties + 1) // 2
