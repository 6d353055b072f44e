"""Packs several continuations of one prompt into one row of a causal language model, separated by an attention mask.

Each token of a row belongs to a *segment*: 0 is the prompt, 1, 2, ... are its continuations, and ``NOBODY`` is padding.
A token attends to the prompt and its own segment, up to its own position. In every continuation, positions continue
from the end of the prompt. So each is computed as if it were the only one, while the prompt is computed once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOBODY = -1
"""The segment of padding."""


def packs(model: PreTrainedModel) -> bool:
    """Whether a model supports custom attention masks, so that continuations can share a row.

    Flash attention does not. Without rotary embeddings (ALiBi, learned positions in some models) positions may be
    derived from the mask. Layers other than full and sliding attention mix adjacent tokens regardless of the mask.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    return (
        model.config._attn_implementation in ("sdpa", "eager")
        and hasattr(model.base_model, "rotary_emb")
        and set(kinds) <= {"full_attention", "sliding_attention"}
    )


def visible(
    segments: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor, seen_positions: torch.Tensor
) -> torch.Tensor:
    """Whether each query attends to each key, bool ``[B, Q, K]``.

    Args:
        segments, positions: ``[B, Q]``, of the queries.
        seen, seen_positions: ``[B, K]``, of the keys.
    """
    same = (seen[:, None] == 0) | (seen[:, None] == segments[:, :, None])
    return same & (seen_positions[:, None] <= positions[:, :, None])


def as_mask(
    model: PreTrainedModel, allowed: torch.Tensor, positions: torch.Tensor, seen_positions: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """``allowed`` bool ``[B, Q, K]`` as the ``attention_mask`` of the model's forward pass.

    Sliding layers attend within their window, counted in positions: columns of a row are not distances.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    whole = _form(model, allowed)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return whole
    near = _form(model, allowed & (seen_positions[:, None] > positions[:, :, None] - window))
    return {"full_attention": whole, "sliding_attention": near} if kinds else near


def _form(model: PreTrainedModel, allowed: torch.Tensor) -> torch.Tensor:
    if model.config._attn_implementation == "sdpa":
        return allowed[:, None]
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device).masked_fill(~allowed, lowest)[:, None]


@contextlib.contextmanager
def only_at(model: PreTrainedModel, index: torch.Tensor) -> Iterator[None]:
    """Restrict the logits of forward passes to these positions, ``[1, M, V]``.

    Args:
        index: int ``[M]``, positions of the flattened ``[B * L]``. ``logits_to_keep`` would keep the same columns in
            every row, padding included.
    """

    def select(_: Any, args: tuple) -> tuple:
        (hidden,) = args
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)[None],)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
