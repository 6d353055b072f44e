"""Limits on the tokens of texts; tokens are counted only if a text could exceed its limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

GROUP = 4096
"""Texts per call of a tokenizer."""


@dataclass(frozen=True)
class TokenLimits:
    """Counters of tokens, and their limits.

    item_tokens_of: texts -> tokens of each, special tokens included.
    prompts_of: histories (each a list of item fields with rating and review) -> the text of each prompt.
    prompt_tokens_of: prompts -> tokens of each, the chat format included.
    item_special, prompt_special: number of special tokens that are added to a text.
    """

    item_tokens_of: Callable[[list[str]], list[int]]
    prompts_of: Callable[[list[list[dict[str, Any]]]], list[str]]
    prompt_tokens_of: Callable[[list[str]], list[int]]
    item_limit: int
    prompt_limit: int
    item_special: int = 2
    prompt_special: int = 64

    def long_items(self, texts: Sequence[str]) -> np.ndarray:
        """bool ``[texts]``: whether a text has more tokens than the limit."""
        return _long(texts, self.item_tokens_of, self.item_limit, self.item_special)

    def long_prompts(self, histories: Sequence[list[dict[str, Any]]]) -> np.ndarray:
        """bool ``[histories]``: whether the prompt of a history has more tokens than the limit."""
        out = []
        for start in range(0, len(histories), GROUP):
            prompts = self.prompts_of(list(histories[start : start + GROUP]))
            out.append(_long(prompts, self.prompt_tokens_of, self.prompt_limit, self.prompt_special))
        return np.concatenate(out) if out else np.zeros(0, dtype=bool)


def _long(texts: Sequence[str], count: Callable[[list[str]], list[int]], limit: int, special: int) -> np.ndarray:
    # Apart from special tokens, a token covers at least one byte of the text, so shorter texts need no counting.
    # (Compatibility decomposition in a tokenizer would break this; no tokenizer in the registry has it.)
    rows = [row for row, text in enumerate(texts) if len(text.encode()) + special > limit]
    long = np.zeros(len(texts), dtype=bool)
    for start in range(0, len(rows), GROUP):
        part = rows[start : start + GROUP]
        long[part] = np.array(count([texts[row] for row in part])) > limit
    return long
