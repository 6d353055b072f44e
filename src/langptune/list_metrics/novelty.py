"""Novelty: the mean over a list of the self-information -log2 p(i) in bits, averaged over sessions.

p(i) is the share of train users that have item i; an item without train users counts as one with a single user. Source:
Zhou, Kuscsik, Liu, Medo, Wakeling and Zhang, "Solving the apparent diversity-accuracy dilemma of recommender systems"
(PNAS 2010).
"""

from __future__ import annotations

import numpy as np

from langptune.list_metrics import Facts, Lists

TITLE = "Novelty"
NEEDS = ()
PER_SESSION = True


def values(lists: Lists, facts: Facts) -> np.ndarray:
    """Float64 ``[S]``, in bits, at least 0."""
    return lists.mean(np.log2(facts.users / np.maximum(facts.popularity, 1.0)))
