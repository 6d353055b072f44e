"""MRR@k = [rank <= k] / rank. Without a cut-off the factor is 1."""

from __future__ import annotations

import numpy as np

TITLE = "MRR"
CUTOFF = "optional"
BETTER = 1


def values(ranks: np.ndarray, k: int | None) -> np.ndarray:
    """Float64 ``[S]`` in [0, 1], of 1-based ranks ``[S]``."""
    hit = np.ones(len(ranks)) if k is None else (ranks <= k).astype(np.float64)
    return hit / ranks
