"""Log-likelihoods under a frozen language model: of profiles given their prompts (drift), of items given a profile."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from langptune.models.logprobs import chosen_logprobs, token_logits, token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ASKED = "What is known of a person's taste:\n{profile}\n\nName one item that this person would choose next."
NOTHING = "nothing"
"""Replaces an empty profile; gives the part of an item's likelihood that does not depend on the person."""


LOGITS = 1 << 27
"""Logits (texts x tokens x vocabulary) that are in memory at once, beyond one text: 512 MiB in float32."""


@torch.inference_mode()
def text_logprobs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], batch_size: int = 16
) -> np.ndarray:
    """Sum of the log-probabilities of each text's tokens after its prompt, float64 ``[B]``; 0 for an empty text.

    Args:
        prompts: token ids ``[B][*]``, not empty.
        texts: token ids ``[B][*]``.
    """
    out = np.zeros(len(texts))
    for part in _padded(model, prompts, texts, batch_size):
        found = token_logprobs(model, part.ids, part.mask, part.width, 1.0)[0].double()
        # Values at padding may be infinite, which a product with the mask would turn into NaN.
        out[part.rows] = found.masked_fill(part.padding, 0.0).sum(1).cpu().numpy()
    return out


@torch.inference_mode()
def likeliest(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """As ``text_logprobs``, and whether greedy decoding after the prompt gives the text.

    Returns:
        float64 ``[B]``, and bool ``[B]``; 0 and false for an empty text.
    """
    out, greedy = np.zeros(len(texts)), np.zeros(len(texts), dtype=bool)
    for part in _padded(model, prompts, texts, batch_size):
        logits = token_logits(model, part.ids, part.mask, part.width)
        tokens = part.ids[:, -part.width :]
        found = chosen_logprobs(logits, tokens, entropy=False)[0].double()
        out[part.rows] = found.masked_fill(part.padding, 0.0).sum(1).cpu().numpy()
        greedy[part.rows] = ((logits.argmax(-1) == tokens) | part.padding).all(1).cpu().numpy()
    return out, greedy


@dataclass(frozen=True)
class _Padded:
    """A batch of prompts, padded on the left, and texts, padded on the right.

    rows: indices of its texts ``[b]``.
    ids, mask: int ``[b, left + width]``, with ``width`` columns for the texts.
    """

    rows: list[int]
    ids: torch.Tensor
    mask: torch.Tensor
    width: int

    @property
    def padding(self) -> torch.Tensor:
        """bool ``[b, width]``, true where a text has ended."""
        return self.mask[:, -self.width :] == 0


def _padded(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], batch_size: int
) -> Iterator[_Padded]:
    """Batches of the texts that are not empty, the longest first; their logits are at most ``LOGITS``."""
    order = sorted(
        (at for at in range(len(texts)) if len(texts[at])), key=lambda at: -len(prompts[at]) - len(texts[at])
    )
    longest = max((len(text) for text in texts), default=0)
    size = max(1, min(batch_size, LOGITS // max(1, longest * model.config.get_text_config().vocab_size)))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        left, right = max(len(prompts[at]) for at in rows), max(len(texts[at]) for at in rows)
        ids = torch.zeros(len(rows), left + right, dtype=torch.long, device=model.device)
        mask = torch.zeros_like(ids)
        for row, at in enumerate(rows):
            where = slice(left - len(prompts[at]), left + len(texts[at]))
            ids[row, where] = torch.tensor([*prompts[at], *texts[at]], device=model.device)
            mask[row, where] = 1
        yield _Padded(rows, ids, mask, right)


class Reader:
    """A language model that scores items given a profile only.

    An item's score is the pointwise mutual information of its text and the profile, ``log p(item | profile) -
    log p(item | nothing)``: how much likelier the profile makes it. Popularity alone does not raise the score.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self._model, self._tokenizer = model, tokenizer
        self._alone: dict[str, float] = {}

    def scores(self, profile: str, items: Sequence[str]) -> np.ndarray:
        """Score of each item's text, float64 ``[n]``."""
        new = [text for text in dict.fromkeys(items) if text not in self._alone]
        self._alone |= dict(zip(new, self._logprobs(NOTHING, new), strict=True))
        return self._logprobs(profile, items) - np.array([self._alone[text] for text in items])

    def per_token(self, profiles: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Mean log-probability per token of each text after its profile, float64 ``[B]``; 0 for an empty text."""
        ids = [self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in texts]
        found = text_logprobs(self._model, [self._question(profile) for profile in profiles], ids)
        return found / np.maximum(1, [len(own) for own in ids])

    @torch.inference_mode()
    def _logprobs(self, profile: str, items: Sequence[str]) -> np.ndarray:
        if not items:
            return np.zeros(0)
        # The question is computed once; every item continues from its cache.
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
            # Padding is at the end, where no token of a text attends.
            logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, :-1]
            found = chosen_logprobs(logits, ids[:, 1:])[0].double().cpu()
            for row, text in enumerate(part):
                out[start + row] = found[row, : len(text)].sum().item()
        return out

    def _question(self, profile: str) -> list[int]:
        mark = "\u27e6profile\u27e7"
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": ASKED.format(profile=mark)}], tokenize=False, add_generation_prompt=True
        )
        before, _, after = chat.partition(mark)
        form = {"add_special_tokens": False, "split_special_tokens": False}
        head, tail = (self._tokenizer(part, **form).input_ids for part in (before, after))
        # A profile is plain text: no string in it becomes a special token.
        middle = self._tokenizer(profile or NOTHING, add_special_tokens=False, split_special_tokens=True).input_ids
        return [*head, *middle, *tail]
