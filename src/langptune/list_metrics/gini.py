"""Gini index of the items' numbers of recommendations: 0 if all items are recommended equally often, near 1 if few are.

sum over i of (2 i - N - 1) c_i / (N sum c), where c_1 <= ... <= c_N are the numbers of lists that hold each item of the
catalogue. Source: Shani and Gunawardana, "Evaluating recommendation systems" (Recommender Systems Handbook, 2011).
"""

from __future__ import annotations

import numpy as np

from langptune.list_metrics import Facts, Lists

TITLE = "Gini index"
NEEDS = ()
PER_SESSION = False


def values(lists: Lists, facts: Facts) -> float:
    """A number in [0, 1)."""
    counts, n_items = np.sort(lists.counts), lists.n_items
    return float(((2 * np.arange(1, n_items + 1) - n_items - 1) * counts).sum() / (n_items * counts.sum()))
