"""Steerability: edit one taste in a profile and see whether that taste's items move, against all others.

Scripted edits; the decoder ranks the edited text as it ranks any. The change of the AUC is that of the chance that an
item of the taste stands above one that is not of it; the shift counts places in the whole unseen catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from langptune.interpretability.claims import Titles, unmasked
from langptune.interpretability.tastes import Tastes, pattern
from langptune.randomness import numbered

Edit = Literal["add", "strengthen", "remove", "negate"]
EDITS: tuple[Edit, ...] = ("add", "strengthen", "remove", "negate")
UP: frozenset[Edit] = frozenset({"add", "strengthen"})
"""Edits that should bring the taste's items up; the others should bring them down."""


@dataclass(frozen=True)
class Edited:
    """A profile with one taste edited."""

    edit: Edit
    taste: int
    text: str


def edits(profile: str, tastes: Tastes, titles: Titles, count: int, seed: int, session: int) -> list[Edited]:
    """Edits of one profile.

    A taste that the profile does not name is added; one that it names is strengthened, removed and negated. Sentences
    go to the front, where no decoder's limit cuts them off.

    Args:
        titles: those of the catalogue; what they say is no taste, and stays ("The Sound of Music").
        count: tastes of either kind, drawn by seed and session.
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
    """A profile after one more sentence."""
    return f"{sentence} {profile.strip()}".strip()


def removed(profile: str, name: str) -> str:
    """A profile without its mentions of a taste: list entries go, with the comma or "and" before them."""
    # White space is tried from its first character alone: from each, a long run would take the square of its length.
    before = r"(?:(?:,|(?<!\s))\s*\b(?:and|or)\s+|,\s*)?"
    told = re.sub(before + pattern(name).pattern, "", profile, flags=re.IGNORECASE)
    told = re.sub(r"(?<!\s)\s+([,.;:!?])", r"\1", told)
    told = re.sub(r"([,:])\s*(?=[.;!?])", "", told)
    return re.sub(r"\s{2,}", " ", told).strip(" ,")


def effect(before: np.ndarray, after: np.ndarray, has: np.ndarray, seen: Sequence[int]) -> tuple[float, float]:
    """What an edit did to the items of its taste.

    Args:
        before, after: float ``[N]``, scores of all items.
        has: bool ``[N]``, the items of the taste.
        seen: items left out, as in the ranking.

    Returns:
        Change of the AUC (-1 to 1), and mean places that the taste's items went up in the unseen catalogue. NaN where
        the user has seen all items of the taste, or all others.
    """
    unseen = np.ones(len(has), dtype=bool)
    unseen[np.asarray(seen, dtype=np.int64)] = False
    own = has[unseen]
    if not own.any() or own.all():
        return float("nan"), float("nan")
    ranks = [_ranks(scores[unseen]) for scores in (before, after)]
    rivals = int((~own).sum())
    # Mann-Whitney: the mean rank from the worst says how many rivals stand below.
    auc = [(len(own) - rank[own].mean() + 1 - (own.sum() + 1) / 2) / rivals for rank in ranks]
    return float(auc[1] - auc[0]), float((ranks[0][own] - ranks[1][own]).mean())


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 1 for the best; equal scores share their mean rank."""
    from scipy.stats import rankdata

    return rankdata(-scores, method="average")
