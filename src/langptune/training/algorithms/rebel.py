"""REBEL (arXiv 2404.16767; PAPER: Training): the paper's algorithm. ``eta`` of the recipe scales reward differences."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def weigh(rewards: torch.Tensor, finished: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The rewards themselves."""
    return rewards


def loss(
    change: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, samples: int, settings: Mapping[str, float]
) -> torch.Tensor:
    """Mean over the K (K - 1) / 2 pairs of each session::

        L = ( [c(p) - c(p')] - eta [r(p) - r(p')] )^2

    With d = c - eta r, the mean of (d(p) - d(p'))^2 over all pairs is twice the variance of d within the session.
    """
    rest = (change.sum(1) - settings["eta"] * weights).view(-1, samples)
    return 2 * rest.var(1, unbiased=True).mean()
