"""The differences of two texts, word by word."""

from __future__ import annotations

import difflib
import re

from langptune.alike import affordable

Part = tuple[str, str, str]
"""A kind, and the part's text in the first and in the second text: ``=`` (in both, spacing aside), ``-`` (only in the
first), ``+`` (only in the second)."""

ALIKE = 0.25
"""Texts with a lower similarity (difflib's ratio) differ as a whole: marks around each "the" would not help."""

STEPS = 20_000_000
"""Limit on the steps of a comparison (``alike``): enough for profiles of 800 words. Longer texts differ as a whole."""

_WORD = re.compile(r"\s+|\w+(?:['’]\w+)*\s*|[^\w\s]\s*")


def differences(before: str, after: str) -> list[Part]:
    """The parts in which two texts agree or differ, in order.

    Words are compared by their spelling, without their spacing. The first texts of all parts joined are ``before``, the
    second texts ``after``.
    """
    ours, theirs = _WORD.findall(before), _WORD.findall(after)
    one, other = [word.strip() for word in ours], [word.strip() for word in theirs]
    match = difflib.SequenceMatcher(None, one, other, autojunk=False)
    codes = [("replace", 0, len(ours), 0, len(theirs))]
    if one == other:
        codes = [("equal", 0, len(ours), 0, len(theirs))]
    elif affordable(one, other, STEPS) and match.ratio() >= ALIKE:
        codes = match.get_opcodes()
    out: list[Part] = []
    for tag, a, b, c, d in codes:
        mine, other = "".join(ours[a:b]), "".join(theirs[c:d])
        parts = [("=", mine, other)] if tag == "equal" else [("-", mine, ""), ("+", "", other)]
        out += [part for part in parts if part[1] or part[2]]
    return out
