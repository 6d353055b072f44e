"""Best-of-n: selects the profile of a session from which the decoder best retrieves the user's own history.

A control without training: it spends tokens on more profiles instead of on training the encoder, and it uses only the
history. (Selecting by the target would be an oracle.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from langptune.metrics import from_ranks
from langptune.ranking.decoder import BLOCK


def history_score(scores: np.ndarray, shown: Sequence[int], seen: Sequence[int]) -> float:
    """Mean NDCG (no cut-off) of the shown history items, each ranked among the items the user has not seen.

    Args:
        scores: float ``[N]``, similarity of every item to the profile.
        shown: the history items in the prompt.
        seen: all items that the user has seen, including the shown items.
    """
    unseen = np.ones(len(scores), dtype=bool)
    unseen[np.asarray(seen, dtype=np.int64)] = False
    rivals = np.sort(scores[unseen])
    own = scores[np.asarray(shown, dtype=np.int64)]
    higher = len(rivals) - np.searchsorted(rivals, own, side="right")
    ties = np.searchsorted(rivals, own, side="right") - np.searchsorted(rivals, own, side="left")
    return float(from_ranks("ndcg", 1 + higher + (ties + 1) // 2).mean())


def best_rows(blocks: list[np.ndarray], histories: list[list[int]], seen: list[list[int]], shown: int) -> list[int]:
    """The index of the profile to keep, for each session (the first of equals).

    Args:
        blocks: per session, scores ``[n, N]`` of its profiles.
        histories: per session, oldest first.
        seen: per session.
        shown: how many of the most recent items count.
    """
    return [
        int(np.argmax([history_score(row, history[-shown:], mask) for row in block]))
        for block, history, mask in zip(blocks, histories, seen, strict=True)
    ]


def best_samples(
    queries: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    histories: list[list[int]],
    seen: list[list[int]],
    shown: int,
    block: int = BLOCK,
) -> list[int]:
    """``best_rows`` from vectors; at most ``block`` profiles (or those of one session) are scored at once.

    Args:
        queries: float ``[S * n, D]``, the profiles' vectors, the ``n`` of a session adjacent.
        score: vectors ``[b, D]`` -> scores ``[b, N]`` of every item.
        histories: of ``S`` sessions, each oldest first.
        seen: of ``S`` sessions.
        shown: how many of the most recent items count.
    """
    each = len(queries) // max(len(histories), 1)
    step = max(1, block // max(each, 1))
    kept: list[int] = []
    for start in range(0, len(histories), step):
        part = slice(start, start + step)
        scores = score(queries[start * each : (start + step) * each])
        blocks = list(scores.reshape(len(histories[part]), each, -1))
        kept += best_rows(blocks, histories[part], seen[part], shown)
    return kept
