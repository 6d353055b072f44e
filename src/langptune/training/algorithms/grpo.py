"""GRPO (arXiv 2402.03300), as in TRL's GRPOTrainer (``loss_type`` grpo): clipped policy gradient of each token."""

from __future__ import annotations

from collections.abc import Mapping

import torch

SETTINGS = {"clip": 0.2}
"""clip: PPO's clip range of the ratio pi_theta / pi_t (``epsilon`` in TRL)."""


def weigh(rewards: torch.Tensor, finished: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """GRPO's advantage: r standardised within the session (TRL adds 1e-4 to the deviation)."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True, unbiased=True) + 1e-4)


def loss(
    change: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, samples: int, settings: Mapping[str, float]
) -> torch.Tensor:
    """Mean over a profile's tokens, then over profiles."""
    ratio, weights, clip = change.exp(), weights[:, None], settings["clip"]
    each = torch.minimum(ratio * weights, ratio.clamp(1 - clip, 1 + clip) * weights) * mask
    return -(each.sum(1) / mask.sum(1)).mean()
