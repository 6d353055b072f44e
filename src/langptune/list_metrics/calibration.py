"""Calibration of genres to the history: the Kullback-Leibler divergence, in nats, of a list from its user's history.

sum over g of p(g) ln(p(g) / q'(g)), q' = (1 - 0.01) q + 0.01 p. p is the mean over the items of the history, everything
before the target, of p(g|i), which is equal for all genres of item i; q is the same of the list. 0: the list has the
genres of the history in the same shares; -ln 0.01 = 4.6: it has none of them. Items without genres are left out. A
session whose history has no genres has no value. Source: Steck, "Calibrated recommendations" (RecSys 2018), with equal
weights of items.
"""

from __future__ import annotations

import numpy as np

from langptune.list_metrics import Facts, Lists, blocks

TITLE = "Miscalibration"
NEEDS = ("genres",)
PER_SESSION = True
ALPHA = 0.01
SESSIONS = 20_000
"""Distributions in memory at once."""


def values(lists: Lists, facts: Facts) -> np.ndarray:
    """Float64 ``[S]``, from 0 to -ln ``ALPHA``."""
    from scipy.special import rel_entr

    assert facts.genres is not None
    shares = facts.genres / np.maximum(facts.genres.sum(axis=1, keepdims=True), 1)
    out = np.empty(len(lists.items))
    for block in blocks(len(out), SESSIONS):
        own, listed = (matrix[block] @ shares for matrix in (facts.history, lists.matrix))
        own_total, total = (part.sum(axis=1, keepdims=True) for part in (own, listed))
        own = own / np.where(own_total > 0, own_total, np.nan)
        listed = listed / np.where(total > 0, total, 1.0)
        out[block] = rel_entr(own, (1.0 - ALPHA) * listed + ALPHA * own).sum(axis=1)
    return out
