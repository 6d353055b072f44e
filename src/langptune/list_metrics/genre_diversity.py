"""Intra-list diversity by genre: the mean Jaccard distance of the genres of two items, over all pairs of a list.

1 - |A and B| / |A or B|; 0 for two items without genres. A list of one item has no value. Source: Ziegler, McNee,
Konstan and Lausen, "Improving recommendation lists through topic diversification" (WWW 2005), who add similarities;
the mean distance is that of Zhang and Hurley, "Avoiding monotony" (RecSys 2008).
"""

from __future__ import annotations

import numpy as np

from langptune.list_metrics import Facts, Lists, blocks

TITLE = "Diversity by genre"
NEEDS = ("genres",)
PER_SESSION = True
CELLS = 200_000
"""Limit on the number of listed items whose genres are in memory at once; so few stay in the cache."""


def values(lists: Lists, facts: Facts) -> np.ndarray:
    """Float64 ``[S]`` in [0, 1]."""
    assert facts.genres is not None
    n_items, n_genres = facts.genres.shape
    padded = np.zeros((n_items + 1, -(-n_genres // 64) * 64), dtype=bool)  # the last row is that of -1
    padded[:-1, :n_genres] = facts.genres
    bits = np.packbits(padded, axis=1).view(np.uint64).T.copy()
    size, width = lists.items.shape
    similarity = np.zeros(size)
    for block in blocks(size, CELLS // width):
        words = bits[:, lists.items[block]]
        for apart in range(1, width):
            both, either = 0, 0
            for one, other in zip(words[:, :, :-apart], words[:, :, apart:], strict=True):
                both = both + np.bitwise_count(one & other).astype(np.int16)
                either = either + np.bitwise_count(one | other).astype(np.int16)
            # Nothing is in common with the end of a short list.
            similarity[block] += np.divide(both, np.maximum(either, 1), dtype=np.float64).sum(axis=1)
    without = (~facts.genres.any(axis=1)[lists.items] & lists.filled).sum(axis=1)
    counts = lists.filled.sum(axis=1)
    similarity += without * (without - 1) / 2
    return 1.0 - similarity / np.where(counts > 1, counts * (counts - 1) / 2, np.nan)
