"""Draws a survey: its users, its attention checks and repeats, and the opaque names of questions and profiles.

The users follow from the seed, which is public, as are data and code. Everything that could reveal the method of a
profile (names, ids, the order in the file, the profile beside an attention check) follows from a secret salt instead,
which only the codebook contains.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import polars as pl

from langptune.errors import UserError
from langptune.markup import markdown
from langptune.randomness import numbered
from langptune.survey.schema import CODEBOOK_SCHEMA, Codebook, Side, digest

INSTRUCTION = [
    "You will see pairs of short profiles, one pair at a time. Each pair is about one person. Above it is what "
    "that person chose, oldest first, with the ratings that they gave.",
    "Both profiles were written by a computer from such a history. Please judge how well each describes the taste of "
    "this person, which one is easier to read, and whether it claims something that the history does not support.",
    "There are no right answers, but please read both texts: now and then a text asks you for a certain answer, to see "
    "that it was read. You can go back and change answers at any time.",
]
ATTENTION = (
    "This text is not a profile. It is here to check that the texts are read. Please answer that this side describes "
    "the person's taste much better; what you answer to the other questions on this page does not matter."
)


@dataclass(frozen=True)
class Words:
    """The texts of the page before the questions."""

    title: str
    consent: Sequence[str]
    agreement: str
    contact: str
    language: str = "en"


def draw(
    titles: Sequence[str],
    sessions: pl.DataFrame,
    profiles: dict[str, pl.DataFrame],
    sides: dict[str, Side],
    words: Words,
    questions: int,
    checks: int,
    repeats: int,
    history_items: int,
    seed: int,
    salt: str,
) -> tuple[dict[str, Any], Codebook]:
    """The page's data and its codebook.

    Users are drawn at random from those whose two profiles differ: identical profiles allow no preference. The names of
    questions and profiles are derived from the salt, and sort the file, so that neither the page nor public files
    reveal the method of a profile.

    Args:
        titles: titles of the items, by item number.
        sessions: the evaluated sessions, with ``session``, ``history``, ``ratings``.
        profiles: ``reference`` and ``trained`` -> columns ``session``, ``sample``, ``profile``; sample 0 is shown.
        sides: ``reference`` and ``trained`` -> their titles and hashes.
        words: the texts of the page.
        questions: number of users; fewer if fewer profiles differ.
        checks: number of attention checks.
        repeats: number of pairs shown a second time with sides swapped.
        history_items: the most recent items of a history, shown oldest first.
        seed: seed of the drawn users.
        salt: 32 hexadecimal digits that respondents cannot know; ``new_salt`` makes one.

    Raises:
        UserError: no session has a profile by both methods, or no profiles differ.
    """
    shown = {
        role: dict(table.filter(pl.col("sample") == 0).select("session", "profile").iter_rows())
        for role, table in profiles.items()
    }
    histories = {row["session"]: row for row in sessions.select("session", "history", "ratings").to_dicts()}
    common = sorted(set(histories) & set(shown["reference"]) & set(shown["trained"]))
    if not common:
        raise UserError(
            "no evaluated session has a profile by both methods; give profiles of the same evaluation sample "
            f"({len(histories)} sessions, profiles of {len(shown['reference'])} and {len(shown['trained'])})"
        )
    differing = [s for s in common if shown["reference"][s].strip() != shown["trained"][s].strip()]
    if not differing:
        raise UserError(
            f"both methods wrote the same {len(common)} profiles, so there is nothing to prefer; a method that trains "
            "the decoder alone leaves the profiles as they were: choose one that trains the encoder"
        )
    rng = numbered(seed)
    order = [int(s) for s in rng.permutation(differing)]
    asked, spare = order[:questions], order[questions:] or order[:questions]
    secret = _Secret(salt)

    def pair(kind: str, at: int, session: int, texts: dict[str, str]) -> dict[str, Any]:
        ids = {secret.name(kind, at, role): role for role in texts}
        return {
            "question": secret.name(kind, at),
            "kind": kind,
            "session": session,
            "roles": {name: ids[name] for name in sorted(ids)},  # the order of opaque names reveals nothing
            # Whitespace around a text is invisible on the page, but might reveal the method.
            "texts": {name: texts[ids[name]].strip() for name in sorted(ids)},
        }

    both = ("reference", "trained")
    pairs = [pair("pair", at, s, {role: shown[role][s] for role in both}) for at, s in enumerate(asked)]
    for at in range(min(repeats, len(pairs))):
        again = {"question": secret.name("repeat", at), "kind": "repeat", "repeats": pairs[at]["question"]}
        pairs.append({**pairs[at], **again})
    for at in range(checks):
        session = spare[at % len(spare)]
        filler = shown[both[secret.coin("filler", at)]][session]
        pairs.append(pair("check", at, session, {"instruction": ATTENTION, "filler": filler}))
    pairs.sort(key=lambda question: question["question"])

    data = {
        "language": words.language,
        "title": words.title,
        "consent": list(words.consent),
        "agreement": words.agreement,
        "contact": words.contact,
        "instruction": INSTRUCTION,
        "pairs": [
            {
                "question": question["question"],
                "repeats": question.get("repeats"),
                "history": _history(histories[question["session"]], titles, history_items),
                "profiles": [{"id": name, "text": text} for name, text in question["texts"].items()],
            }
            for question in pairs
        ],
    }
    # The id depends on the roles: a codebook with other roles for the same page is another survey.
    # It depends on the salt, because otherwise anyone with the page could try all roles until the id matches.
    survey = digest(
        [data, [question["roles"] for question in pairs], {role: side.title for role, side in sides.items()}, salt]
    )
    codebook = Codebook.model_validate(
        {
            "schema": CODEBOOK_SCHEMA,
            "survey": survey,
            "title": words.title,
            "language": words.language,
            "seed": seed,
            "salt": salt,
            **{role: side.model_dump() for role, side in sides.items()},
            "sessions": len(common),
            "identical": len(common) - len(differing),
            "pairs": pairs,
        }
    )
    return {"survey": survey, **data}, codebook


def describe(codebook: Codebook) -> str:
    """The codebook as readable Markdown; every text is escaped."""
    asked = len(codebook.asked())
    out = [
        f"# Codebook: {markdown(codebook.title)}",
        "",
        f"Survey `{codebook.survey}`, seed {codebook.seed}. **Not for respondents: it says which profile is whose.**",
        "",
        f"- reference: {markdown(codebook.reference.title)}",
        f"- trained: {markdown(codebook.trained.title)}",
        f"- {asked} users drawn at random from {codebook.sessions - codebook.identical} whose two profiles differ; "
        f"{codebook.identical} of {codebook.sessions} have the same profile by both methods and are not asked about",
        f"- mixed in: {sum(p.kind == 'check' for p in codebook.pairs)} attention checks, "
        f"{sum(p.kind == 'repeat' for p in codebook.pairs)} pairs shown again with sides swapped",
        "",
        "| question | kind | session | profile | is | text |",
        "| --- | --- | ---: | --- | --- | --- |",
    ]
    for pair in codebook.pairs:
        kind = pair.kind if pair.repeats is None else f"{pair.kind} of `{pair.repeats}`"
        for name, role in pair.roles.items():
            text = markdown(pair.texts[name]) or "(empty)"
            out.append(f"| `{pair.question}` | {kind} | {pair.session} | `{name}` | {role} | {text} |")
    return "\n".join(out) + "\n"


def new_salt() -> str:
    """32 random hexadecimal digits from the system's cryptographic generator."""
    return secrets.token_hex(16)


class _Secret:
    """Names and random bits that nobody can compute without the salt: HMAC-SHA256 of their purpose."""

    def __init__(self, salt: str):
        self._key = bytes.fromhex(salt)
        self._given: set[str] = set()

    def _digest(self, *what: str | int) -> str:
        return hmac.new(self._key, json.dumps(what).encode(), hashlib.sha256).hexdigest()

    def name(self, *what: str | int) -> str:
        """8 hexadecimal digits, unique in this survey."""
        name = next(name for turn in count() if (name := self._digest(*what, turn)[:8]) not in self._given)
        self._given.add(name)
        return name

    def coin(self, *what: str | int) -> int:
        """A random bit, 0 or 1."""
        return int(self._digest(*what), 16) % 2


def _history(row: dict[str, Any], titles: Sequence[str], most: int) -> list[list[str | None]]:
    """Title and rating of the most recent items, oldest first; null if a rating is not finite."""
    pairs = list(zip(row["history"], row["ratings"], strict=True))[-most:]
    return [[titles[item], f"{rating:g}" if np.isfinite(rating) else None] for item, rating in pairs]
