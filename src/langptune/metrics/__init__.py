"""Ranking metrics with one relevant item per session: functions of the rank. The name of each file is a metric.

A file has a function ``values(ranks, k)`` and three literal constants: ``TITLE``, its name in tables; ``CUTOFF``,
"needed" or "optional" for a cut-off ``@K``, None without one; ``BETTER``, 1 where a higher value is better, -1 where a
lower one is. It imports only numpy. The file ``log_rank.py`` is the metric ``log-rank``.
"""

from __future__ import annotations

import re
from functools import cache
from types import ModuleType

import numpy as np

from langptune.errors import UserError

# Training and selection use these metrics, so that the hash of their code includes them. The evaluation imports other
# metrics by name, so that only its hash includes them.
from langptune.metrics import log_rank, mrr, ndcg, recall  # noqa: F401
from langptune.registry import Registry

DEFAULT = ("recall@1", "recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr", "log-rank")
_REGISTRY = Registry("langptune.metrics")
_NAME = re.compile(r"^([a-z0-9-]+?)(?:@([1-9][0-9]*))?$")


@cache
def _metric(kind: str) -> ModuleType:
    name = kind.replace("-", "_")
    found = _REGISTRY.load(name)
    for part in ("TITLE", "CUTOFF", "BETTER", "values"):
        if not hasattr(found, part):
            raise UserError(f"{_REGISTRY.file(name)}: a metric has {part} (docs/extend.md)")
    return found


@cache
def _kinds() -> tuple[str, ...]:
    return tuple(name.replace("_", "-") for name in _REGISTRY.names())


def parse(name: str) -> tuple[str, int | None]:
    """``"ndcg@10"`` to ``("ndcg", 10)``; ``"mrr"`` to ``("mrr", None)``, ``"ndcg"`` to ``("ndcg", None)``.

    Raises:
        UserError: an unknown metric, a metric without the cut-off that it needs, or with one that it does not have.
    """
    match = _NAME.match(name)
    # The value of CUTOFF that is wrong here: "needed" without a cut-off, None with one.
    wrong = None if match and match[2] else "needed"
    if not match or match[1] not in _kinds() or wrong == _metric(match[1]).CUTOFF:
        cutoffs = {kind: _metric(kind).CUTOFF for kind in _kinds()}
        forms = [f"{kind}@K" for kind, cutoff in cutoffs.items() if cutoff]
        forms += [kind for kind, cutoff in cutoffs.items() if cutoff != "needed"]
        raise UserError(f"unknown metric '{name}'; write {', '.join(forms[:-1])} or {forms[-1]}, K a positive integer")
    return match[1], int(match[2]) if match[2] else None


def module(name: str) -> str:
    """The dotted name of the module of a metric.

    Raises:
        UserError: see ``parse``.
    """
    return _REGISTRY.module(parse(name)[0].replace("-", "_"))


def direction(name: str) -> int:
    """+1 where a higher value is better, -1 where a lower one is."""
    return _metric(parse(name)[0]).BETTER


def title(name: str) -> str:
    """The name of a metric in tables and figures: ``NDCG@10``, ``Log rank (lower is better)``."""
    kind, k = parse(name)
    return _metric(kind).TITLE + (f"@{k}" if k else "") + (" (lower is better)" if direction(name) < 0 else "")


def from_ranks(name: str, ranks: np.ndarray) -> np.ndarray:
    """Per-session values of a metric.

    Args:
        name: ``recall@K``, ``ndcg@K``, ``mrr@K``, ``ndcg``, ``mrr``, ``log-rank``, or the metric of another file.
        ranks: int ``[S]``, 1-based.

    Returns:
        float64 ``[S]``.

    Raises:
        UserError: see ``parse``; or a rank is below 1.
    """
    kind, k = parse(name)
    ranks = np.asarray(ranks)
    if len(ranks) and ranks.min() < 1:
        raise UserError(f"ranks are 1-based, found {ranks.min()}")
    return _metric(kind).values(ranks, k)
