"""Steerability: edits one taste in a profile and measures how that taste's items move relative to all others.

Edits are scripted; the decoder ranks the edited text like any other. The AUC is the probability that an item of the
taste ranks above one of another; the shift counts places in the whole unseen catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from langptune.language.claims import Titles, unmasked
from langptune.language.tastes import Tastes, removed
from langptune.randomness import numbered

Edit = Literal["add", "strengthen", "remove", "negate"]
EDITS: tuple[Edit, ...] = ("add", "strengthen", "remove", "negate")
UP: frozenset[Edit] = frozenset({"add", "strengthen"})
"""Edits that should move the taste's items up; the others should move them down."""


@dataclass(frozen=True)
class Edited:
    """A profile with one taste edited."""

    edit: Edit
    taste: int
    text: str


def edits(profile: str, tastes: Tastes, titles: Titles, count: int, seed: int, session: int) -> list[Edited]:
    """Edits of one profile.

    A taste that the profile does not name is added; a taste that it names is strengthened, removed and negated.
    Sentences are prepended, so that no decoder's limit cuts them off.

    Args:
        titles: titles of the catalogue; words in them are not tastes, and stay ("The Sound of Music").
        count: number of named and of unnamed tastes, drawn by seed and session.
    """
    rng = numbered(seed, session)
    masked, written = titles.mask(profile)
    named = tastes.in_text(masked)
    unnamed = [at for at in range(len(tastes.names)) if at not in named]
    out = []
    for at in sorted(rng.permutation(unnamed)[:count].tolist()):
        out.append(Edited("add", at, with_sentence(f"They love {tastes.names[at]}.", profile)))
    for at in sorted(rng.permutation(named)[:count].tolist()):
        name = tastes.names[at]
        without = unmasked(removed(masked, name), written)
        out.append(Edited("strengthen", at, with_sentence(f"Above all, they love {name}.", profile)))
        out.append(Edited("remove", at, without))
        out.append(Edited("negate", at, with_sentence(f"They dislike {name}.", without)))
    return out


def with_sentence(sentence: str, profile: str) -> str:
    """A profile with a sentence before it."""
    return f"{sentence} {profile.strip()}".strip()


def effect(before: np.ndarray, after: np.ndarray, has: np.ndarray, seen: Sequence[int]) -> tuple[float, float]:
    """The effect of an edit on the items of its taste.

    Args:
        before, after: float ``[N]``, scores of all items.
        has: bool ``[N]``, the items of the taste.
        seen: items that are excluded, as in the ranking.

    Returns:
        Change of the AUC (-1 to 1), and mean number of places that the taste's items moved up in the unseen catalogue.
        NaN if the user has seen all items of the taste, or all others.
    """
    unseen = np.ones(len(has), dtype=bool)
    unseen[np.asarray(seen, dtype=np.int64)] = False
    own = has[unseen]
    if not own.any() or own.all():
        return float("nan"), float("nan")
    ranks = [_ranks(scores[unseen]) for scores in (before, after)]
    rivals = int((~own).sum())
    # Mann-Whitney: the mean rank from the worst gives the number of rivals below.
    auc = [(len(own) - rank[own].mean() + 1 - (own.sum() + 1) / 2) / rivals for rank in ranks]
    return float(auc[1] - auc[0]), float((ranks[0][own] - ranks[1][own]).mean())


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 1 for the best; equal scores share their mean rank."""
    from scipy.stats import rankdata

    return rankdata(-scores, method="average")
