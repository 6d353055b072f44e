"""Finds typed titles in a catalogue: exact matches (ignoring case, articles and punctuation), or similar titles."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from langptune.alike import affordable

RATING = re.compile(r"\|\s*(\d{1,2}(?:\.\d+)?)\s*$")
YEAR = re.compile(r"\((\d{4})\)\s*$")
ARTICLES = ("the", "a", "an")
CANDIDATES = 60
"""Number of titles that are compared in full: those that share the most letter triples with a line."""
NEAR = 0.65
"""Minimum similarity of a suggestion (difflib's ratio)."""
WITHIN = 0.85
"""Minimum similarity of a title that contains the line, or is contained in it."""
BEHIND = 0.2
"""How much less similar than the best suggestion another may be."""
LINE = 1000
"""Characters of a line or a title that are read: Unicode normalisation may take the square of their number."""
STEPS = 300_000
"""Limit on the steps of comparing a line with one title (``alike``): enough for English of 150 characters. A title that
needs more is not suggested."""


@dataclass(frozen=True)
class Match:
    """The match of one line.

    item: the item that the line names; None if it names none or several. near: similar items, the most similar first.
    rating: the number after ``|``; None if there is none.
    """

    line: str
    item: int | None
    near: list[int]
    rating: float | None


class Titles:
    """An index of a catalogue by title."""

    def __init__(self, titles: Sequence[str], years: Sequence[str] | None = None):
        """``years``: if given, they distinguish items with equal titles."""
        self._keys = [key(title) for title in titles]
        self._years = [str(year) for year in years] if years is not None else [""] * len(titles)
        self._items: dict[str, list[int]] = defaultdict(list)
        grams: dict[str, list[int]] = defaultdict(list)
        for item, name in enumerate(self._keys):
            self._items[name].append(item)
            for gram in _triples(name):
                grams[gram].append(item)
        self._grams = {gram: np.array(items) for gram, items in grams.items()}

    def match(self, line: str, near: int = 4) -> Match:
        """Find one line: ``Title``, ``Title (1995)``, ``Title | 4.5``, in any combination."""
        text, rating = line.strip(), None
        if len(text) > LINE:
            return Match(line, None, [], None)
        if found := RATING.search(text):
            text, rating = text[: found.start()].strip(), float(found[1])
        year = found[1] if (found := YEAR.search(text)) else None
        same = self._items.get(key(text), [])
        exact = [item for item in same if self._years[item] == year] if year else same
        if len(exact) == 1 or (len(same) == 1 and not self._years[same[0]]):
            return Match(line, (exact or same)[0], [], rating)
        return Match(line, None, (same or self._near(key(text)))[:near], rating)

    def _near(self, name: str) -> list[int]:
        lists = [self._grams[gram] for gram in _triples(name) if gram in self._grams]
        if not lists:
            return []
        items, shared = np.unique(np.concatenate(lists), return_counts=True)
        best = items[np.lexsort((items, -shared))][:CANDIDATES].tolist()
        compare = difflib.SequenceMatcher(autojunk=False)
        compare.set_seq2(name)
        scored = []
        for item in best:
            other = self._keys[item]
            compare.set_seq1(other)
            # "Star Wars: Episode IV" and "Star Wars": one contains the other, word by word.
            within = len(other) > 3 and (f" {other} " in f" {name} " or f" {name} " in f" {other} ")
            # The quick ratio is an upper bound of the full one, which is skipped if it cannot reach the minimum.
            full = compare.quick_ratio() >= NEAR and affordable(name, other, STEPS)
            scored.append((-max(compare.ratio() if full else 0.0, WITHIN if within else 0.0), item))
        scored.sort()
        return [item for ratio, item in scored if ratio <= min(-NEAR, scored[0][0] + BEHIND)]


def key(title: str) -> str:
    """The normalised form of a title: without case, accents, punctuation, trailing year, or leading article."""
    text = unicodedata.normalize("NFKD", YEAR.sub("", title)[:LINE]).casefold()
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    words = re.sub(r"[^\w\s]", " ", text.replace("&", " and ").replace("'", "")).split()
    if len(words) > 1 and words[-1] in ARTICLES and "," in text:  # "Shawshank Redemption, The"
        words.pop()
    if len(words) > 1 and words[0] in ARTICLES:
        words.pop(0)
    return " ".join(words) or text.strip()


def _triples(name: str) -> set[str]:
    padded = f"  {name} "
    return {padded[at : at + 3] for at in range(len(padded) - 2)}
