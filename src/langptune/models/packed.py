"""Several continuations of one prompt in one row of a causal language model, kept apart by an attention mask.

Each token of a row belongs to a *segment*: 0 is the prompt, 1, 2, ... are its continuations, and ``NOBODY`` is padding.
A token sees the prompt and its own segment, up to its own position. Positions go on from the end of the prompt in every
continuation, so each one is computed as if it stood alone behind the prompt, which is computed once.
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
    """Whether a model takes a mask of our own, so that continuations can stand side by side.

    Flash attention takes none. Without rotary embeddings (ALiBi, learned positions in some models) positions may be
    read off the mask. Layers other than full and sliding attention mix neighbouring tokens whatever the mask says.
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
    """Who sees whom, bool ``[B, Q, K]``.

    Args:
        segments, positions: ``[B, Q]``, of the tokens that look.
        seen, seen_positions: ``[B, K]``, of the tokens that they look at.
    """
    same = (seen[:, None] == 0) | (seen[:, None] == segments[:, :, None])
    return same & (seen_positions[:, None] <= positions[:, :, None])


def as_mask(
    model: PreTrainedModel, allowed: torch.Tensor, positions: torch.Tensor, seen_positions: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """``allowed`` bool ``[B, Q, K]`` in the form that the model's forward pass takes as ``attention_mask``.

    Sliding layers see no further back than their window, counted in positions: columns of a row are no distances.
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
    """Forward passes give logits at these positions only, ``[1, M, V]``.

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
