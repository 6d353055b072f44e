"""How long a comparison by ``difflib`` may take: up to the cube of the length, for texts that repeat a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def affordable(one: Sequence[Hashable], other: Sequence[Hashable], most: int) -> bool:
    """Whether difflib compares two sequences in at most about ``most`` steps, of some 30 ns each.

    It goes over the pairs of equal elements once for each block that it finds, and there may be as many blocks as the
    shorter sequence has elements. Counting them takes time in proportion to the lengths.
    """
    mine, theirs = Counter(one), Counter(other)
    pairs = sum(count * theirs[element] for element, count in mine.items())
    return (len(one) + len(other) + pairs) * min(len(one), len(other)) <= most
