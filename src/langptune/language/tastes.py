"""Tastes of a catalogue: its genres, or tags mined from its items' texts; and their names in profiles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

MINED = 40
"""The maximum number of mined tags."""
FEWEST = 5
"""The minimum number of a taste's items: with fewer, ranks are not informative."""
# Synonyms of a genre; their plurals count too.
ALIASES = {
    "sci-fi": ["science fiction", "sci fi", "scifi", "science-fiction"],
    "romance": ["romantic"],
    "animation": ["animated"],
    "film-noir": ["noir", "film noir"],
    "children's": ["children", "kids"],
    "musical": ["music"],
    "biography": ["biopic"],
}
# Adjectives of a genre, as regular expressions. No suffix rule covers them: fantastic, but mysterious.
ADJECTIVES = {
    "comedy": ["comedic", "comical", r"comic(?![\s-]+(?:books?|strips?|con)\b)"],
    "drama": ["dramatic"],
    "fantasy": ["fantastic(?:al)?"],
    "mystery": ["mysterious"],
    "history": ["historic(?:al)?"],
    "biography": ["biographic(?:al)?"],
    "adventure": ["adventurous"],
}


@dataclass(frozen=True)
class Tastes:
    """A catalogue's tastes.

    names: their names in the catalogue, in alphabetical order.
    has: bool ``[N, T]``, whether an item has a taste.
    """

    names: list[str]
    has: np.ndarray

    def in_text(self, text: str) -> list[int]:
        """Indices of the tastes that a text names."""
        return [at for at, name in enumerate(self.names) if pattern(name).search(text)]


def tastes_of(items: pl.DataFrame, field: str | None) -> Tastes:
    """The tastes of a catalogue.

    Args:
        items: contract ``items`` with its fields.
        field: the item field that lists genres or categories, joined by commas; None: tags are mined, the words of
            item texts that are neither common nor rare (between 1 and 20% of the items).
    """
    if field is not None and field in items.columns:
        lists = [[part.strip() for part in (value or "").split(",")] for value in items[field].to_list()]
        names = sorted({part for parts in lists for part in parts if part and part.lower() != "unknown"})
        place = {name: at for at, name in enumerate(names)}
        has = np.zeros((len(items), len(names)), dtype=bool)
        for row, parts in enumerate(lists):
            has[row, [place[part] for part in parts if part in place]] = True
    else:
        names, has = _mined(items["text"].to_list())
    kept = has.sum(axis=0) >= FEWEST
    return Tastes([name for name, keep in zip(names, kept, strict=True) if keep], has[:, kept])


def _mined(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(
        binary=True, stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{4,}\b", min_df=0.01, max_df=0.2
    )
    try:
        found = vectorizer.fit_transform(texts)
    except ValueError:  # no word is that frequent
        return [], np.zeros((len(texts), 0), dtype=bool)
    names = vectorizer.get_feature_names_out()
    often = np.asarray(found.sum(axis=0)).ravel()
    best = sorted(np.lexsort((names, -often))[:MINED])
    return [str(names[at]) for at in best], found[:, best].toarray().astype(bool)


def pattern(name: str) -> re.Pattern[str]:
    """A regular expression for all names of a taste: plurals, adjectives, and aliases."""
    word = name.lower()
    forms = [_with_plural(form) for form in (word, *ALIASES.get(word, []))] + ADJECTIVES.get(word, [])
    return re.compile(r"(?<![\w-])(?:" + "|".join(forms) + r")(?![\w-])", re.IGNORECASE)


def removed(profile: str, name: str) -> str:
    """A profile without its mentions of a taste, including the comma or "and" before a list entry."""
    # Whitespace is matched from its first character only: from each, a long run would take quadratic time.
    before = r"(?:(?:,|(?<!\s))\s*\b(?:and|or)\s+|,\s*)?"
    out = re.sub(before + pattern(name).pattern, "", profile, flags=re.IGNORECASE)
    out = re.sub(r"(?<!\s)\s+([,.;:!?])", r"\1", out)
    out = re.sub(r"([,:])\s*(?=[.;!?])", "", out)
    return re.sub(r"\s{2,}", " ", out).strip(" ,")


def _with_plural(form: str) -> str:
    """A regular expression for a noun and its plural."""
    if re.search("[^aeiou]y$", form):
        return re.escape(form[:-1]) + "(?:y|ies)"
    return re.escape(form) + ("(?:es)?" if form.endswith(("s", "x", "ch", "sh")) else "s?")
