"""Ranking metrics with one relevant item per session: functions of the rank alone.

With a single target at rank r: Recall@k = [r <= k]; NDCG@k = [r <= k] / log2(1 + r) (the ideal DCG is 1);
MRR@k = [r <= k] / r. Without a cut-off NDCG = 1 / log2(1 + r) and MRR = 1 / r: these are also the rewards of RLSO.
"""

from __future__ import annotations

import re

import numpy as np

from langptune.errors import UserError

DEFAULT = ("recall@1", "recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr")
_NAME = re.compile(r"^(recall|ndcg|mrr)(?:@([1-9][0-9]*))?$")


def parse(name: str) -> tuple[str, int | None]:
    """``"ndcg@10"`` to ``("ndcg", 10)``; ``"mrr"`` to ``("mrr", None)``, ``"ndcg"`` to ``("ndcg", None)``.

    Raises:
        UserError: an unknown metric, or one that needs a cut-off and has none.
    """
    match = _NAME.match(name)
    if not match or (match[1] == "recall" and match[2] is None):
        raise UserError(f"unknown metric '{name}'; write recall@K, ndcg@K, mrr@K, ndcg or mrr, K a positive integer")
    return match[1], int(match[2]) if match[2] else None


def from_ranks(name: str, ranks: np.ndarray) -> np.ndarray:
    """Per-session values of a metric.

    Args:
        name: ``recall@K``, ``ndcg@K``, ``mrr@K`` or ``mrr``.
        ranks: int ``[S]``, 1-based.

    Returns:
        float64 ``[S]`` in [0, 1].
    """
    kind, k = parse(name)
    ranks = np.asarray(ranks)
    if len(ranks) and ranks.min() < 1:
        raise UserError(f"ranks are 1-based, found {ranks.min()}")
    hit = np.ones(len(ranks)) if k is None else (ranks <= k).astype(np.float64)
    if kind == "recall":
        return hit
    return hit / (np.log2(1.0 + ranks) if kind == "ndcg" else ranks)
