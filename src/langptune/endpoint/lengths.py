"""Lengths of texts if the server's tokenizer is not available locally."""

from __future__ import annotations

import math

CHARACTERS_PER_TOKEN = 4
"""In English text, roughly."""


def rough_tokens(text: str) -> int:
    """Approximate number of tokens in a text: its characters over four, rounded up."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
