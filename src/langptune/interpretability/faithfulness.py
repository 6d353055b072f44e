"""Is each claim of a profile supported by the history that its encoder saw, and would a stranger's support it as well?

Genres, eras and titles are looked up in the catalogue. Persons and themes are put to a verifier: a model of natural-
language inference, or an embedder. A claim that every history supports is true and says nothing, so each is tried on
strangers' histories, too; the difference is what a shuffled profile cannot have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from langptune.interpretability.claims import Claim
from langptune.interpretability.tastes import Tastes

ENOUGH = 0.2
"""Share of the shown items that must have a genre or era for a history to support a liking of it."""
BELOW = 1.0
"""Rating points below the user's own mean from which on a rating speaks against a liking."""
CHARACTERS = 3
"""Of a premise, for each token that a model of inference reads: few enough that it reads all of it."""
STRANGER_LEVEL = 0.8
"""An embedder supports a claim where the history is more like it than this share of strangers' histories."""

History = tuple[Sequence[int], Sequence[float]]
"""Items that were shown, and the user's ratings of them."""
Verifier = Callable[[str, bool, Sequence[History]], np.ndarray]
"""A statement, whether it speaks of a liking, and histories -> bool ``[H]``: which ones support it."""


@dataclass(frozen=True)
class Catalogue:
    """What claims are looked up in.

    keys: each item's title as ``title_key`` writes it; several items may share one.
    texts: what the decoder reads of each item.
    decade: int ``[N]``, each item's decade, 0 where unknown.
    """

    keys: list[str]
    texts: list[str]
    decade: np.ndarray
    tastes: Tastes


@dataclass(frozen=True)
class Checked:
    """A claim with its verdicts: on the own history, and the share of strangers' histories that support it as well.

    strangers: None where there are none.
    """

    claim: Claim
    supported: bool
    strangers: float | None


def statement(claim: Claim, catalogue: Catalogue) -> str | None:
    """What a verifier is asked of a claim; None where the catalogue alone decides.

    A title outside the history is a suggestion: its item's text must suit the history as a theme must.
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
    """Every claim's verdicts.

    Args:
        shown: the items of the history that the encoder saw.
        ratings: the user's, of these items.
        strangers: of other users.
        verify: for what the catalogue does not decide.
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
    """Whether the catalogue says that a history supports a claim of a genre, an era or a title."""
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
    """bool ``[n]``: the items of a history whose rating does not speak against a liking."""
    rated = np.asarray(ratings, dtype=float)
    return rated > rated.mean() - BELOW


def by_similarity(vectors: dict[str, np.ndarray], item_vectors: np.ndarray, level: float = STRANGER_LEVEL) -> Verifier:
    """A verifier from an embedder: a history supports a liking if few strangers' histories have an item so near to it.

    Items whose rating speaks against them do not count.

    Args:
        vectors: statement -> float ``[D]``, unit length.
        item_vectors: float ``[N, D]``, unit length.
        level: share of the strangers that must be less alike. A liking of nobody's passes in ``1 - level`` of cases.

    An embedder does not read denials: "no gore" is near to gore. So a denial is supported where a liking is not.
    """

    def verify(text: str, liked: bool, histories: Sequence[History]) -> np.ndarray:
        likeness = item_vectors @ vectors[text]
        nearest = np.array([likeness[np.asarray(items)][welcome(ratings)].max() for items, ratings in histories])
        # Each history is a stranger to the others, the own one included.
        below = (nearest[:, None] > nearest[None, :]).sum(axis=1) / max(1, len(nearest) - 1)
        return (below >= level) == liked

    return verify


def by_inference(
    score: Callable[[list[tuple[str, str]]], np.ndarray], texts: Sequence[str], titles: Sequence[str], max_tokens: int
) -> Verifier:
    """A verifier from a model of natural-language inference.

    Args:
        score: pairs (premise, hypothesis) -> probability of entailment ``[P]``.
        texts: of all items; the premises list those of a history, as liked or disliked by their ratings.
        titles: of all items. An item's text, put as a statement, is a title that was suggested.
        max_tokens: of premise and hypothesis. A history that is longer makes several premises, each of whole items
            unless one alone is too long; it supports what one of them entails.

    It reads denials itself.
    """
    suggested = dict(zip(texts, titles, strict=True))

    def verify(text: str, liked: bool, histories: Sequence[History]) -> np.ndarray:
        asked = f"This person would like {suggested[text]}." if text in suggested else text
        room = max(CHARACTERS * max_tokens - len(asked), CHARACTERS * max_tokens // 2)
        premises = [_premises(items, ratings, texts, room) for items, ratings in histories]
        told = iter(score([(premise, asked) for own in premises for premise in own]))
        return np.array([max(next(told) for _ in own) > 0.5 for own in premises])

    return verify


def _premises(items: Sequence[int], ratings: Sequence[float], texts: Sequence[str], room: int) -> list[str]:
    """A history in sentences, in as few texts of at most ``room`` characters as hold it."""
    out = [""]
    for item, kind in zip(items, welcome(ratings), strict=True):
        told = f"This person {'liked' if kind else 'disliked'} {texts[item]}"[: room - 2] + ". "
        if out[-1] and len(out[-1]) + len(told) > room:
            out.append("")
        out[-1] += told
    return [premise.strip() for premise in out]
