"""NDCG@k = [rank <= k] / log2(1 + rank); the ideal DCG of one target is 1. Without a cut-off the factor is 1."""

from __future__ import annotations

import numpy as np

TITLE = "NDCG"
CUTOFF = "optional"
BETTER = 1


def values(ranks: np.ndarray, k: int | None) -> np.ndarray:
    """Float64 ``[S]`` in [0, 1], of 1-based ranks ``[S]``."""
    hit = np.ones(len(ranks)) if k is None else (ranks <= k).astype(np.float64)
    return hit / np.log2(1.0 + ranks)
