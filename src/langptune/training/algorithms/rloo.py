"""RLOO (arXiv 2402.14740), as in TRL's RLOOTrainer: clipped policy gradient of whole profiles."""

from __future__ import annotations

from collections.abc import Mapping

import torch

SETTINGS = {"clip": 0.2}
"""clip: PPO's clip range of the ratio pi_theta / pi_t (``epsilon`` in TRL)."""


def weigh(rewards: torch.Tensor, finished: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """RLOO's advantage: r minus the mean of the session's other profiles."""
    samples = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * (samples / (samples - 1))


def loss(
    change: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, samples: int, settings: Mapping[str, float]
) -> torch.Tensor:
    """``-min(A e^c, A clip(e^c))``, mean over profiles."""
    ratio, clip = change.sum(1).exp(), settings["clip"]
    return -torch.minimum(ratio * weights, ratio.clamp(1 - clip, 1 + clip) * weights).mean()
