"""Names of rewards and terms that recipes may have, and what must be known of them before anything is computed.

Their formulas stand in ``langptune.training.rewards`` and ``langptune.training.terms``, which a config does not import:
what they read would else be part of every script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from langptune.errors import UserError


@dataclass(frozen=True)
class RewardKind:
    """One kind of reward.

    negative: whether it can be below 0, so that a reward of 0 for an unfinished profile would be a prize.
    cut: whether ``name@K`` is allowed.
    reads: what it needs, the decoder's scores or a language model that reads the profile.
    """

    negative: bool = False
    cut: bool = False
    reads: Literal["scores", "reader"] = "scores"


REWARDS: dict[str, RewardKind] = {
    "ndcg": RewardKind(cut=True),
    "mrr": RewardKind(cut=True),
    "log-rank": RewardKind(negative=True),
    "piecewise": RewardKind(),
    "softmax": RewardKind(negative=True),
    "probability": RewardKind(),
    "contrast": RewardKind(negative=True),
    "title": RewardKind(negative=True, reads="reader"),
}
"""Values of a recipe's ``reward``; ``ndcg`` is the paper's (PAPER: Training)."""

TERMS = ("unfinished", "repetition", "list", "length", "copied", "false_claims")
"""Keys of a recipe's ``terms``."""


def parse(name: str) -> tuple[str, RewardKind, int | None]:
    """A reward without its cut-off, its kind, and its cut-off: of ``"ndcg@1000"``, ``"log-rank"``.

    Raises:
        UserError: an unknown name, or a cut-off where none is possible.
    """
    base, mark, digits = name.partition("@")
    kind = REWARDS.get(base)
    if kind is None:
        raise UserError(f"unknown reward '{name}'; valid: {', '.join(REWARDS)}, ndcg@K, mrr@K")
    if not mark:
        return base, kind, None
    if not kind.cut or not digits.isdigit() or int(digits) < 1:
        raise UserError(f"reward '{name}': a cut-off is a positive integer, and of ndcg and mrr only")
    return base, kind, int(digits)
