"""Similar texts, and how long a comparison by ``difflib`` may take: up to the cube of the length, for texts that repeat
a part."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Hashable, Sequence

_CHOICES, _LISTED, _STEPS = 1000, 100, 300_000
"""Of a hint: names that are compared, names (and characters of one) that are listed, steps of comparing one."""


def affordable(one: Sequence[Hashable], other: Sequence[Hashable], most: int) -> bool:
    """Whether difflib compares two sequences in at most about ``most`` steps, of some 30 ns each.

    It goes over the pairs of equal elements once for each block that it finds, and there may be as many blocks as the
    shorter sequence has elements. Counting them takes time in proportion to the lengths.
    """
    mine, theirs = Counter(one), Counter(other)
    pairs = sum(count * theirs[element] for element, count in mine.items())
    return (len(one) + len(other) + pairs) * min(len(one), len(other)) <= most


def nearest(word: str, choices: list[str]) -> str:
    """A hint such as ``; did you mean 'ndcg'?``, or the valid choices where nothing is near.

    Choices may be the names in a file of strangers: the hint has a line's length, and no long name is compared.
    """
    known = [choice for choice in choices[:_CHOICES] if affordable(str(word), choice, _STEPS)]
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    shown = sorted(choice for choice in choices[:_CHOICES] if len(choice) <= _LISTED)[:_LISTED]
    more = f" and {len(choices) - len(shown)} more" if len(choices) > len(shown) else ""
    return f"; valid: {', '.join(shown)}{more}" if shown else ""
