"""Reading respondents' files: every one is either used or excluded for a stated reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langptune.config.base import validate
from langptune.errors import UserError, printable
from langptune.files import read_plain
from langptune.survey.assignment import assign
from langptune.survey.schema import Codebook, Response, digest

LARGEST = 1_000_000
"""Bytes; a response of 200 questions has about 50,000."""

REASONS = {
    "unreadable": "not a JSON file, or larger than 1 MB",
    "malformed": "not a response of this version: a key or an answer that there is not",
    "foreign": "a response to another survey",
    "unknown question": "a question that the codebook does not have, or one answered twice",
    "altered assignment": "order or sides are not those that its seed draws",
    "duplicate": "the same response again: its id, or the same answers and seed, stood in a file before it",
    "incomplete": "not all questions are answered",
    "failed attention check": "an attention check was not answered as its text asks",
    "too fast": "fewer seconds a question than the limit",
}
"""Why a file is left out -> what that means; tried in this order, and a file counts under the first that applies."""


@dataclass(frozen=True)
class Excluded:
    """A file that is left out, and why."""

    file: str
    reason: str
    detail: str


def read_responses(
    folder: Path | str, codebook: Codebook, seconds_per_question: float
) -> tuple[list[Response], list[Excluded]]:
    """All ``*.json`` files of a folder, in the order of their names.

    Args:
        seconds_per_question: a response that took less a question, on average over all, is too fast.

    Returns:
        Those that are used, and those that are not.

    Raises:
        UserError: no such folder, or one in which survey files lie between the responses.
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
            _belongs(response, codebook)
            content = digest({key: value for key, value in data.items() if key not in ("response", "comment")})
            if response.response in ids or content in contents:
                raise _Left("duplicate", f"response {response.response}")
            ids.add(response.response)
            contents.add(content)
            _holds(response, codebook, seconds_per_question)
        except _Left as left:
            excluded.append(Excluded(printable(path.name), left.reason, printable(left.detail)))
        else:
            used.append(response)
    return used, excluded


class _Left(Exception):
    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, " ".join(detail.split())[:300]


def _parse(path: Path) -> tuple[Response, dict[str, Any]]:
    try:
        data = json.loads(read_plain(path, LARGEST).decode("utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise _Left("unreadable", error.strerror or "") from None
    except (ValueError, RecursionError) as error:
        raise _Left("unreadable", str(error)) from None
    try:
        return validate(Response, data, path.name), data
    except UserError as error:
        raise _Left("malformed", str(error)) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once: of two values, one reader would take the first and another the last."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _Left("malformed", f"key '{key}' stands twice")
        out[key] = value
    return out


def _belongs(response: Response, codebook: Codebook) -> None:
    """The response is to this survey, and shows what its seed would have shown."""
    if response.survey != codebook.survey:
        raise _Left("foreign", f"survey {response.survey[:40]}, not {codebook.survey}")
    known = {pair.question: pair for pair in codebook.pairs}
    questions = [answer.question for answer in response.answers]
    for question in questions:
        if question not in known or questions.count(question) > 1:
            raise _Left("unknown question", question)
    drawn = assign(
        response.seed,
        {pair.question: list(pair.roles) for pair in codebook.pairs},
        {pair.question: pair.repeats for pair in codebook.pairs if pair.repeats is not None},
    )
    left_out = set(known) - set(questions)
    if [(a.question, a.left, a.right) for a in response.answers] != [d for d in drawn if d[0] not in left_out]:
        raise _Left("altered assignment", f"seed {response.seed}")


def _holds(response: Response, codebook: Codebook, seconds_per_question: float) -> None:
    """The response is whole, was read, and took its time."""
    answers = {answer.question: answer for answer in response.answers}
    if len(answers) < len(codebook.pairs):
        raise _Left("incomplete", f"{len(answers)} of {len(codebook.pairs)} questions")
    for pair in codebook.pairs:
        if pair.kind == "check":
            answer = answers[pair.question]
            right = "a-much" if pair.roles[answer.left] == "instruction" else "b-much"
            if answer.preference != right:
                raise _Left("failed attention check", f"question {pair.question}: {answer.preference}, not {right}")
    if response.seconds < seconds_per_question * len(answers):
        raise _Left("too fast", f"{response.seconds} seconds for {len(answers)} questions")
