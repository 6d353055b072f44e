"""Splits a text into what it likes and what it avoids.

An embedder reads what a text is about, not that it is denied: "They dislike horror." is near to horror. So a denial is
taken out of the text, and what it denies is a text of its own, which counts against the items that are near to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from langptune.language.claims import (
    EMPTY,
    IMPERATIVE,
    LIKING,
    NEGATION,
    PRIVATE,
    STRIPPED,
    Titles,
    clauses,
    unmasked,
)
from langptune.language.tastes import Tastes, pattern, removed
from langptune.language.wording import COMMON, WORD, words

ENDS = frozenset(".!?;\n")
"""Characters that end a sentence."""
_AROUND = (
    "user user's users person viewer viewers i'm they're he's she's i've am do does did be been being had would "
    "will can could may might must should them him her me us any anything everything whatsoever much many really "
    "actually quite so too very just ever only all kinds kind sort sorts stuff things thing cup tea thanks thank "
    "please pls anymore more longer again like likes care cares cared stand stands bear bears handle tolerate "
    "want wants wanted watch watches watching see seeing seen read reads reading suggest recommend show shows "
    "give take need needs find finds enough ok okay also then now about into up down away out off above truly "
    "always absolutely especially mostly completely totally definitely but while although though however rather "
    "instead than because since when apart already tbh "
    "honestly recommending suggesting showing giving"
)
AROUND = COMMON | frozenset(_AROUND.split())
"""Words at the edges of a denial that are not what it denies: "can't *stand* horror *any more*"."""
NOTHING = AROUND | EMPTY
"""Words of which a part of a text says nothing."""
CONJUNCTION = re.compile(r"\s*,?\s*(?:(?:and|or|nor|yet|plus|so)\b\s*,?)?", re.IGNORECASE)


LOVE = r"love (?:stor(?:y|ies)|songs?|scenes?|triangles?)\b"
"""Where "love" is no verb."""
DENYING = re.compile(rf",|{NEGATION.pattern.replace('?P<apart>', '?:')}|(?!{LOVE})(?:{LIKING.pattern})", re.IGNORECASE)
"""What separates the objects of a denial."""
NAMED = re.compile(f"{WORD.pattern}|{PRIVATE.pattern}")
"""A word, or a title of a masked text."""
SEPARATOR = re.compile(r"[.!?;\n]+|:+|\w+")
"""What ends a clause: the text at the end of a match of ``claims.CLAUSE``."""


@dataclass(frozen=True)
class Parts:
    """A text in two parts.

    likes: the text without its denials; the text itself if it has none; empty if nothing else is left.
    avoids: what is denied, without the words of denial; empty if nothing is.
    contradicted: names of the tastes that one statement likes and another one denies. Only the later one counts.
    """

    likes: str
    avoids: str = ""
    contradicted: tuple[str, ...] = ()


@dataclass
class _Statement:
    """A statement of the masked text, which may lose words.

    about: what is denied; only of a denial.
    shortened: it has lost words.
    """

    text: str
    liked: bool
    about: str = ""
    shortened: bool = False

    @property
    def subject(self) -> str:
        return self.text if self.liked else self.about


class Splitter:
    """Splits texts about the items of one catalogue."""

    def __init__(self, titles: Titles, tastes: Tastes | None = None):
        """Set up a splitter.

        Args:
            titles: titles of the catalogue; words in them deny nothing.
            tastes: for contradictions; None: contradictions are not looked for.
        """
        self._titles, self._tastes = titles, tastes

    def parts(self, text: str) -> Parts:
        """The two parts of a text.

        A statement that denies nothing by name ("not really") stays where it is. A text without denials is returned as
        it is, byte for byte.
        """
        masked, named = self._titles.mask(text)
        sentences = list(_sentences(masked))
        every = [one for sentence in sentences for _, fragments, _ in sentence for one in fragments]
        if all(one.liked for one in every):
            return Parts(text)
        contradicted = self._settle(every)
        avoids = ", ".join(one.about for one in every if not one.liked and one.about)
        likes = " ".join(filter(None, map(_without_denials, sentences)))
        if not _names(likes, NOTHING):
            likes = ""
        return Parts(unmasked(likes, named), unmasked(avoids, named), tuple(contradicted))

    def _settle(self, statements: list[_Statement]) -> list[str]:
        """Remove each taste from the statements before the last one that contradicts them; the tastes' names.

        Only a statement about a taste as a whole contradicts others: "likes war films, but not slow war films" does
        not.
        """
        if self._tastes is None:
            return []
        out = []
        for at in sorted({at for one in statements for at in self._tastes.in_text(one.subject)}):
            name = self._tastes.names[at]
            found = [one for one in statements if pattern(name).search(one.subject)]
            last = found[-1]
            others = [one for one in found if one.liked != last.liked]
            if others and self._whole(last):
                out.append(name)
                for one in others:
                    one.shortened = True
                    if one.liked:
                        lead = one.text[: len(one.text) - len(one.text.lstrip())]
                        one.text = lead + removed(one.text, name)
                    else:
                        one.about = avoided(removed(one.about, name))
        return out

    def _whole(self, statement: _Statement) -> bool:
        """Whether a statement has no words besides tastes and those of every profile."""
        rest = statement.subject
        assert self._tastes is not None
        for at in self._tastes.in_text(rest):
            rest = pattern(self._tastes.names[at]).sub(" ", rest)
        return not _names(LIKING.sub(" ", rest), NOTHING)


def _sentences(masked: str) -> Iterator[list[tuple[str, list[_Statement], str]]]:
    """The sentences of a masked text: for each clause the separator before it, its statements, the one after it."""
    sentence: list[tuple[str, list[_Statement], str]] = []
    before, start = "", 0
    found = clauses(masked)
    for at, clause in enumerate(found):
        fragments = []
        for first, last, liked in clause.parts:
            # The text from the end of the part before: punctuation between parts belongs to the later one.
            one = _Statement(masked[start:last], liked)
            if not liked:
                one.about = avoided(masked[first:last])
                one.liked = not _names(one.about)
            fragments.append(one)
            start = last
        end = clause.stop if at == len(found) - 1 else _end(masked, clause.stop)
        after = masked[clause.stop : end]
        sentence.append((before, fragments, after))
        before, start = after, end
        if ENDS & set(after) or at == len(found) - 1:
            yield sentence
            sentence, before = [], ""


def _end(masked: str, stop: int) -> int:
    """The end of the separator that begins at ``stop``."""
    match = SEPARATOR.match(masked, stop)
    assert match is not None
    return match.end()


def _without_denials(sentence: list[tuple[str, list[_Statement], str]]) -> str:
    """A sentence without its denials; empty if it consists of them."""
    out: list[str] = []
    lost = False
    for before, fragments, _ in sentence:
        kept: list[str] = []
        denies = any(one.shortened or not one.liked for one in fragments)
        lost = lost or denies
        for one in fragments:
            # "I" of "I, who hate horror" is no statement any more.
            if not one.liked or (denies and not _names(one.text, NOTHING)):
                continue
            text = one.text
            if lost and not out and not kept:
                text = text[CONJUNCTION.match(text).end() :]
            if kept and not (kept[-1][-1:].isspace() or text[:1].isspace()):
                kept.append(" ")
            kept.append(text)
        if any(text.strip(STRIPPED) for text in kept):
            out += [*([before] if out else []), *kept]
    joined = "".join(out)
    if not _names(joined, NOTHING if lost else frozenset()):
        return ""
    after = sentence[-1][2]
    end = after if ENDS & set(after) else ""
    return (joined.strip().rstrip(STRIPPED) if lost else joined.strip()) + end.rstrip("\n")


def avoided(statement: str) -> str:
    """What a denial denies: the statement without words of denial and liking, and without pronouns at its edges."""
    rest = statement
    if (start := IMPERATIVE.match(rest)) is not None:
        rest = rest[start.end() :]
    pieces = (_trimmed(piece) for piece in DENYING.split(re.sub(r"\s+", " ", rest)))
    return ", ".join(filter(None, pieces))


def _trimmed(piece: str) -> str:
    """A piece of a denial without the words around what it denies."""
    marks = list(NAMED.finditer(piece))
    named = [at for at, mark in enumerate(marks) if mark[0].lower() not in AROUND]
    return piece[marks[named[0]].start() : marks[named[-1]].end()] if named else ""


def _names(text: str, nothing: frozenset[str] = EMPTY) -> bool:
    """Whether a masked text has a title, or a word that is not among those that say nothing."""
    return PRIVATE.search(text) is not None or any(word not in nothing for word in words(text))
