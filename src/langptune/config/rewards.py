"""Names of the rewards and terms of recipes, and their properties that the check of a config needs.

The formulas are in ``langptune.training.rewards`` and ``langptune.training.terms``. A config does not import these
modules; otherwise their imports would be part of every script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from langptune.errors import UserError


@dataclass(frozen=True)
class RewardKind:
    """One kind of reward.

    negative: whether it can be below 0; a reward of 0 for an unfinished profile would then be an advantage.
    cut: whether ``name@K`` is allowed.
    reads: its input, the decoder's scores or a language model that reads the profile.
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

TERMS = ("unfinished", "repetition", "list", "length", "copied", "false_claims", "steering")
"""Keys of a recipe's ``terms``."""


def parse(name: str) -> tuple[str, RewardKind, int | None]:
    """Name without cut-off, kind and cut-off of a reward such as ``"ndcg@1000"`` or ``"log-rank"``.

    Raises:
        UserError: an unknown name, or a cut-off of a reward that takes none.
    """
    base, mark, digits = name.partition("@")
    kind = REWARDS.get(base)
    if kind is None:
        raise UserError(f"unknown reward '{name}'; valid: {', '.join(REWARDS)}, ndcg@K, mrr@K")
    if not mark:
        return base, kind, None
    if not kind.cut or not digits.isdecimal() or int(digits) < 1:
        raise UserError(f"reward '{name}': a cut-off is a positive integer, for ndcg and mrr only")
    return base, kind, int(digits)
