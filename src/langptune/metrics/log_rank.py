"""Natural logarithm of the rank, from 0 for the first place.

It distinguishes ranks in the tail, which hardly change the other metrics.
"""

from __future__ import annotations

import numpy as np

TITLE = "Log rank"
CUTOFF = None
BETTER = -1


def values(ranks: np.ndarray, k: int | None) -> np.ndarray:
    """Float64 ``[S]``, of 1-based ranks ``[S]``."""
    return np.log(ranks.astype(np.float64))
