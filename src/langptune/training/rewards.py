"""Registry of rewards: functions of one target and its competitors.

A recipe names one of them (``reward: log-rank``), or several with weights (``reward: {ndcg@1000: 0.95, probability:
0.05}``), whose weighted sum is the reward. With several targets per session (a recipe's ``targets``) the reward is the
mean over them. A new one is a function here, in ``REWARDS``, and its name in ``langptune.config.rewards``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from langptune.metrics import from_ranks
from langptune.ranking.ranks import target_ranks

Reader = Callable[[Sequence[str], Sequence[int]], np.ndarray]
"""Profiles ``[B]`` and items ``[B]`` -> mean log-probability per token of each item's title, float64 ``[B]``."""


@dataclass(frozen=True)
class Contest:
    """One target of each profile, and the items that it competes with.

    profiles: ``[B]``.
    target: int64 ``[B]``.
    scores: float32 ``[B, N]``; None if no reward of the recipe needs them.
    allowed: bool ``[B, N]``, true at the target and its competitors; None without scores.
    reader: for rewards from a language model; None if there are none.
    """

    profiles: Sequence[str]
    target: np.ndarray
    scores: np.ndarray | None = None
    allowed: np.ndarray | None = None
    reader: Reader | None = None

    @cached_property
    def own(self) -> np.ndarray:
        """float32 ``[B]``: the score of each target."""
        return self.scores[np.arange(len(self.target)), self.target]

    @cached_property
    def rank(self) -> np.ndarray:
        """int64 ``[B]``: the rank of each target, as in every table of this benchmark (ties count half)."""
        return target_ranks(self.scores, self.own, self.allowed).astype(np.int64)


def _metric(name: str) -> Callable[[Contest, int | None], np.ndarray]:
    return lambda contest, k: from_ranks(name if k is None else f"{name}@{k}", contest.rank)


def _log_rank(contest: Contest, k: int | None) -> np.ndarray:
    """-ln(rank): a step from rank 1000 to 500 counts as much as from 2 to 1, while NDCG is flat (0.1003, 0.1115)."""
    return -np.log(contest.rank)


def _piecewise(contest: Contest, k: int | None) -> np.ndarray:
    """(19 - rank) / 9 up to rank 10, (100 - rank) / 90 up to rank 100, 0 below.

    So ranks 1 to 10 are worth 2 to 1, and ranks 11 to 100 are worth 1 to 0 (ConvSearch-R1, arXiv 2505.15776: the
    rank-incentive reward, with the constants of its published code).
    """
    rank = contest.rank
    return np.where(rank <= 10, (19 - rank) / 9, np.clip((100 - rank) / 90, 0.0, None))


def _softmax(contest: Contest, k: int | None) -> np.ndarray:
    """ln of the target's share of exp(score) among itself and its competitors.

    The temperature is that of the scores (``ranking.scoring.TEMPERATURE``).
    """
    masked = np.where(contest.allowed, contest.scores, -np.inf).astype(np.float64)
    top = masked.max(1)
    return contest.own - (top + np.log(np.exp(masked - top[:, None]).sum(1)))


def _probability(contest: Contest, k: int | None) -> np.ndarray:
    """exp of ``softmax``: the second reward of R2ec (arXiv 2505.16994), which adds 0.05 of it to 0.95 NDCG@1000."""
    return np.exp(_softmax(contest, k))


def _contrast(contest: Contest, k: int | None) -> np.ndarray:
    """The target's score minus its competitors' mean (as in BLUE, arXiv 2605.06981, with sampled negatives there)."""
    others = contest.allowed.sum(1) - 1
    total = np.where(contest.allowed, contest.scores, 0.0).sum(1, dtype=np.float64) - contest.own
    return contest.own - total / np.maximum(1, others)


def _title(contest: Contest, k: int | None) -> np.ndarray:
    """Mean log-probability per token of the target's title given the profile, by the frozen initial encoder.

    It does not use the decoder (as BLUE's reward in text space, arXiv 2605.06981).
    """
    return contest.reader(contest.profiles, contest.target.tolist())


REWARDS: dict[str, Callable[[Contest, int | None], np.ndarray]] = {
    "ndcg": _metric("ndcg"),
    "mrr": _metric("mrr"),
    "log-rank": _log_rank,
    "piecewise": _piecewise,
    "softmax": _softmax,
    "probability": _probability,
    "contrast": _contrast,
    "title": _title,
}
"""The function of each reward in ``langptune.config.rewards``: contest and cut-off -> float64 ``[B]``."""
