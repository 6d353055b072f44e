"""What a profile claims, claim by claim: genres, eras, titles, persons, and themes; liked or not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from langptune.interpretability.tastes import Tastes, pattern
from langptune.interpretability.wording import COMMON, words

Kind = Literal["genre", "era", "title", "person", "theme"]

# A polarity holds for a clause: it ends with the sentence, or where a contrast begins.
CLAUSE = re.compile(r"[.!?;:\n]+(?=\s|$)|\b(?:but|however|although|though|while|whereas)\b", re.IGNORECASE)
NEGATION = re.compile(
    r"\b(?:dislik\w+|hat(?:e|es|ed)|avoid\w*|never|not|no interest|little interest|rather than|instead of|"
    r"uninterested|bored by|tired of)\b|n['’]t\b",
    re.IGNORECASE,
)
DECADE = re.compile(r"(?<!\d)(?:(?:early |mid-?|late )?((?:19|20)\d0)['’]?s|['’](\d0)s)\b")
SPELT = {"sixties": 1960, "seventies": 1970, "eighties": 1980, "nineties": 1990, "fifties": 1950, "forties": 1940}
PERSON = re.compile(r"\b[A-Z][a-z]+(?:[ ][A-Z](?:\.|[a-z]+)){1,2}\b")
QUOTED = re.compile(r"[\"“*]([^\"”*]{2,80})[\"”*]")
_EMPTY = (
    "user user's person taste tastes likes like liked loves love enjoys enjoy enjoyed prefers prefer preference "
    "preferences movies movie films film books book shows show favourite favorite genre genres theme themes era eras "
    "style styles interest interests interested watch watched watching read reading items item such also including "
    "appear appears seem seems tend tends based here these those some one more most very other"
)
EMPTY = COMMON | frozenset(_EMPTY.split())
"""Words of every profile, which claim nothing."""
THEME_WORDS = 2
"""Words beyond the empty ones that a clause needs to be a claim of its own."""


@dataclass(frozen=True)
class Claim:
    """One claim of a profile.

    text: the clause it stands in.
    value: what is claimed: a taste's name, a decade (``1990``), a title, a name, or the clause itself.
    liked: false where the clause denies it.
    """

    kind: Kind
    text: str
    value: str
    liked: bool


def clauses(text: str) -> list[str]:
    """The parts of a text that have a polarity of their own."""
    return [part.strip(" ,-*\t") for part in CLAUSE.split(text) if part.strip(" ,-*\t")]


def extract(profile: str, tastes: Tastes, titles: Mapping[str, int]) -> list[Claim]:
    """The claims of a profile, each once.

    Args:
        titles: every title of the catalogue, as ``title_key`` writes it -> item. A title of one word counts only in
            quotes, for it may be a word of the language.

    A clause that names no genre, era, title or person and says something beyond what all profiles say is one claim, of
    a theme.
    """
    out: dict[Claim, None] = {}
    for clause in clauses(profile):
        liked = NEGATION.search(clause) is None
        found: list[tuple[Kind, str]] = []
        named = _titles(clause, titles)
        rest = clause
        for spelt, key in named:
            found.append(("title", key))
            rest = rest.replace(spelt, " ")
        found += [("genre", tastes.names[at]) for at in tastes.in_text(rest)]
        found += [("era", str(decade)) for decade in _decades(rest)]
        found += [("person", name) for name in _persons(rest, tastes)]
        if not found and len([word for word in words(clause) if word not in EMPTY]) >= THEME_WORDS:
            found = [("theme", clause)]
        out |= {Claim(kind, clause, value, liked): None for kind, value in found}
    return list(out)


def title_key(title: str) -> str:
    """How titles are compared: their words, without case and punctuation."""
    return " ".join(words(title))


def _titles(clause: str, titles: Mapping[str, int]) -> list[tuple[str, str]]:
    """Titles in a clause: as written there, and their keys; the longest first, none within another."""
    from langptune.interpretability.wording import WORD

    marks = list(WORD.finditer(clause))
    taken = [False] * len(marks)
    out = []
    for length in range(min(len(marks), 10), 1, -1):
        for start in range(len(marks) - length + 1):
            span = marks[start : start + length]
            written = clause[span[0].start() : span[-1].end()]
            # A title starts with a capital; "love and war" in prose is none.
            if any(taken[start : start + length]) or not written[0].isupper():
                continue
            if (key := title_key(written)) in titles:
                taken[start : start + length] = [True] * length
                out.append((written, key))
    for quoted in QUOTED.findall(clause):
        key = title_key(quoted)
        if key in titles and all(key != known for _, known in out):
            out.append((quoted, key))
    return out


def _decades(clause: str) -> list[int]:
    found = [int(full) if full else 1900 + int(short) for full, short in DECADE.findall(clause)]
    return sorted({*found, *(decade for word, decade in SPELT.items() if re.search(rf"\b{word}\b", clause, re.I))})


def _persons(clause: str, tastes: Tastes) -> list[str]:
    """Names: two or three words with capitals, none of which names a taste or is a word of every profile."""
    out = []
    for match in PERSON.finditer(clause):
        parts = match[0].split()
        # The first word of a clause has a capital anyway.
        if parts[0].lower() in EMPTY or (match.start() == 0 and len(parts) > 2):
            parts = parts[1:]
        name = " ".join(parts)
        if len(parts) > 1 and not any(pattern(taste).search(name) for taste in tastes.names):
            out.append(name)
    return out
