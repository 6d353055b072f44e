"""Lengths of texts where the server's tokenizer is not here."""

from __future__ import annotations

import math

CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly."""


def rough_tokens(text: str) -> int:
    """About how many tokens a text has: its characters over four, rounded up."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
