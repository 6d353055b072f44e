"""Faithfulness: whether the history that the encoder saw supports each claim of a profile, and strangers' histories do.

Genres, eras and titles are looked up in the catalogue. Persons and themes are checked by a verifier: a model of
natural-language inference, or an embedder. A claim that every history supports is true but uninformative, so each claim
is also checked on strangers' histories. A shuffled profile cannot achieve the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from langptune.language.claims import Claim
from langptune.language.tastes import Tastes

ENOUGH = 0.2
"""Minimum share of shown items with a genre or era, for a history to support a liking of it."""
BELOW = 1.0
"""A rating so many points below the user's mean contradicts a liking."""
CHARACTERS = 3
"""Characters of a premise per token of the inference model: a low estimate, so that no premise is truncated."""
STRANGER_LEVEL = 0.8
"""An embedder supports a claim if the history is more similar to it than this share of strangers' histories."""

History = tuple[Sequence[int], Sequence[float]]
"""The shown items, and the user's ratings of them."""
Verifier = Callable[[str, bool, Sequence[History]], np.ndarray]
"""A statement, whether it expresses a liking, and histories -> bool ``[H]``: which histories support it."""


@dataclass(frozen=True)
class Catalogue:
    """The catalogue against which claims are checked.

    keys: each item's title, normalised by ``title_key``; several items may share a key.
    texts: each item's text, as the decoder reads it.
    decade: int ``[N]``, each item's decade, 0 if unknown.
    """

    keys: list[str]
    texts: list[str]
    decade: np.ndarray
    tastes: Tastes


@dataclass(frozen=True)
class Checked:
    """A claim with its verdicts: whether the user's history supports it, and the share of strangers' histories that do.

    strangers: None if there are no strangers.
    """

    claim: Claim
    supported: bool
    strangers: float | None


def statement(claim: Claim, catalogue: Catalogue) -> str | None:
    """The statement that a verifier checks for a claim; None if the catalogue alone decides.

    A title outside the history is a suggestion: its item's text must match the history as a theme must.
    """
    if claim.kind == "title":
        return catalogue.texts[catalogue.keys.index(claim.value)]
    return claim.text if claim.kind in ("person", "theme") else None


def check(
    claims: Sequence[Claim],
    shown: Sequence[int],
    ratings: Sequence[float],
    strangers: Sequence[History],
    catalogue: Catalogue,
    verify: Verifier,
) -> list[Checked]:
    """The verdicts of all claims.

    Args:
        shown: the items of the history that the encoder saw.
        ratings: the user's ratings of these items.
        strangers: histories of other users.
        verify: checks claims that the catalogue does not decide.
    """
    histories = [(shown, ratings), *strangers]
    out = []
    for claim in claims:
        held = np.zeros(len(histories), dtype=bool)
        if claim.kind in ("genre", "era", "title"):
            held |= [looked_up(claim, items, rated, catalogue) for items, rated in histories]
        if (asked := statement(claim, catalogue)) is not None and (claim.liked or claim.kind != "title"):
            held |= verify(asked, claim.liked, histories)
        out.append(Checked(claim, bool(held[0]), float(held[1:].mean()) if strangers else None))
    return out


def looked_up(claim: Claim, shown: Sequence[int], ratings: Sequence[float], catalogue: Catalogue) -> bool:
    """Whether a history supports a claim about a genre, an era or a title according to the catalogue."""
    items = np.asarray(shown, dtype=np.int64)
    least = ENOUGH
    if claim.kind == "title":
        has = np.array([catalogue.keys[item] == claim.value for item in shown])
        least = 1 / len(items)
    elif claim.kind == "era":
        has = catalogue.decade[items] == int(claim.value)
    else:
        has = catalogue.tastes.has[items, catalogue.tastes.names.index(claim.value)]
    rated = np.asarray(ratings, dtype=float)
    if claim.liked:
        return bool(has.mean() >= least) and bool(rated[has].mean() > rated.mean() - BELOW)
    return bool(has.mean() < least) or bool(rated[has].mean() < rated.mean())


def welcome(ratings: Sequence[float]) -> np.ndarray:
    """bool ``[n]``: the items of a history whose rating does not contradict a liking."""
    rated = np.asarray(ratings, dtype=float)
    return rated > rated.mean() - BELOW


def by_similarity(vectors: dict[str, np.ndarray], item_vectors: np.ndarray, level: float = STRANGER_LEVEL) -> Verifier:
    """A verifier from an embedder: a history supports a liking if few strangers' histories have such a similar item.

    Items whose rating contradicts a liking do not count.

    Args:
        vectors: statement -> float ``[D]``, unit length.
        item_vectors: float ``[N, D]``, unit length.
        level: share of strangers that must be less similar. A random liking is supported in ``1 - level`` of cases.

    Embedders ignore negation: "no gore" is similar to gore. So a history supports a denial if it does not support the
    liking.
    """

    def verify(text: str, liked: bool, histories: Sequence[History]) -> np.ndarray:
        similarity = item_vectors @ vectors[text]
        nearest = np.array([similarity[np.asarray(items)][welcome(ratings)].max() for items, ratings in histories])
        # Each history is a stranger's to the others, including the user's own.
        below = (nearest[:, None] > nearest[None, :]).sum(axis=1) / max(1, len(nearest) - 1)
        return (below >= level) == liked

    return verify


def by_inference(
    score: Callable[[list[tuple[str, str]]], np.ndarray], texts: Sequence[str], titles: Sequence[str], max_tokens: int
) -> Verifier:
    """A verifier from a model of natural-language inference.

    Args:
        score: pairs (premise, hypothesis) -> probability of entailment ``[P]``.
        texts: texts of all items; the premises list those of a history, as liked or disliked by their ratings.
        titles: titles of all items. A statement that is an item's text stands for the suggestion of its title.
        max_tokens: limit on premise and hypothesis. A longer history becomes several premises, each of complete items
            (unless a single one is too long); it supports what one of them entails.

    The model interprets denials itself.
    """
    suggested = dict(zip(texts, titles, strict=True))

    def verify(text: str, liked: bool, histories: Sequence[History]) -> np.ndarray:
        asked = f"This person would like {suggested[text]}." if text in suggested else text
        room = max(CHARACTERS * max_tokens - len(asked), CHARACTERS * max_tokens // 2)
        premises = [_premises(items, ratings, texts, room) for items, ratings in histories]
        scores = iter(score([(premise, asked) for own in premises for premise in own]))
        return np.array([max(next(scores) for _ in own) > 0.5 for own in premises])

    return verify


def _premises(items: Sequence[int], ratings: Sequence[float], texts: Sequence[str], room: int) -> list[str]:
    """A history as sentences, in as few texts of at most ``room`` characters as possible."""
    out = [""]
    for item, kind in zip(items, welcome(ratings), strict=True):
        sentence = f"This person {'liked' if kind else 'disliked'} {texts[item]}"[: room - 2] + ". "
        if out[-1] and len(out[-1]) + len(sentence) > room:
            out.append("")
        out[-1] += sentence
    return [premise.strip() for premise in out]
