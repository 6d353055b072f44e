"""The prompt of a judge. Profiles and titles are untrusted: they can neither end a block nor inject a verdict.

Four measures, each of which suffices for most texts:

* each block is delimited by two lines with a mark that no text in it contains. The mark is a hash of the texts (and a
  seed), so the author of a profile cannot include it; and it is the same in every run, so that answers can be cached;
* every line of a block begins with ``|``, so no line can imitate the end of the block;
* anything that looks like a special token of a chat format (``<|im_end|>``, ``[INST]``), like a delimiter, or like a
  verdict is rewritten; control and formatting characters are removed;
* the verdict is read from the judge's answer only (``verdict.read``), and a quotation of a text contains none.
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
"""Length of the mark in the lines around a block. It has letters only: tokenizers split digits."""
ITEM = 300
"""Limit on an item in characters."""
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn"}


@dataclass(frozen=True)
class Pair:
    """Two profiles of one session: the judged method's and the reference's.

    history: the items as text, oldest first, each with the user's rating in words.
    """

    session: int
    history: tuple[tuple[str, str], ...]
    method: str
    reference: str


@dataclass(frozen=True)
class Question:
    """One pair in one order, as a request. ``dropped``: number of oldest items left out to fit the context."""

    session: int
    swapped: bool
    request: Request
    dropped: int


def as_data(text: str, limit: int, labels: Collection[str] = ()) -> str:
    """An untrusted text made safe for a block: at most ``limit`` characters, and no delimiters, tokens or verdicts.

    Args:
        labels: the judge's answers; a line that would be read as one of them is quoted.
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
    """The mark around the blocks: a hash of the sorted texts, so that it is the same for both orders.

    A mark that occurs in a text, which can only happen by chance, is skipped.
    """
    count = 0
    while True:
        content = json.dumps([seed, session, sorted(texts), count])
        digest = hashlib.sha256(content.encode()).digest()
        found = "".join(chr(ord("a") + byte % 26) for byte in digest[:_LETTERS])
        if not any(found in text for text in texts):
            return found
        count += 1


def block(name: str, text: str, mark: str) -> str:
    """One text between its two delimiters."""
    body = "\n".join(f"| {line}" for line in text.splitlines() or ["(empty)"])
    return f"== begin {name} {mark} ==\n{body}\n== end {name} {mark} =="


def questions(
    pair: Pair, judge: Judge, name: str, seed: int, context: int, fold_system: bool = False
) -> list[Question]:
    """A pair in both orders: the method's profile first, then the reference's.

    Args:
        name: name of the judge, for errors.
        context: context of its model, in tokens; the oldest items are left out until the question fits (estimated from
            characters).
        fold_system: the model does not support system messages: the text is put before the user's message.

    Raises:
        UserError: a template fails, or a question does not fit even with one item.
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
            # A verdict in one word is one line, so generation stops there.
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
    """How many of a pair's profiles, and of its items, are cut at their limits."""
    profiles = sum(len(text) > judge.max_profile for text in (pair.method, pair.reference))
    return profiles, sum(len(item) > ITEM for item, _ in pair.history)
