"""The algorithms of RLSO, one per file: the weights from the rewards of a batch, and the loss.

Notation: a session has K profiles p. r(p) is the standardised reward minus the KL term. c(p) = log pi_theta(p) -
log pi_t(p), summed over the tokens of p, where pi_t is the policy that wrote the batch. An algorithm has two functions:
``weigh`` turns the rewards of the whole batch into one weight per profile, before any pass. ``loss`` is the objective
that a pass minimises, a mean over profiles or sessions, so that micro-batches and processes add up to the batch.
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

``SETTINGS``: keys that a recipe may set under ``settings``, with their defaults; a literal, because it is read without
an import. ``RATIO`` and ``BEST``: see ``Algorithm``.
"""


@dataclass(frozen=True)
class Algorithm:
    """One algorithm, with the settings of a recipe.

    weigh: ``(rewards [S, K], finished bool [S, K], tokens [S, K]) -> weights [S, K]``, of all sessions of a batch.
    loss: ``(change [B, T], mask [B, T], weights [B], samples) -> scalar``, of profiles in the order of sessions,
        ``samples`` per session; ``change`` is 0 where ``mask`` is 0. The function in the file also takes the settings.
    ratio: True: ``change`` is log pi_theta - log pi_t of each token; False: it is log pi_theta.
    best: only each session's profile with the highest reward is trained on, and ``samples`` is 1.
    """

    weigh: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
    ratio: bool = True
    best: bool = False


def algorithm(name: str, settings: Mapping[str, Any]) -> Algorithm:
    """An algorithm with settings, which override those of its file.

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
