"""Order of questions and sides of profiles for one respondent, from one seed.

The questionnaire draws them in the browser and the analysis draws them again, so that a response whose sides were
changed afterwards is excluded. ``page.SCRIPT`` contains the same algorithm in JavaScript; tests/browser/test_survey.py
compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

_WORD = 0xFFFFFFFF


def mulberry32(seed: int) -> Iterator[int]:
    """Uniform 32-bit integers (T. Ettinger's mulberry32, public domain): short, and identical in any language."""
    state = seed & _WORD
    while True:
        state = (state + 0x6D2B79F5) & _WORD
        t = ((state ^ (state >> 15)) * (state | 1)) & _WORD
        t ^= (t + (((t ^ (t >> 7)) * (t | 61)) & _WORD)) & _WORD
        yield t ^ (t >> 14)


def assign(seed: int, profiles: Mapping[str, Sequence[str]], repeats: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Draw the order of questions and the sides of profiles.

    Sides are drawn with equal probability; a repeat has its original's sides swapped. The order is random, except that
    a repeat is placed towards the end opposite to its original, at least a quarter of the questionnaire away if
    possible.

    Args:
        seed: the respondent's seed, 32 bits.
        profiles: question -> its two profiles, in the order of the file.
        repeats: question -> the question that it repeats.

    Returns:
        (question, profile on the left, profile on the right), in the order shown.
    """
    draw = mulberry32(seed)

    def below(n: int) -> int:
        return next(draw) * n >> 32

    sides = {}
    for question, (first, second) in profiles.items():
        if question not in repeats:
            sides[question] = (second, first) if next(draw) >> 31 else (first, second)
    order = list(sides)
    for at in range(len(order) - 1, 0, -1):
        other = below(at + 1)
        order[at], order[other] = order[other], order[at]
    for question, original in repeats.items():
        sides[question] = sides[original][::-1]
        far = below(len(order) // 4 + 1)
        order.insert(len(order) - far if order.index(original) < len(order) / 2 else far, question)
    return [(question, *sides[question]) for question in order]
