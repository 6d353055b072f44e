"""Ranking metrics with one relevant item per session: functions of the rank alone.

With a single target at rank r: Recall@k = [r <= k]; NDCG@k = [r <= k] / log2(1 + r) (the ideal DCG is 1);
MRR@k = [r <= k] / r. Without a cut-off NDCG = 1 / log2(1 + r) and MRR = 1 / r. The log rank is ln r,
without a cut-off. It is the one metric by which lower is better, and it tells apart ranks in the tail that the others
hardly see.
"""

from __future__ import annotations

import re

import numpy as np

from langptune.errors import UserError

DEFAULT = ("recall@1", "recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr", "log-rank")
_NAME = re.compile(r"^(recall|ndcg|mrr|log-rank)(?:@([1-9][0-9]*))?$")
_TITLES = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "log-rank": "Log rank"}


def parse(name: str) -> tuple[str, int | None]:
    """``"ndcg@10"`` to ``("ndcg", 10)``; ``"mrr"`` to ``("mrr", None)``, ``"ndcg"`` to ``("ndcg", None)``.

    Raises:
        UserError: an unknown metric, or one that needs a cut-off and has none.
    """
    match = _NAME.match(name)
    if not match or (match[1] == "recall" and match[2] is None) or (match[1] == "log-rank" and match[2]):
        raise UserError(
            f"unknown metric '{name}'; write recall@K, ndcg@K, mrr@K, ndcg, mrr or log-rank, K a positive integer"
        )
    return match[1], int(match[2]) if match[2] else None


def direction(name: str) -> int:
    """+1 where a higher value is better, -1 where a lower one is."""
    return -1 if parse(name)[0] == "log-rank" else 1


def title(name: str) -> str:
    """How tables and figures write a metric: ``NDCG@10``, ``Log rank (lower is better)``."""
    kind, k = parse(name)
    return _TITLES[kind] + (f"@{k}" if k else "") + (" (lower is better)" if direction(name) < 0 else "")


def from_ranks(name: str, ranks: np.ndarray) -> np.ndarray:
    """Per-session values of a metric.

    Args:
        name: ``recall@K``, ``ndcg@K``, ``mrr@K``, ``ndcg``, ``mrr`` or ``log-rank``.
        ranks: int ``[S]``, 1-based.

    Returns:
        float64 ``[S]``: in [0, 1]; of ``log-rank`` the natural logarithm, from 0 for the first place.
    """
    kind, k = parse(name)
    ranks = np.asarray(ranks)
    if len(ranks) and ranks.min() < 1:
        raise UserError(f"ranks are 1-based, found {ranks.min()}")
    if kind == "log-rank":
        return np.log(ranks.astype(np.float64))
    hit = np.ones(len(ranks)) if k is None else (ranks <= k).astype(np.float64)
    if kind == "recall":
        return hit
    return hit / (np.log2(1.0 + ranks) if kind == "ndcg" else ranks)
