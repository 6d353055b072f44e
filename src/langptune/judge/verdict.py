"""The verdict in a judge's answer: exactly one that is allowed, where it must stand, or none. Nothing is guessed.

Models decorate what they are asked for: ``**VERDICT: A**``, ``Final verdict: [[B]]``, an object in a code fence after
a sentence. Such forms are read. The word "verdict" must be written out, and the verdict must come last. What a judge
quotes from a profile is none: ``prompt.as_data`` writes that word otherwise, and puts every line that ``label`` would
read into quotation marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from langptune.config.judges import Judge

_OPEN, _CLOSE = r"[\s*_`~(\[{<]{0,12}", r"[\s*_`~)\]}>.!]{0,12}"
"""Around a label; no quotation marks: what stands in them is a quotation."""
_HEADING = (
    r"[\s*_`~#>\-]{0,12}(?:(?:so|thus|therefore|hence|here|is|my|the|our|final|overall)\b[\s,*_]{0,4})*"
    r"verdict(?=[\s*_`:=\u2013\u2014-]|$)[\s*_`]{0,6}(?:[:=\u2013\u2014-]|\bis\b)?[\s*_`]{0,6}:?"
)
"""The length of decoration is limited: a search through adjacent runs of it takes a power of their length."""
_VERDICT = re.compile(rf"{_HEADING}{_OPEN}[\"']?(?:profile\s{{1,4}})?([A-Za-z0-9]+)[\"']?{_CLOSE}", re.I)
"""A line that is a verdict and nothing else."""
_HEADING_LINE = re.compile(_HEADING + r"[\s*_`]{0,6}", re.I)
_SAID = re.compile(r"verdict\W{0,12}(?:is\W{1,12})?(?:profile\W{1,4})?([A-Za-z0-9]+)", re.I)
"""What the word is followed by, anywhere."""
_BARE = re.compile(rf"{_OPEN}([A-Za-z0-9]+){_CLOSE}")
_KEY = re.compile(r'"verdict"\s*:', re.I)
_AFTER = re.compile(r"[\s`*]*")
STARTS = 200
"""Opening brackets, from the last one back, at which an object may begin: each is read on from, perhaps to the end."""


def read(answer: str, finished: bool, judge: Judge) -> str | None:
    """``first``, ``second``, ``tie``, or None where the answer holds no verdict as the judge's entry asks for it.

    Only the answer is read. An answer that was cut is none, for what would have followed is unknown. One that names
    another verdict as well is none.

    Args:
        answer: without reasoning (``endpoint.answers``).
        finished: the judge ended its answer itself.
    """
    if not finished:
        return None
    labels, text = judge.answers.labels, answer.strip()
    if judge.answer == "word":
        found = label(text, labels)
    else:
        found = _from_lines(text, labels) if judge.answer == "line" else _from_json(text, labels)
        if {_named(word, labels) for word in _SAID.findall(text)} - {None, found}:
            return None
    return labels.get(found) if found else None


def label(text: str, labels: Collection[str]) -> str | None:
    """The label that a text is, but for Markdown, brackets and a full stop around it; None if it is anything else.

    Labels of one character are taken as they are written (``a`` is an article), others in any case.
    """
    told = _BARE.fullmatch(text)
    return _named(told[1], labels) if told else None


def _named(word: str, labels: Collection[str]) -> str | None:
    if word in labels:
        return word
    near = [known for known in labels if len(known) > 1 and known.casefold() == word.casefold()]
    return near[0] if len(near) == 1 else None


def _from_lines(text: str, labels: Collection[str]) -> str | None:
    """The last line, ``VERDICT: A``; or the last two, a heading and a label. A closing code fence is no line."""
    lines = [line for line in text.splitlines() if line.strip(" \t`*_~-")]
    last = lines[-1].strip() if lines else ""
    if told := _VERDICT.fullmatch(last):
        return _named(told[1], labels)
    return label(last, labels) if len(lines) > 1 and _HEADING_LINE.fullmatch(lines[-2].strip()) else None


def _from_json(text: str, labels: Collection[str]) -> str | None:
    """The verdict of the JSON object that ends the text; a code fence may stand around it, prose before it."""
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
        # As written: an escaped key is nothing that a judge was asked for, but may well be a quotation.
        if isinstance(pairs, _Pairs) and len(_KEY.findall(text, at, end)) == 1 and _AFTER.fullmatch(text, end):
            told = [value for key, value in pairs if key.casefold() == "verdict"]
            found = told[0] if len(told) == 1 and isinstance(told[0], str) else None
        at = end
    return label(re.sub(r"(?i)^profile\s+", "", found.strip()), labels) if found else None


class _Pairs(list):
    """Keys and values of an object in their order, repeated keys included."""
