"""Two texts against each other, word by word."""

from __future__ import annotations

import difflib
import re

Part = tuple[str, str, str]
"""A kind and the part's text in the first and in the second: ``=`` (in both, but for spacing), ``-`` (only in the
first), ``+`` (only in the second)."""

ALIKE = 0.25
"""Texts that have less in common (difflib's ratio) differ as a whole: marks around each "the" would tell nothing."""

_WORD = re.compile(r"\s+|\w+(?:['’]\w+)*\s*|[^\w\s]\s*")


def differences(before: str, after: str) -> list[Part]:
    """Both texts in one, cut where they differ.

    Words are compared as they are written, their spacing left aside. The first texts of all parts put together are
    ``before``, the second ones ``after``.
    """
    ours, theirs = _WORD.findall(before), _WORD.findall(after)
    match = difflib.SequenceMatcher(None, [w.strip() for w in ours], [w.strip() for w in theirs], autojunk=False)
    codes = match.get_opcodes() if match.ratio() >= ALIKE else [("replace", 0, len(ours), 0, len(theirs))]
    out: list[Part] = []
    for tag, a, b, c, d in codes:
        mine, other = "".join(ours[a:b]), "".join(theirs[c:d])
        parts = [("=", mine, other)] if tag == "equal" else [("-", mine, ""), ("+", "", other)]
        out += [part for part in parts if part[1] or part[2]]
    return out
