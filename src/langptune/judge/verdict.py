"""The verdict in a judge's answer: exactly one that is allowed, where it must stand, or none. Nothing is guessed."""

from __future__ import annotations

import json
import re

from langptune.config.judges import Judge

_FENCE = re.compile(r"^```(?:json)?\s*\n(.*)\n```$", re.S)


def read(answer: str, finished: bool, judge: Judge) -> str | None:
    """``first``, ``second``, ``tie``, or None where the answer holds no verdict as the judge's entry asks for it.

    Only the answer is read. An answer that was cut is none, for what would have followed is unknown.

    Args:
        finished: the judge ended its answer itself.
    """
    if not finished:
        return None
    text = answer.strip()
    if judge.answer == "word":
        found = text.removesuffix(".")
    elif judge.answer == "line":
        lines = text.splitlines()
        told = re.fullmatch(r"VERDICT: *([A-Za-z0-9]+)", lines[-1].strip()) if lines else None
        # Two verdicts are none: one may be a quotation.
        found = told[1] if told and len(re.findall("verdict", text, re.I)) == 1 else ""
    else:
        found = _from_json(text)
    return judge.answers.labels.get(found)


def _from_json(text: str) -> str:
    fenced = _FENCE.match(text)
    try:
        pairs = json.loads(fenced[1] if fenced else text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        return ""
    keys = [key for key, _ in pairs]
    told = dict(pairs).get("verdict")
    fits = keys.count("verdict") == 1 and set(keys) <= {"verdict", "reason"}
    return told if fits and isinstance(told, str) else ""
