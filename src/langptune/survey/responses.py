"""Reads respondents' files: each file is either used or excluded for a stated reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langptune.config.base import validate
from langptune.errors import UserError, printable
from langptune.reading import read_plain
from langptune.survey.assignment import assign
from langptune.survey.schema import Codebook, Response, digest

LARGEST = 1_000_000
"""Limit on a file in bytes; a response of 200 questions has about 50,000."""

REASONS = {
    "unreadable": "not a JSON file, or larger than 1 MB",
    "malformed": "not a response of this version: it has an unknown key or answer",
    "foreign": "a response to another survey",
    "unknown question": "a question that the codebook does not have, or one answered twice",
    "altered assignment": "order or sides are not those that its seed draws",
    "duplicate": "the same response again: its id, or its answers and seed, are in an earlier file",
    "incomplete": "not all questions are answered",
    "failed attention check": "an attention check was not answered as its text asks",
    "too fast": "fewer seconds a question than the limit",
}
"""Reason of an exclusion -> its meaning; checked in this order, and a file counts under the first that applies."""


@dataclass(frozen=True)
class Excluded:
    """An excluded file, and the reason."""

    file: str
    reason: str
    detail: str


def read_responses(
    folder: Path | str, codebook: Codebook, seconds_per_question: float
) -> tuple[list[Response], list[Excluded]]:
    """All ``*.json`` files of a folder, in the order of their names.

    Args:
        seconds_per_question: a response with a lower average time per question is too fast.

    Returns:
        The valid responses, and the excluded files.

    Raises:
        UserError: there is no such folder, or it contains the codebook beside the responses.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; put the respondents' files into one")
    if (folder / "codebook.json").exists():
        raise UserError(f"{folder}: holds a codebook; put the respondents' files into a folder of their own")
    used, excluded, ids, contents = [], [], set(), set()
    for path in sorted(folder.glob("*.json")):
        try:
            response, data = _parse(path)
            _check_survey(response, codebook)
            content = digest({key: value for key, value in data.items() if key not in ("response", "comment")})
            if response.response in ids or content in contents:
                raise _Rejected("duplicate", f"response {response.response}")
            ids.add(response.response)
            contents.add(content)
            _check_answers(response, codebook, seconds_per_question)
        except _Rejected as error:
            excluded.append(Excluded(printable(path.name), error.reason, printable(error.detail)))
        else:
            used.append(response)
    return used, excluded


class _Rejected(Exception):
    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, " ".join(detail.split())[:300]


def _parse(path: Path) -> tuple[Response, dict[str, Any]]:
    try:
        data = json.loads(read_plain(path, LARGEST).decode("utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise _Rejected("unreadable", error.strerror or "") from None
    except (ValueError, RecursionError) as error:
        raise _Rejected("unreadable", str(error)) from None
    try:
        return validate(Response, data, path.name), data
    except UserError as error:
        raise _Rejected("malformed", str(error)) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys, of which some readers take the first value and others the last."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _Rejected("malformed", f"duplicate key '{key}'")
        out[key] = value
    return out


def _check_survey(response: Response, codebook: Codebook) -> None:
    """Check that the response is to this survey, with the order and sides that its seed draws."""
    if response.survey != codebook.survey:
        raise _Rejected("foreign", f"survey {response.survey[:40]}, not {codebook.survey}")
    known = {pair.question: pair for pair in codebook.pairs}
    questions = [answer.question for answer in response.answers]
    for question in questions:
        if question not in known or questions.count(question) > 1:
            raise _Rejected("unknown question", question)
    drawn = assign(
        response.seed,
        {pair.question: list(pair.roles) for pair in codebook.pairs},
        {pair.question: pair.repeats for pair in codebook.pairs if pair.repeats is not None},
    )
    left_out = set(known) - set(questions)
    if [(a.question, a.left, a.right) for a in response.answers] != [d for d in drawn if d[0] not in left_out]:
        raise _Rejected("altered assignment", f"seed {response.seed}")


def _check_answers(response: Response, codebook: Codebook, seconds_per_question: float) -> None:
    """Check that the response is complete, passes the attention checks, and was not too fast."""
    answers = {answer.question: answer for answer in response.answers}
    if len(answers) < len(codebook.pairs):
        raise _Rejected("incomplete", f"{len(answers)} of {len(codebook.pairs)} questions")
    for pair in codebook.pairs:
        if pair.kind == "check":
            answer = answers[pair.question]
            right = "a-much" if pair.roles[answer.left] == "instruction" else "b-much"
            if answer.preference != right:
                raise _Rejected("failed attention check", f"question {pair.question}: {answer.preference}, not {right}")
    if response.seconds < seconds_per_question * len(answers):
        raise _Rejected("too fast", f"{response.seconds} seconds for {len(answers)} questions")
