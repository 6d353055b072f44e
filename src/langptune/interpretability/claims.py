"""What a profile claims, claim by claim: genres, eras, titles, persons, and themes; liked or not."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from langptune.interpretability.tastes import Tastes, pattern
from langptune.interpretability.wording import COMMON, WORD, words

Kind = Literal["genre", "era", "title", "person", "theme"]

# A polarity ends with the sentence, or where a contrast begins.
CLAUSE = re.compile(r"[.!?;:\n]+(?=\s|$)|\b(?:but|however|although|though|while|whereas)\b", re.IGNORECASE)
NEGATION = re.compile(
    r"\b(?:dislik\w+|hat(?:e|es|ed)|avoid\w*|never|not(?! (?:only|just|merely)\b)|no interest|little interest|"
    r"(?P<apart>rather than|instead of)|uninterested|bored by|tired of)\b|n['’]t\b",
    re.IGNORECASE,
)
LIKING = re.compile(
    r"\b(?:lik(?:e|es|ed|ing)|lov(?:e|es|ed|ing)|enjoy\w*|prefer\w*|favou?rs?|admir\w+|appreciat\w+|drawn to)\b",
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
"""Words beyond the empty ones that a statement needs to be a claim of its own."""
ARTICLES = ("the", "a", "an")
LONGEST = 12
"""Words of the longest title that is looked for."""
FIRST, MOST = 0xE000, 6400
"""Where the private characters of Unicode begin, and how many there are: each stands for one title of a text."""
PRIVATE = re.compile("[\ue000-\uf8ff]")


@dataclass(frozen=True)
class Claim:
    """One claim of a profile.

    text: the statement it stands in.
    value: what is claimed: a taste's name, a decade (``1990``), a title, a name, or the statement itself.
    liked: false where the statement denies it.
    """

    kind: Kind
    text: str
    value: str
    liked: bool


class Titles:
    """The titles of a catalogue, to be found in prose.

    A title of one word counts only in quotes, for it may be a word of the language. Of several words it must begin with
    a capital or a figure; an article before it may be written small, or be missing.
    """

    def __init__(self, titles: Sequence[str]):
        keys = [title_key(title).split() for title in titles]
        self.known = {" ".join(key) for key in keys}
        parts = {" ".join(key[at : at + n]) for key in keys for n in (2, 3) for at in range(len(key) - n + 1)}
        self.parts = frozenset(parts)
        """Two or three words in a row of some title: "Star Trek" is no person."""

    def mask(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """The text with one private character in place of each title, and per title how it was written and its key.

        What a title says is neither a claim nor a denial, and its full stops end no sentence.
        """
        plain = PRIVATE.sub("", text)
        found = sorted(self._found(plain))
        out, end, named = [], 0, []
        for start, stop, key in found[:MOST]:
            out += [plain[end:start], chr(FIRST + len(named))]
            named.append((plain[start:stop], key))
            end = stop
        return "".join([*out, plain[end:]]), named

    def _found(self, text: str) -> list[tuple[int, int, str]]:
        """Start, end and key of every title; the longest first, none within another."""
        marks = list(WORD.finditer(text))
        taken = [False] * len(marks)
        out = []
        for length in range(min(len(marks), LONGEST), 1, -1):
            for at in range(len(marks) - length + 1):
                span = marks[at : at + length]
                head = span[1] if span[0][0].lower() in ARTICLES else span[0]
                # A title starts with a capital; "love and war" in prose is none.
                if any(taken[at : at + length]) or not (head[0][0].isupper() or head[0][0].isdigit()):
                    continue
                written = text[span[0].start() : span[-1].end()]
                if (key := self._key(written)) is not None:
                    taken[at : at + length] = [True] * length
                    out.append((span[0].start(), span[-1].end(), key))
        for match in QUOTED.finditer(text):
            start, stop = match.span(1)
            if (key := self._key(match[1])) is not None and all(stop <= a or b <= start for a, b, _ in out):
                out.append((start, stop, key))
        return out

    def _key(self, written: str) -> str | None:
        key = title_key(written)
        return next((form for form in (key, *(f"{article} {key}" for article in ARTICLES)) if form in self.known), None)


def unmasked(text: str, named: Sequence[tuple[str, str]]) -> str:
    """A masked text as it was written."""
    return PRIVATE.sub(lambda mark: named[ord(mark[0]) - FIRST][0], text)


def statements(text: str) -> list[tuple[str, bool]]:
    """The parts of a text that have a polarity of their own, each with whether it speaks of a liking.

    A denial holds from the comma before it to the end of the clause, or to the next liking after a comma: "comedy, not
    horror" likes one of them, "they hate horror, war and musicals" none. "Rather than" and "instead of" deny what
    follows them alone.
    """
    out: list[tuple[str, bool]] = []
    for clause in CLAUSE.split(text):
        liked = True
        told: list[tuple[str, bool]] = []
        for part in clause.split(","):
            if (found := NEGATION.search(part)) is None:
                liked = liked or LIKING.search(part) is not None
                told.append((part, liked))
            elif found["apart"]:
                told += [(part[: found.start()], liked), (part[found.start() :], False)]
                liked = False
            else:
                liked = False
                told.append((part, liked))
        for polarity, parts in itertools.groupby(told, key=lambda one: one[1]):
            if joined := ",".join(part for part, _ in parts).strip(" ,-*\t"):
                out.append((joined, polarity))
    return out


def extract(profile: str, tastes: Tastes, titles: Titles) -> list[Claim]:
    """The claims of a profile, each once however often it is made.

    Args:
        titles: those of the catalogue.

    A statement that names no genre, era, title or person and says something beyond what all profiles say is one claim,
    of a theme.
    """
    masked, named = titles.mask(profile)
    out: dict[tuple[Kind, str, bool], Claim] = {}
    for part, liked in statements(masked):
        found: list[tuple[Kind, str]] = [("title", named[ord(mark) - FIRST][1]) for mark in PRIVATE.findall(part)]
        found += [("genre", tastes.names[at]) for at in tastes.in_text(part)]
        found += [("era", str(decade)) for decade in _decades(part)]
        found += [("person", name) for name in _persons(part, tastes, titles)]
        text = unmasked(part, named)
        if not found and len([word for word in words(part) if word not in EMPTY]) >= THEME_WORDS:
            found = [("theme", text)]
        for kind, value in found:
            out.setdefault((kind, value, liked), Claim(kind, text, value, liked))
    return list(out.values())


def title_key(title: str) -> str:
    """How titles are compared: their words, without case and punctuation."""
    return " ".join(words(title))


def _decades(clause: str) -> list[int]:
    found = [int(full) if full else 1900 + int(short) for full, short in DECADE.findall(clause)]
    return sorted({*found, *(decade for word, decade in SPELT.items() if re.search(rf"\b{word}\b", clause, re.I))})


def _persons(part: str, tastes: Tastes, titles: Titles) -> list[str]:
    """Names: two or three words with capitals, in no title, that name no taste and are not in every profile."""
    out = []
    for match in PERSON.finditer(part):
        names = match[0].split()
        # The first word of a statement has a capital anyway.
        if names[0].lower() in EMPTY or (match.start() == 0 and len(names) > 2):
            names = names[1:]
        name = " ".join(names)
        if len(names) < 2 or title_key(name) in titles.parts:
            continue
        if not any(pattern(taste).search(name) for taste in tastes.names):
            out.append(name)
    return out
