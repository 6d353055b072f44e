"""The algorithms of RLSO: what each makes of the rewards of a batch, and its loss.

Notation: a session has K profiles p; r(p) is the standardised reward, the KL term taken off; c(p) = log pi_theta(p) -
log pi_t(p) summed over the tokens of p, pi_t being the policy that wrote the batch. An algorithm is two functions:
``weigh`` turns the rewards of the whole batch into one number a profile, before any pass; ``loss`` is what a pass
minimises, a mean over profiles or sessions, so that micro-batches and processes add up to the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

CLIP = 0.2
"""Of the ratio pi_theta / pi_t in RLOO and GRPO (PPO's; TRL's ``epsilon``)."""


@dataclass(frozen=True)
class Algorithm:
    """One entry of the registry.

    weigh: ``(rewards [S, K], finished bool [S, K], tokens [S, K]) -> weights [S, K]``, of all sessions of a batch.
    loss: ``(change [B, T], mask [B, T], weights [B], samples, eta) -> scalar``, of profiles that stand session by
        session, ``samples`` of each; ``change`` is 0 where ``mask`` is.
    ratio: ``change`` is log pi_theta - log pi_t of each token; else it is log pi_theta itself.
    best: only each session's best profile by the reward is trained on, and ``samples`` is 1.
    """

    weigh: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, float], torch.Tensor]
    ratio: bool = True
    best: bool = False


def rebel_loss(
    change: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, samples: int, eta: float
) -> torch.Tensor:
    """REBEL (arXiv 2404.16767; PAPER: Training), mean over the K (K - 1) / 2 pairs of each session::

        L = ( [c(p) - c(p')] - eta [r(p) - r(p')] )^2

    With d = c - eta r, the mean of (d(p) - d(p'))^2 over all pairs is twice the variance of d within the session.
    """
    rest = (change.sum(1) - eta * weights).view(-1, samples)
    return 2 * rest.var(1, unbiased=True).mean()


def rloo_weights(rewards: torch.Tensor, finished: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """RLOO's advantage: r less the mean of the session's other profiles (arXiv 2402.14740)."""
    samples = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * (samples / (samples - 1))


def rloo_loss(
    change: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, samples: int, eta: float
) -> torch.Tensor:
    """Clipped policy gradient of whole profiles, as in TRL's RLOOTrainer: ``-min(A e^c, A clip(e^c))``."""
    ratio = change.sum(1).exp()
    return -torch.minimum(ratio * weights, ratio.clamp(1 - CLIP, 1 + CLIP) * weights).mean()


def grpo_weights(rewards: torch.Tensor, finished: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """GRPO's advantage: r standardised within the session (arXiv 2402.03300; TRL adds 1e-4 to the deviation)."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True, unbiased=True) + 1e-4)


def grpo_loss(
    change: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, samples: int, eta: float
) -> torch.Tensor:
    """Clipped policy gradient of each token, mean over a profile's tokens, then over profiles (TRL: ``grpo``)."""
    ratio, weights = change.exp(), weights[:, None]
    each = torch.minimum(ratio * weights, ratio.clamp(1 - CLIP, 1 + CLIP) * weights) * mask
    return -(each.sum(1) / mask.sum(1)).mean()


def best_weights(rewards: torch.Tensor, finished: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Best of n: a session's best profile, so that every token of the chosen ones weighs the same over the batch.

    A session whose best profile did not finish is left out: its weights are all 0.
    """
    chosen = torch.zeros_like(rewards)
    best = rewards.argmax(1, keepdim=True)
    chosen.scatter_(1, best, finished.gather(1, best).to(chosen))
    return chosen * (len(rewards) / (chosen * tokens).sum().clamp(min=1))


def likelihood_loss(
    change: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, samples: int, eta: float
) -> torch.Tensor:
    """Rejection sampling (RAFT, arXiv 2304.06767): the mean of -log pi_theta over the tokens of the best profiles."""
    return -(change.sum(1) * weights).mean()


ALGORITHMS = {
    "rebel": Algorithm(lambda rewards, finished, tokens: rewards, rebel_loss),
    "rloo": Algorithm(rloo_weights, rloo_loss),
    "grpo": Algorithm(grpo_weights, grpo_loss),
    "sft": Algorithm(best_weights, likelihood_loss, ratio=False, best=True),
}
"""Values of a recipe's ``algorithm``. A new one is an entry here and its name in ``ReinforcementRecipe``."""


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
