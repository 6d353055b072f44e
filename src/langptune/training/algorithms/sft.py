"""Rejection sampling (RAFT, arXiv 2304.06767): maximum likelihood of each session's best profile."""

from __future__ import annotations

from collections.abc import Mapping

import torch

RATIO = False
BEST = True


def weigh(rewards: torch.Tensor, finished: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Best of n: only a session's best profile has a weight, and every token of these profiles has the same weight.

    A session whose best profile did not finish is left out: its weights are all 0.
    """
    chosen = torch.zeros_like(rewards)
    best = rewards.argmax(1, keepdim=True)
    chosen.scatter_(1, best, finished.gather(1, best).to(chosen))
    return chosen * (len(rewards) / (chosen * tokens).sum().clamp(min=1))


def loss(
    change: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, samples: int, settings: Mapping[str, float]
) -> torch.Tensor:
    """The mean of -log pi_theta over the tokens of the best profiles."""
    return -(change.sum(1) * weights).mean()
