"""Average popularity: the mean over a list of the number of train users that have the item, averaged over sessions.

Source: Yin, Cui, Li, Yao and Chen, "Challenging the long tail recommendation" (VLDB 2012).
"""

from __future__ import annotations

import numpy as np

from langptune.list_metrics import Facts, Lists

TITLE = "Average popularity"
NEEDS = ()
PER_SESSION = True


def values(lists: Lists, facts: Facts) -> np.ndarray:
    """Float64 ``[S]``, in train users."""
    return lists.mean(facts.popularity)
