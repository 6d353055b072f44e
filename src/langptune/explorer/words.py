"""Two texts against each other, word by word."""

from __future__ import annotations

import difflib
import re

from langptune.alike import affordable

Part = tuple[str, str, str]
"""A kind and the part's text in the first and in the second: ``=`` (in both, but for spacing), ``-`` (only in the
first), ``+`` (only in the second)."""

ALIKE = 0.25
"""Texts that have less in common (difflib's ratio) differ as a whole: marks around each "the" would tell nothing."""

STEPS = 20_000_000
"""Most steps of a comparison (``alike``); profiles of 800 words keep to it, and what does not differs as a whole."""

_WORD = re.compile(r"\s+|\w+(?:['’]\w+)*\s*|[^\w\s]\s*")


def differences(before: str, after: str) -> list[Part]:
    """Both texts in one, cut where they differ.

    Words are compared as they are written, their spacing left aside. The first texts of all parts put together are
    ``before``, the second ones ``after``.
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
