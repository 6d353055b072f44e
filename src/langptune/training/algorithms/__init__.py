"""The algorithms of RLSO, a file each: what it makes of the rewards of a batch, and its loss.

Notation: a session has K profiles p; r(p) is the standardised reward, the KL term taken off; c(p) = log pi_theta(p) -
log pi_t(p) summed over the tokens of p, pi_t being the policy that wrote the batch. An algorithm is two functions:
``weigh`` turns the rewards of the whole batch into one number a profile, before any pass; ``loss`` is what a pass
minimises, a mean over profiles or sessions, so that micro-batches and processes add up to the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from langptune.registry import Registry

ALGORITHMS = Registry("langptune.training.algorithms")
"""Values of a recipe's ``algorithm``: a file has the functions ``weigh`` and ``loss``, and up to three constants.

``SETTINGS``: keys that a recipe may give under ``settings``, with their defaults; a literal, for it is read without an
import. ``RATIO`` and ``BEST``: see ``Algorithm``.
"""


@dataclass(frozen=True)
class Algorithm:
    """One algorithm, with the settings of a recipe.

    weigh: ``(rewards [S, K], finished bool [S, K], tokens [S, K]) -> weights [S, K]``, of all sessions of a batch.
    loss: ``(change [B, T], mask [B, T], weights [B], samples) -> scalar``, of profiles that stand session by session,
        ``samples`` of each; ``change`` is 0 where ``mask`` is. In its file it takes the settings, too.
    ratio: ``change`` is log pi_theta - log pi_t of each token; else it is log pi_theta itself.
    best: only each session's best profile by the reward is trained on, and ``samples`` is 1.
    """

    weigh: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
    ratio: bool = True
    best: bool = False


def algorithm(name: str, settings: Mapping[str, Any]) -> Algorithm:
    """An algorithm with settings, which go before those of its file.

    Raises:
        UserError: there is no such algorithm.
    """
    entry = ALGORITHMS.load(name)
    loss = partial(entry.loss, settings={**getattr(entry, "SETTINGS", {}), **settings})
    return Algorithm(entry.weigh, loss, getattr(entry, "RATIO", True), getattr(entry, "BEST", False))


def standardised(rewards: torch.Tensor, over: str = "batch") -> torch.Tensor:
    """Mean 0 and variance 1 (no Bessel correction); zeros where all rewards are equal.

    Args:
        rewards: ``[S, K]``.
        over: ``batch``: all profiles of a batch together (PAPER: Training); ``session``: each session's; ``none``.
    """
    if over == "none":
        return rewards
    parts = rewards.reshape(1, -1) if over == "batch" else rewards
    centred = parts - parts.mean(1, keepdim=True)
    spread = centred.pow(2).mean(1, keepdim=True).sqrt()
    return torch.where(spread > 0, centred / spread.where(spread > 0, torch.ones(())), centred).view(rewards.shape)
