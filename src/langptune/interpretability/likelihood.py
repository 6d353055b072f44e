"""Log-likelihoods under a frozen language model: of profiles after their prompts (drift), of items after a profile."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ASKED = "What is known of a person's taste:\n{profile}\n\nName one item that this person would choose next."
NOTHING = "nothing"
"""Stands for the profile where none is given: the part of an item's likelihood that is not about the person."""


@torch.inference_mode()
def token_logprobs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], batch_size: int = 16
) -> np.ndarray:
    """Sum of the log-probabilities of each text's tokens after its prompt, float64 ``[B]``; 0 for an empty text.

    Args:
        prompts: token ids ``[B][*]``, not empty.
        texts: token ids ``[B][*]``.
    """
    out = np.zeros(len(texts))
    order = sorted(
        (at for at in range(len(texts)) if len(texts[at])), key=lambda at: -len(prompts[at]) - len(texts[at])
    )
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(prompts[at]) + len(texts[at]) for at in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long, device=model.device)
        mask = torch.zeros_like(ids)
        for row, at in enumerate(rows):
            whole = [*prompts[at], *texts[at]]
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        head = model.get_output_embeddings()
        for row, at in enumerate(rows):
            before, length = len(prompts[at]), len(texts[at])
            # Logits of the text alone: those of whole prompts would be the largest tensor of all.
            logits = head(hidden[row, before - 1 : before - 1 + length]).float()
            told = torch.tensor(list(texts[at]), device=model.device)
            out[at] = torch.log_softmax(logits, dim=-1).gather(1, told[:, None]).double().sum().item()
    return out


class Reader:
    """A language model that tells items apart by a profile alone.

    An item's score is the pointwise mutual information of its text and the profile, ``log p(item | profile) -
    log p(item | nothing)``: how much likelier the profile makes it. A famous item gains nothing from being famous.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self._model, self._tokenizer = model, tokenizer
        self._alone: dict[str, float] = {}

    def scores(self, profile: str, items: Sequence[str]) -> np.ndarray:
        """Score of each item's text, float64 ``[n]``."""
        new = [text for text in dict.fromkeys(items) if text not in self._alone]
        self._alone |= dict(zip(new, self._logprobs(NOTHING, new), strict=True))
        return self._logprobs(profile, items) - np.array([self._alone[text] for text in items])

    @torch.inference_mode()
    def _logprobs(self, profile: str, items: Sequence[str]) -> np.ndarray:
        if not items:
            return np.zeros(0)
        # The question is read once; every item goes on from there.
        prompt = torch.tensor([self._question(profile)], device=self._model.device)
        first = self._model(input_ids=prompt[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        texts = [self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in items]
        out = np.zeros(len(items))
        for start in range(0, len(items), 64):
            part = texts[start : start + 64]
            width = max(map(len, part))
            ids = torch.zeros(len(part), width + 1, dtype=torch.long, device=self._model.device)
            ids[:, 0] = prompt[0, -1]
            for row, text in enumerate(part):
                ids[row, 1 : len(text) + 1] = torch.tensor(text)
            cache = copy.deepcopy(first)
            cache.batch_repeat_interleave(len(part))
            # Padding stands at the end, where no token of a text looks.
            logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, :-1].float()
            told = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None])[:, :, 0].double().cpu()
            for row, text in enumerate(part):
                out[start + row] = told[row, : len(text)].sum().item()
        return out

    def _question(self, profile: str) -> list[int]:
        mark = "\u27e6profile\u27e7"
        told = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": ASKED.format(profile=mark)}], tokenize=False, add_generation_prompt=True
        )
        before, _, after = told.partition(mark)
        form = {"add_special_tokens": False, "split_special_tokens": False}
        head, tail = (self._tokenizer(part, **form).input_ids for part in (before, after))
        # A profile is text: no string in it becomes a special token.
        middle = self._tokenizer(profile or NOTHING, add_special_tokens=False, split_special_tokens=True).input_ids
        return [*head, *middle, *tail]
