"""Popularity lift: (q - p) / p, where q is the average popularity of a session's list and p that of its user's history.

Popularity is the number of train users that have the item, and the history is everything before the target. 0: the list
is as popular as what the user has seen; 1: twice as popular. Source: Abdollahpouri, Mansoury, Burke and Mobasher, "The
connection between popularity bias, calibration, and fairness in recommendation" (RecSys 2020). They divide the means of
a group of users; here each session has its own ratio, and the metric is the mean of these. A session whose history has
no train interactions has no value.
"""

from __future__ import annotations

import numpy as np

from langptune.list_metrics import Facts, Lists

TITLE = "Popularity lift"
NEEDS = ()
PER_SESSION = True


def values(lists: Lists, facts: Facts) -> np.ndarray:
    """Float64 ``[S]``, at least -1."""
    own = (facts.history @ facts.popularity) / facts.history.sum(axis=1)
    return lists.mean(facts.popularity) / np.where(own > 0, own, np.nan) - 1.0
