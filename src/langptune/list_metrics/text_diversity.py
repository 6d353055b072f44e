"""Intra-list diversity by text: the mean cosine distance of the texts of two items, over all pairs of a list.

Texts are what decoders embed, as bags of words weighted by TF-IDF. No decoder's vectors are used: a method that ranks
by them would be measured by its own similarity, and a comparison of baselines would need a model. An item without words
is at distance 1 from every other. A list of one item has no value. Source: as ``genre_diversity.py``.
"""

from __future__ import annotations

import numpy as np

from langptune.list_metrics import Facts, Lists, blocks

TITLE = "Diversity by text"
NEEDS = ("words",)
PER_SESSION = True
SESSIONS = 8_000
"""Lists whose words are in memory at once."""


def values(lists: Lists, facts: Facts) -> np.ndarray:
    """Float64 ``[S]`` in [0, 1]."""
    # The similarities of all pairs sum to (|sum of vectors|^2 - sum of |vector|^2) / 2: no pair is looked at.
    assert facts.words is not None
    squares = facts.words.power(2).sum(axis=1)
    out, counts = np.empty(len(lists.items)), lists.filled.sum(axis=1)
    for block in blocks(len(out), SESSIONS):
        matrix = lists.matrix[block]
        sums = matrix @ facts.words
        sums.data **= 2
        out[block] = sums.sum(axis=1) - matrix @ squares
    return 1.0 - out / np.where(counts > 1, counts * (counts - 1), np.nan)
