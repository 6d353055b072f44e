"""How a profile is worded: length, readability, repetition, copied titles, and how much it is like everybody else's."""

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
"""Runs of these alone are no sign that a title was copied."""
TITLE = 100
"""Words of a title that are compared; what takes a title's length times a profile's has to have a bound."""


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; of any script."""
    return [word.lower() for word in WORD.findall(text)]


@dataclass(frozen=True)
class Wording:
    """Measures of one profile.

    words: how many.
    reading_ease: Flesch's, higher is easier (about 0 to 100 for prose); NaN without words.
    grade: Flesch and Kincaid's, in US school years; NaN without words.
    repetition: share of the runs of three words that stood in the profile before; 0 below four words.
    copied: share of the words that stand in a run copied from a title of the history.
    """

    words: int
    reading_ease: float
    grade: float
    repetition: float
    copied: float


def measure(profile: str, titles: Sequence[str]) -> Wording:
    """Wording of a profile beside the titles of the history that its encoder saw.

    Readability is that of the library textstat (English syllables).
    """
    import textstat

    told = words(profile)
    ease = float(textstat.flesch_reading_ease(profile)) if told else math.nan
    grade = float(textstat.flesch_kincaid_grade(profile)) if told else math.nan
    return Wording(len(told), ease, grade, repetition(told), copied(told, titles))


def repetition(told: Sequence[str], run: int = 3) -> float:
    """Share of the runs of ``run`` words that stood there before: ``1 - distinct / all``."""
    count = len(told) - run + 1
    distinct = len(set(zip(*(told[at : at + count] for at in range(run)), strict=True))) if count > 0 else 0
    return 1 - distinct / count if count > 0 else 0.0


def copied(told: Sequence[str], titles: Sequence[str]) -> float:
    """Share of the words that are covered by runs of two words or more of a title, or by a whole title.

    A run counts if a word of it is more than a common one. A title of one word counts from five letters on: shorter
    ones (``Heat``, ``Big``) are words of the language as well.
    """
    return float(copied_words(told, titles).mean()) if told else 0.0


def copied_words(told: Sequence[str], titles: Sequence[str]) -> np.ndarray:
    """bool ``[n]``: which words ``copied`` counts."""
    places: dict[str, list[int]] = {}
    for at, word in enumerate(told):
        places.setdefault(word, []).append(at)
    uncommon = np.cumsum([0, *(word not in COMMON for word in told)]).tolist()
    longest = [0] * len(told)
    """Of the runs that end with each word and count."""
    for title in dict.fromkeys(titles):
        own = words(title)[:TITLE]
        least = 2 if len(own) > 1 else 1
        if len(own) == 1 and len(own[0]) < 5:
            continue
        runs: dict[int, int] = {}
        """Where a run ends with the title's word of this turn -> its length."""
        for word in own:
            runs = {at: runs.get(at - 1, 0) + 1 for at in places.get(word, ())}
            for at, length in runs.items():
                if length >= max(least, longest[at]) and uncommon[at + 1] > uncommon[at + 1 - length]:
                    longest[at] = length
    taken, reach = np.zeros(len(told), dtype=bool), 0
    for at in reversed(range(len(told))):
        reach = max(reach - 1, longest[at])
        taken[at] = reach > 0
    return taken


def sameness(profiles: Sequence[str]) -> np.ndarray:
    """How much each profile is like the others': float ``[S]``, mean cosine similarity of TF-IDF vectors to all others.

    1 where all users get one profile, near 0 where they share no words. An empty profile is like nothing (0).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    count = len(profiles)
    if count < 2 or not any(words(profile) for profile in profiles):
        return np.zeros(count)
    vectors = TfidfVectorizer(tokenizer=words, token_pattern=None, lowercase=False).fit_transform(profiles)
    total = np.asarray(vectors.sum(axis=0)).ravel()
    own = np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel()
    return (vectors @ total - own) / (count - 1)
