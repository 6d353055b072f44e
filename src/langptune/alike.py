"""A bound on the cost of ``difflib``, which is cubic in the length for repetitive texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def affordable(one: Sequence[Hashable], other: Sequence[Hashable], most: int) -> bool:
    """Whether difflib compares two sequences in at most about ``most`` steps, of some 30 ns each.

    It visits the pairs of equal elements once for each block that it finds, and there may be as many blocks as the
    shorter sequence has elements. Counting the pairs takes linear time.
    """
    mine, theirs = Counter(one), Counter(other)
    pairs = sum(count * theirs[element] for element, count in mine.items())
    return (len(one) + len(other) + pairs) * min(len(one), len(other)) <= most
