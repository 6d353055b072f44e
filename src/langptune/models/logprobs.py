"""Log-probabilities of a text's tokens under a causal language model, in bounded memory."""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 1 << 23
"""Number of logits (positions x vocabulary) per softmax, in float32: 32 MiB."""


def token_logprobs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of the last ``keep`` tokens of each row, float32 ``[B, keep]`` each.

    Args:
        input_ids, attention_mask, keep: as in ``token_logits``.
        temperature: divides the logits.
    """
    logits = token_logits(model, input_ids, attention_mask, keep)
    return chosen_logprobs(logits, input_ids[:, -keep:], temperature)


def token_logits(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int) -> torch.Tensor:
    """The logits that predict the last ``keep`` tokens of each row, ``[B, keep, V]``.

    Args:
        input_ids: ``[B, L]``, prompts padded on the left, completions on the right.
        attention_mask: ``[B, L]``. Positions count from the first real token, so padding has no effect.
    """
    positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    # Indices, not a number: the product with the head would copy a slice of the hidden states row by row.
    last = torch.arange(input_ids.shape[1] - keep - 1, input_ids.shape[1], device=input_ids.device)
    return model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions,
        logits_to_keep=last,
        use_cache=False,
    ).logits[:, :-1]


def chosen_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0, entropy: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token, and entropy at its position, float32 ``[..., L]`` each.

    Args:
        logits: ``[..., L, V]``, as the model returns them (Gemma-2 caps them after its head).
        tokens: ``[..., L]``.
        entropy: whether the entropy is computed; otherwise it is 0.
    """
    found, entropies = _Chosen.apply(logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1), temperature, entropy)
    return found.view(tokens.shape), entropies.view(tokens.shape)


class _Chosen(torch.autograd.Function):
    """Log-probabilities of chosen tokens ``[M]`` from logits ``[M, V]``, and entropies, which have no gradient.

    The softmax is computed in float32, chunk by chunk, and again for the gradient: autograd would store several times
    the size of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.empty(len(logits), device=logits.device)
        total, entropies = torch.empty_like(found), torch.zeros_like(found)
        for part in _chunks(logits):
            scaled = logits[part].float() / temperature
            total[part] = scaled.logsumexp(-1)
            found[part] = scaled.gather(1, tokens[part, None])[:, 0] - total[part]
            if entropy:
                mean = (scaled.sub(total[part, None]).exp_() * scaled).sum(-1)
                entropies[part] = total[part] - mean
        ctx.save_for_backward(logits, tokens, total)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        return found, entropies

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None, None]:
        logits, tokens, total = ctx.saved_tensors
        out = torch.empty_like(logits)
        for part in _chunks(logits):
            scale = gradient[part, None] / ctx.temperature
            each = (logits[part].float() / ctx.temperature).sub_(total[part, None]).exp_().mul_(-scale)
            out[part] = each.scatter_add_(1, tokens[part, None], scale)
        return out, None, None, None


def _chunks(logits: torch.Tensor) -> list[slice]:
    size = max(1, CHUNK // logits.shape[-1])
    return [slice(start, start + size) for start in range(0, len(logits), size)]
