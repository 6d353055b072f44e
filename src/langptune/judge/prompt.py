"""What a judge is shown. Profiles and titles are data of strangers: they can neither end a block nor give the verdict.

Four measures, any of which would do for most texts:

* each block stands between two lines with a mark that no text in it holds. It is a hash of the texts themselves (and a
  seed), so nobody who writes a profile can put it in; and it is the same in every run, so that answers can be kept;
* every line of a block begins with ``|``, so none can pass for the end of the block;
* what looks like a special token of a chat format (``<|im_end|>``, ``[INST]``), like such a line, or like a verdict is
  written otherwise; control and formatting characters are left out;
* the verdict is read from the judge's answer alone (``verdict.read``), and a quotation of a text holds none.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from langptune.config.judges import Judge
from langptune.data.templates import compile_template, render
from langptune.endpoint.answers import Request
from langptune.errors import UserError
from langptune.judge import verdict
from langptune.prompts import without_special

_LETTERS = 8
"""Of the mark in the lines around a block. Letters: tokenizers take digits one by one."""
ITEM = 300
"""Characters of an item that are shown."""
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn"}


@dataclass(frozen=True)
class Pair:
    """Two profiles of one session: of the method that is judged, and of the reference.

    history: the items as text, oldest first, each with the user's rating in words.
    """

    session: int
    history: tuple[tuple[str, str], ...]
    method: str
    reference: str


@dataclass(frozen=True)
class Question:
    """One pair in one order, as it is sent. ``dropped``: oldest items left out to make it fit."""

    session: int
    swapped: bool
    request: Request
    dropped: int


def as_data(text: str, limit: int, labels: Collection[str] = ()) -> str:
    """A text of strangers as it may stand in a block: at most ``limit`` characters, nothing with a meaning to us.

    Args:
        labels: the judge's answers; a line that would be read as one of them is put in quotation marks.
    """
    plain = text[:limit] + ("..." if len(text) > limit else "")
    lines = [
        "".join(c for c in line.replace("\t", " ") if unicodedata.category(c) not in _HIDDEN).rstrip()
        for line in plain.splitlines()
    ]
    plain = without_special("\n".join(line for line in lines if line))
    plain = re.sub(r"(?i)(ver)(dict)", r"\1-\2", plain)
    plain = re.sub(r"={2,}", "=", plain)
    return "\n".join(f'"{line}"' if _is_label(line, labels) else line for line in plain.split("\n"))


def _is_label(line: str, labels: Collection[str]) -> bool:
    return line.strip(" .") in labels or verdict.label(line, labels) is not None


def nonce(seed: int, session: int, texts: Sequence[str]) -> str:
    """The mark around the blocks: a hash of what is in them, in no order, so that it is the same for both orders.

    One that a text holds, which chance alone could bring about, is passed over.
    """
    count = 0
    while True:
        told = json.dumps([seed, session, sorted(texts), count])
        digest = hashlib.sha256(told.encode()).digest()
        found = "".join(chr(ord("a") + byte % 26) for byte in digest[:_LETTERS])
        if not any(found in text for text in texts):
            return found
        count += 1


def block(name: str, text: str, mark: str) -> str:
    """One text between its two lines."""
    body = "\n".join(f"| {line}" for line in text.splitlines() or ["(empty)"])
    return f"== begin {name} {mark} ==\n{body}\n== end {name} {mark} =="


def questions(
    pair: Pair, judge: Judge, name: str, seed: int, context: int, fold_system: bool = False
) -> list[Question]:
    """A pair in both orders: the method's profile first, then the reference's.

    Args:
        name: the judge's, for errors.
        context: of its model, in tokens; the oldest items are left out until the question fits, by its characters.
        fold_system: the model takes no system message: its text goes before the user's.

    Raises:
        UserError: a template that fails, or a question that does not fit even with one item.
    """
    where = f"judges.yaml: {name}"
    history = [f"{as_data(item, ITEM).replace(chr(10), ' ')} ({rated})" for item, rated in pair.history]
    labels = judge.answers.labels
    texts = [as_data(text, judge.max_profile, labels) for text in (pair.method, pair.reference)]
    mark = nonce(seed, pair.session, [*history, *texts])
    system = judge.instruction.system
    user = compile_template(judge.instruction.user, where)
    start = (
        [("system", render(compile_template(system, where), where, answers=judge.answers).strip())] if system else []
    )
    for dropped in range(len(history)):
        shown = block("history", "\n".join(f"- {item}" for item in history[dropped:]), mark)
        out = []
        for swapped in (False, True):
            first, second = reversed(texts) if swapped else texts
            message = render(
                user,
                where,
                history=shown,
                first=block(f"profile {judge.answers.first}", first, mark),
                second=block(f"profile {judge.answers.second}", second, mark),
                answers=judge.answers,
            )
            messages = (*start, ("user", message.strip()))
            if fold_system:
                messages = (("user", "\n\n".join(text for _, text in messages)),)
            # A verdict in one word is one line: nothing after it is waited for.
            stop = "\n" if judge.answer == "word" else None
            request = Request(messages, judge.max_tokens, judge.temperature, seed, stop)
            out.append(Question(pair.session, swapped, request, dropped))
        if max(q.request.tokens for q in out) + judge.max_tokens <= context:
            return out
    raise UserError(
        f"{where}: session {pair.session}: a question of about {out[0].request.tokens} tokens does not fit into the "
        f"{context} of model '{judge.model}'; set a smaller max_profile, max_tokens or history_items"
    )


def cut(pair: Pair, judge: Judge) -> tuple[int, int]:
    """How many of a pair's profiles, and of its items, are longer than the judge is shown."""
    profiles = sum(len(text) > judge.max_profile for text in (pair.method, pair.reference))
    return profiles, sum(len(item) > ITEM for item, _ in pair.history)
