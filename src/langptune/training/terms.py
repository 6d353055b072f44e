"""Terms of form: what a reader wants of a profile beside its rank, each a number in [0, 1] for one profile.

A recipe gives each a weight in standard deviations of the batch's reward (``terms: {unfinished: -1.0}``); with weight 0
a term takes no part and is shown in the curve. A new one is a function here, in ``TERMS``, and its name in
``langptune.config.rewards``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from langptune.interpretability.claims import FIRST, PRIVATE, Titles, extract, title_key, unmasked
from langptune.interpretability.faithfulness import Catalogue, looked_up
from langptune.interpretability.wording import COMMON, copied_words, repetition, words

ITEM = re.compile(r"^[^\S\n]*(?:[-*•–]|\(?\d{1,2}[.)])\s", re.MULTILINE)
"""How a line of a list begins."""
PROSE = 0.1
"""Share of common words (articles, pronouns, prepositions) below which English text is an enumeration, no prose."""
SOFT = 0.2
"""Share of the longest profile, at its end, in which length is punished more and more (DAPO's 4,096 of 20,480)."""
YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?![\d'’s])")
BRACKETS = re.compile(r"(?<!\s)\s*\([^()]*\)$")
BEFORE = re.compile(r"((?:[\w'’.:&-]+ )*[\w'’.:&-]+)\s*\($")
"""The words before a year in brackets."""
NAME = 200
"""Characters before a year in which its name is looked for; a longer text would be searched over and over."""


@dataclass(frozen=True)
class Facts:
    """What terms look up in the catalogue.

    titles: ``[N]``.
    year: int ``[N]``, 0 where unknown.
    keys: title keys of each item ``[N]``: its title's, and that without another title in brackets at its end.
    years: title key -> the years of the items that bear the title.
    known: the titles, to be found in prose.
    """

    titles: list[str]
    year: np.ndarray
    keys: list[set[str]]
    years: dict[str, set[int]]
    catalogue: Catalogue
    known: Titles


def facts_of(items: pl.DataFrame, taste_field: str | None) -> Facts:
    """Facts of contract ``items``, with years from its field ``year`` where there is one.

    Args:
        taste_field: the item field of genres; None: tags are mined (``langptune.interpretability.tastes``).
    """
    from langptune.interpretability.subjects import catalogue_of  # whose scripts' specs the config does not need

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
    """One profile, and what its encoder saw.

    tokens: its length in the encoder's tokens, and ``limit`` the longest it may be; read by the term ``length`` alone.
    history: the items shown.
    ratings: the user's, of these items; empty where unknown.
    """

    text: str
    finished: bool
    tokens: int = 0
    limit: int = 0
    history: Sequence[int] = ()
    ratings: Sequence[float] = ()


def _unfinished(written: Written, facts: Facts | None) -> float:
    """1 for a profile that did not end within its tokens."""
    return float(not written.finished)


def _repetition(written: Written, facts: Facts | None) -> float:
    """Share of the word pairs that stood in the profile before: 1 - distinct / all.

    As ``get_repetition_penalty_reward`` of TRL 1.16 (arXiv 2502.03373, appendix C.2), of words in place of tokens.
    """
    return repetition(words(written.text), run=2)


def _list(written: Written, facts: Facts | None) -> float:
    """1 for a list: two lines or more that begin as items, or fewer than ``PROSE`` common words; and for nothing."""
    told = words(written.text)
    common = sum(word in COMMON for word in told)
    return float(len(ITEM.findall(written.text)) > 1 or common <= PROSE * len(told))


def _length(written: Written, facts: Facts | None) -> float:
    """Soft overlong punishment: 0 up to (1 - ``SOFT``) of the longest profile, rising linearly to 1 at the longest.

    As ``get_soft_overlong_punishment`` of TRL 1.16 (DAPO, arXiv 2503.14476, equation 13), with the sign of a measure.
    """
    soft = SOFT * written.limit
    return float(np.clip((written.tokens - (written.limit - soft)) / soft, 0.0, 1.0))


def _copied(written: Written, facts: Facts) -> float:
    """Share of the words taken from the history's titles (``wording.copied``) or that are years of its items."""
    told = words(written.text)
    if not told:
        return 0.0
    years = {str(year) for year in facts.year[list(written.history)].tolist() if year}
    taken = copied_words(told, [facts.titles[item] for item in written.history])
    return float((taken | np.array([word in years for word in told])).mean())


def _false_claims(written: Written, facts: Facts) -> float:
    """Share of the claims that history and catalogue show to be wrong; 0 without claims that they can decide.

    Claims are genres, eras and titles that the history does not support (``faithfulness.looked_up``; a title outside
    the history is not supported), and years: after a title, the year must be that of an item of this title; anywhere
    else, that of an item of the history. A name before a year in brackets that is neither a title nor a genre is an
    invented title. Years and eras count only where the catalogue knows a year of the items in question. Persons and
    themes need a verifier and are left out.
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
    """For each year in the text that the catalogue can decide, whether it is right."""
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
    """Whether a year is one of these; None where none of them is known (0)."""
    known = years - {0}
    return year in known if known else None


def _named_year(name: str, year: int, history: list[int], shown: set[int], facts: Facts) -> bool | None:
    """Whether "name (year)" is right: the longest end of the name that is a title, else a genre, else invented.

    None where the catalogue does not know the years of the items in question.
    """
    told = name.split()
    for start in range(len(told)):
        key = title_key(" ".join(told[start:]))
        if key in facts.years:
            own = {int(facts.year[item]) for item in history if key in facts.keys[item]}
            return _among(year, own) if own else False  # a title outside the history
    if facts.catalogue.tastes.in_text(told[-1]) or not told[-1][0].isupper():
        return _among(year, shown)
    return False


@dataclass(frozen=True)
class Term:
    """One term of form. items: whether it looks things up in the catalogue."""

    value: Callable[[Written, Facts | None], float]
    items: bool = False


TERMS: dict[str, Term] = {
    "unfinished": Term(_unfinished),
    "repetition": Term(_repetition),
    "list": Term(_list),
    "length": Term(_length),
    "copied": Term(_copied, items=True),
    "false_claims": Term(_false_claims, items=True),
}
"""What each term of ``langptune.config.rewards`` is."""
