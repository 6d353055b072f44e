"""The wording of a profile: length, readability, repetition, copied titles, and similarity to other users' profiles."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_COMMON = (
    "a an and are as at be by for from has have he her his i in is it its of on or she that the their they this to was "
    "we were who will with you your my me us our not no"
)
COMMON = frozenset(_COMMON.split())
"""Runs of only these words are not evidence of a copied title."""
TITLE = 100
"""Limit on a title in words, because the comparison takes the length of a title times that of a profile."""


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; of any script."""
    return [word.lower() for word in WORD.findall(text)]


@dataclass(frozen=True)
class Wording:
    """Measures of one profile.

    words: number of words.
    reading_ease: Flesch reading ease, higher is easier (about 0 to 100 for prose); NaN without words.
    grade: Flesch-Kincaid grade, in US school years; NaN without words.
    repetition: share of the runs of three words that occurred earlier in the profile; 0 below four words.
    copied: share of the words in a run that is copied from a title of the history.
    """

    words: int
    reading_ease: float
    grade: float
    repetition: float
    copied: float


def measure(profile: str, titles: Sequence[str]) -> Wording:
    """The wording of a profile, given the titles of the history that its encoder saw.

    Readability is computed by the library textstat (English syllables).
    """
    import textstat

    tokens = words(profile)
    ease = float(textstat.flesch_reading_ease(profile)) if tokens else math.nan
    grade = float(textstat.flesch_kincaid_grade(profile)) if tokens else math.nan
    return Wording(len(tokens), ease, grade, repetition(tokens), copied(tokens, titles))


def repetition(tokens: Sequence[str], run: int = 3) -> float:
    """Share of the runs of ``run`` words that occurred earlier: ``1 - distinct / all``."""
    count = len(tokens) - run + 1
    distinct = len(set(zip(*(tokens[at : at + count] for at in range(run)), strict=True))) if count > 0 else 0
    return 1 - distinct / count if count > 0 else 0.0


def copied(tokens: Sequence[str], titles: Sequence[str]) -> float:
    """Share of the words that are covered by runs of at least two words of a title, or by a whole title.

    A run counts if it has a word that is not common. A title of one word counts if it has at least five letters:
    shorter ones (``Heat``, ``Big``) are also ordinary words.
    """
    return float(copied_words(tokens, titles).mean()) if tokens else 0.0


def copied_words(tokens: Sequence[str], titles: Sequence[str]) -> np.ndarray:
    """bool ``[n]``: the words that ``copied`` counts."""
    places: dict[str, list[int]] = {}
    for at, word in enumerate(tokens):
        places.setdefault(word, []).append(at)
    uncommon = np.cumsum([0, *(word not in COMMON for word in tokens)]).tolist()
    longest = [0] * len(tokens)
    """Length of the longest counted run that ends with each word."""
    for title in dict.fromkeys(titles):
        own = words(title)[:TITLE]
        least = 2 if len(own) > 1 else 1
        if len(own) == 1 and len(own[0]) < 5:
            continue
        runs: dict[int, int] = {}
        """End of a run that ends with the current word of the title -> its length."""
        for word in own:
            runs = {at: runs.get(at - 1, 0) + 1 for at in places.get(word, ())}
            for at, length in runs.items():
                if length >= max(least, longest[at]) and uncommon[at + 1] > uncommon[at + 1 - length]:
                    longest[at] = length
    taken, reach = np.zeros(len(tokens), dtype=bool), 0
    for at in reversed(range(len(tokens))):
        reach = max(reach - 1, longest[at])
        taken[at] = reach > 0
    return taken


def sameness(profiles: Sequence[str]) -> np.ndarray:
    """Similarity of each profile to the others: float ``[S]``, mean cosine similarity of TF-IDF vectors.

    It is 1 if all profiles are equal, and near 0 if they share no words. An empty profile has similarity 0.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    count = len(profiles)
    if count < 2 or not any(words(profile) for profile in profiles):
        return np.zeros(count)
    vectors = TfidfVectorizer(tokenizer=words, token_pattern=None, lowercase=False).fit_transform(profiles)
    total = np.asarray(vectors.sum(axis=0)).ravel()
    own = np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel()
    return (vectors @ total - own) / (count - 1)
