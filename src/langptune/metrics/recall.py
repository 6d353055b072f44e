"""Recall@k = [rank <= k]: whether the target is among the first k."""

from __future__ import annotations

import numpy as np

TITLE = "Recall"
CUTOFF = "needed"
BETTER = 1


def values(ranks: np.ndarray, k: int | None) -> np.ndarray:
    """Float64 ``[S]``, 0 or 1, of 1-based ranks ``[S]``."""
    return (ranks <= k).astype(np.float64)
