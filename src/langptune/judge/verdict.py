"""Reads the verdict in a judge's answer: exactly one allowed verdict in its place, or none. Nothing is guessed.

Models decorate their answers: ``**VERDICT: A**``, ``Final verdict: [[B]]``, an object in a code fence after a sentence.
Such forms are accepted. The word "verdict" must be present, and the verdict must come last. A quotation from a profile
is not a verdict: ``prompt.as_data`` rewrites that word in profiles, and quotes every line that ``label`` would accept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from langptune.config.judges import Judge

_OPEN, _CLOSE = r"[\s*_`~(\[{<]{0,12}", r"[\s*_`~)\]}>.!]{0,12}"
"""Decoration around a label; without quotation marks, because text in them is a quotation."""
_HEADING = (
    r"[\s*_`~#>\-]{0,12}(?:(?:so|thus|therefore|hence|here|is|my|the|our|final|overall)\b[\s,*_]{0,4})*"
    r"verdict(?=[\s*_`:=\u2013\u2014-]|$)[\s*_`]{0,6}(?:[:=\u2013\u2014-]|\bis\b)?[\s*_`]{0,6}:?"
)
"""The length of decoration is limited: adjacent unbounded runs would make a search polynomial in their length."""
_VERDICT = re.compile(rf"{_HEADING}{_OPEN}[\"']?(?:profile\s{{1,4}})?([A-Za-z0-9]+)[\"']?{_CLOSE}", re.I)
"""A line that is a verdict and nothing else."""
_HEADING_LINE = re.compile(_HEADING + r"[\s*_`]{0,6}", re.I)
_MENTION = re.compile(r"verdict\W{0,12}(?:is\W{1,12})?(?:profile\W{1,4})?([A-Za-z0-9]+)", re.I)
"""The word "verdict" anywhere, and the label after it."""
_BARE = re.compile(rf"{_OPEN}([A-Za-z0-9]+){_CLOSE}")
_KEY = re.compile(r'"verdict"\s*:', re.I)
_AFTER = re.compile(r"[\s`*]*")
STARTS = 200
"""Number of last opening brackets that are tried as the start of an object; each try may read to the end."""


def read(answer: str, finished: bool, judge: Judge) -> str | None:
    """``first``, ``second``, ``tie``, or None if the answer has no verdict in the form that the judge's entry requires.

    An answer that was cut has no verdict, because its continuation is unknown. An answer that also names another
    verdict has none.

    Args:
        answer: the answer without reasoning (``endpoint.answers``).
        finished: the judge ended its answer itself.
    """
    if not finished:
        return None
    labels, text = judge.answers.labels, answer.strip()
    if judge.answer == "word":
        found = label(text, labels)
    else:
        found = _from_lines(text, labels) if judge.answer == "line" else _from_json(text, labels)
        if {_named(word, labels) for word in _MENTION.findall(text)} - {None, found}:
            return None
    return labels.get(found) if found else None


def label(text: str, labels: Collection[str]) -> str | None:
    """The label that a text consists of, apart from Markdown, brackets and a full stop; None for any other text.

    Labels of one character are case-sensitive (``a`` is an article), others are not.
    """
    match = _BARE.fullmatch(text)
    return _named(match[1], labels) if match else None


def _named(word: str, labels: Collection[str]) -> str | None:
    if word in labels:
        return word
    near = [known for known in labels if len(known) > 1 and known.casefold() == word.casefold()]
    return near[0] if len(near) == 1 else None


def _from_lines(text: str, labels: Collection[str]) -> str | None:
    """The label in the last line (``VERDICT: A``), or in the last two (heading and label); code fences are ignored."""
    lines = [line for line in text.splitlines() if line.strip(" \t`*_~-")]
    last = lines[-1].strip() if lines else ""
    if match := _VERDICT.fullmatch(last):
        return _named(match[1], labels)
    return label(last, labels) if len(lines) > 1 and _HEADING_LINE.fullmatch(lines[-2].strip()) else None


def _from_json(text: str, labels: Collection[str]) -> str | None:
    """The verdict of the JSON object at the end of the text; prose may precede it, and a code fence enclose it."""
    if not _KEY.search(text):
        return None
    decoder, found = json.JSONDecoder(object_pairs_hook=_Pairs), None
    starts = [mark.start() for mark in re.finditer("{", text)]
    at = starts[-STARTS] if len(starts) > STARTS else 0
    while (at := text.find("{", at)) >= 0:
        try:
            pairs, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        # The key must be literal: a judge has no reason to escape it, but a quotation may.
        if isinstance(pairs, _Pairs) and len(_KEY.findall(text, at, end)) == 1 and _AFTER.fullmatch(text, end):
            values = [value for key, value in pairs if key.casefold() == "verdict"]
            found = values[0] if len(values) == 1 and isinstance(values[0], str) else None
        at = end
    return label(re.sub(r"(?i)^profile\s+", "", found.strip()), labels) if found else None


class _Pairs(list):
    """Keys and values of an object in order, including repeated keys."""
