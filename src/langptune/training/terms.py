"""Terms: qualities of a profile other than its rank. Those of form are numbers in [0, 1], from the text alone.

A recipe gives each term a weight in standard deviations of the batch's reward (``terms: {unfinished: -1.0}``); a term
of weight 0 appears in the curve only. To add a term, write a function here, add it to ``TERMS``, and add its name to
``langptune.config.rewards``. A term that compares the decoder's scores of a profile with those of a changed text is an
``EditTerm``: it says which text, and ``langptune.training.reward`` gives it the scores of both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from langptune.interpretability.faithfulness import Catalogue, looked_up
from langptune.interpretability.steering import effect, with_sentence
from langptune.language.claims import FIRST, PRIVATE, Titles, extract, title_key, unmasked
from langptune.language.wording import COMMON, copied_words, repetition, words
from langptune.training.edits import SENTENCES

ITEM = re.compile(r"^[^\S\n]*(?:[-*•–]|\(?\d{1,2}[.)])\s", re.MULTILINE)
"""The beginning of a list item."""
PROSE = 0.1
"""English text with a lower share of common words (articles, pronouns, prepositions) is an enumeration, not prose."""
SOFT = 0.2
"""Last share of the maximum length, in which the length penalty grows (DAPO: 4,096 of 20,480)."""
YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?![\d'’s])")
BRACKETS = re.compile(r"(?<!\s)\s*\([^()]*\)$")
BEFORE = re.compile(r"((?:[\w'’.:&-]+ )*[\w'’.:&-]+)\s*\($")
"""The words before a year in brackets."""
NAME = 200
"""Number of characters before a year that are searched for a name; without a limit the search would be quadratic."""


@dataclass(frozen=True)
class Facts:
    """Facts about the catalogue that terms use.

    titles: ``[N]``.
    year: int ``[N]``, 0 if unknown.
    keys: keys of each item's title ``[N]``: with and without another title in brackets at its end.
    years: title key -> the years of the items with this title.
    known: finds the titles in prose.
    """

    titles: list[str]
    year: np.ndarray
    keys: list[set[str]]
    years: dict[str, set[int]]
    catalogue: Catalogue
    known: Titles


def facts_of(items: pl.DataFrame, taste_field: str | None) -> Facts:
    """Facts about contract ``items``, with years from its field ``year`` if there is one.

    Args:
        taste_field: the item field of genres; None: tags are mined (``langptune.language.tastes``).
    """
    from langptune.interpretability.inputs import catalogue_of  # its specs are not needed by the config

    titles = items["title"].to_list()
    catalogue = catalogue_of(items, taste_field)
    year = np.zeros(len(items), dtype=np.int64)
    if "year" in items.columns:
        year = items["year"].cast(pl.String).str.extract(r"^([0-9]{4})", 1).cast(pl.Int64).fill_null(0).to_numpy()
    years: dict[str, set[int]] = {}
    keys = [{title_key(title), title_key(BRACKETS.sub("", title))} - {""} for title in titles]
    for own, at in zip(keys, year.tolist(), strict=True):
        for key in own:
            years.setdefault(key, set()).add(at)
    return Facts(titles, year, keys, years, catalogue, Titles(titles))


@dataclass(frozen=True)
class Written:
    """One profile and the history that its encoder saw.

    tokens: its length in the encoder's tokens, used by the term ``length`` only; ``limit``: the maximum length.
    history: the items in the prompt.
    ratings: the user's ratings of these items; empty if unknown.
    """

    text: str
    finished: bool
    tokens: int = 0
    limit: int = 0
    history: Sequence[int] = ()
    ratings: Sequence[float] = ()


def _unfinished(written: Written, facts: Facts | None) -> float:
    """1 for a profile that did not end within its limit."""
    return float(not written.finished)


def _repetition(written: Written, facts: Facts | None) -> float:
    """Share of word pairs that occurred earlier in the profile: 1 - distinct / all.

    As ``get_repetition_penalty_reward`` of TRL 1.16 (arXiv 2502.03373, appendix C.2), with words instead of tokens.
    """
    return repetition(words(written.text), run=2)


def _list(written: Written, facts: Facts | None) -> float:
    """1 for a list (at least two lines begin as items, or too few common words) and for an empty text."""
    tokens = words(written.text)
    common = sum(word in COMMON for word in tokens)
    return float(len(ITEM.findall(written.text)) > 1 or common <= PROSE * len(tokens))


def _length(written: Written, facts: Facts | None) -> float:
    """Soft overlong penalty: 0 up to (1 - ``SOFT``) of the maximum length, rising linearly to 1 at the maximum.

    As ``get_soft_overlong_punishment`` of TRL 1.16 (DAPO, arXiv 2503.14476, equation 13), with the sign of a measure.
    """
    soft = SOFT * written.limit
    return float(np.clip((written.tokens - (written.limit - soft)) / soft, 0.0, 1.0))


def _copied(written: Written, facts: Facts) -> float:
    """Share of words that are copied from the history's titles (``wording.copied``) or are years of its items."""
    tokens = words(written.text)
    if not tokens:
        return 0.0
    years = {str(year) for year in facts.year[list(written.history)].tolist() if year}
    taken = copied_words(tokens, [facts.titles[item] for item in written.history])
    return float((taken | np.array([word in years for word in tokens])).mean())


def _false_claims(written: Written, facts: Facts) -> float:
    """Share of claims that history and catalogue show to be wrong; 0 if they can check no claim.

    Wrong are genres, eras and titles that the history does not support (``faithfulness.looked_up``; a title outside the
    history is not supported), and years: after a title, the year must be that of an item with this title; elsewhere,
    that of an item in the history. A name before a year in brackets that is neither a title nor a genre counts as an
    invented title. Years and eras count only if the catalogue has a year for the items in question. Persons and themes
    need a verifier and are left out.
    """
    ratings = written.ratings or [0.0] * len(written.history)
    dated = facts.year[list(written.history)].any()
    found = extract(written.text, facts.catalogue.tastes, facts.known)
    verdicts = [
        looked_up(claim, written.history, ratings, facts.catalogue)
        for claim in found
        if claim.kind in ("genre", "title") or (claim.kind == "era" and dated)
    ]
    verdicts += _years(written, facts)
    return 1 - sum(verdicts) / len(verdicts) if verdicts else 0.0


def _years(written: Written, facts: Facts) -> list[bool]:
    """Whether each year in the text that the catalogue can check is correct."""
    masked, named = facts.known.mask(written.text)
    history = list(written.history)
    shown = set(facts.year[history].tolist()) - {0}
    out: list[bool | None] = []
    for match in YEAR.finditer(masked):
        year, before = int(match[0]), masked[max(match.start() - NAME, 0) : match.start()]
        mark = before.rstrip(" (,")[-1:]
        if PRIVATE.match(mark):
            key = named[ord(mark) - FIRST][1]
            out.append(_among(year, facts.years[key]))
        elif (name := BEFORE.search(before) if before.endswith("(") else None) is None:
            out.append(_among(year, shown))
        else:
            out.append(_named_year(unmasked(name[1], named), year, history, shown, facts))
    return [right for right in out if right is not None]


def _among(year: int, years: set[int]) -> bool | None:
    """Whether a year is one of these; None if all are unknown (0)."""
    known = years - {0}
    return year in known if known else None


def _named_year(name: str, year: int, history: list[int], shown: set[int], facts: Facts) -> bool | None:
    """Whether "name (year)" is correct. The name is its longest suffix that is a title, else a genre, else invented.

    None if the catalogue does not have the years of the items in question.
    """
    tokens = name.split()
    for start in range(len(tokens)):
        key = title_key(" ".join(tokens[start:]))
        if key in facts.years:
            own = {int(facts.year[item]) for item in history if key in facts.keys[item]}
            return _among(year, own) if own else False  # a title outside the history
    if facts.catalogue.tastes.in_text(tokens[-1]) or not tokens[-1][0].isupper():
        return _among(year, shown)
    return False


@dataclass(frozen=True)
class Term:
    """One term of form. items: whether it needs facts about the catalogue."""

    value: Callable[[Written, Facts | None], float]
    items: bool = False


@dataclass(frozen=True)
class EditTerm:
    """One term that compares the scores of a profile with those of a text made from it.

    edit: the other text and a taste, drawn by a generator; None if the profile admits none, for which the term is 0.
    value: from the scores of both texts float ``[N]``, the items of the taste bool ``[N]``, and the seen items.
    """

    edit: Callable[[str, Facts, np.random.Generator], tuple[str, int] | None]
    value: Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[int]], float]
    items: bool = True


def _added_taste(text: str, facts: Facts, rng: np.random.Generator) -> tuple[str, int] | None:
    """The profile with a sentence that likes a taste which it does not name: the first such in a drawn order.

    The profiles of a session have one generator each with the same state, so they mostly get the same taste.
    """
    tastes = facts.catalogue.tastes
    order = rng.permutation(len(tastes.names)).tolist()
    sentence = SENTENCES["add"][int(rng.integers(len(SENTENCES["add"])))]
    named = set(tastes.in_text(facts.known.mask(text)[0]))
    taste = next((at for at in order if at not in named), None)
    return None if taste is None else (with_sentence(sentence.format(tastes.names[taste]), text), taste)


def _steering(before: np.ndarray, after: np.ndarray, has: np.ndarray, seen: Sequence[int]) -> float:
    """Change of the AUC of the taste's items, in [-1, 1]; 0 if the user has seen all of them, or all others."""
    change = effect(before, after, has, seen)[0]
    return 0.0 if np.isnan(change) else change


TERMS: dict[str, Term | EditTerm] = {
    "unfinished": Term(_unfinished),
    "repetition": Term(_repetition),
    "list": Term(_list),
    "length": Term(_length),
    "copied": Term(_copied, items=True),
    "false_claims": Term(_false_claims, items=True),
    "steering": EditTerm(_added_taste, _steering),
}
"""The function of each term in ``langptune.config.rewards``."""
