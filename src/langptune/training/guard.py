"""Detects collapsed encoders: measures of validation, and the rules that stop a run.

``examined`` measures the greedy profiles of validation; ``gains`` compares their ranks with those at the start;
``Guard`` detects a collapsed run from its curve, so that ``Watch`` stops it and keeps the best state before. A rule is
skipped if the curve lacks its measure (entropy before the first batch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from langptune.config.recipes import GuardLimits
from langptune.language.wording import repetition, words
from langptune.metrics import from_ranks
from langptune.randomness import numbered
from langptune.training.reward import Reward, Sessions, dealt, standard_error, validation_metrics

if TYPE_CHECKING:
    from langptune.profiles.generate import Profile


def examined(
    reward: Reward,
    sessions: Sessions,
    rows: Sequence[int],
    written: Sequence[Profile],
    gather: Callable[[list[Any]], list[Any]] = list,
) -> dict[str, Any]:
    """Measures of the profiles of validation, for the curve.

    Args:
        rows: the sessions for which this process wrote profiles.
        written: their profiles.
        gather: joins the lists of all processes; every process must call this function, and gets the same result.

    Returns:
        ``validation_metrics``; ``own``, the mean log rank of the target by another user's profile minus that by the own
        profile, and ``own_se``, its standard error over sessions; ``tokens``, a mean; the shares ``finished`` and
        ``distinct``; ``repetition``, the mean share of repeated word pairs; and ``ranks``, int ``[S]`` in the order of
        the sessions, for ``gains``. ``own`` is left out if one user has more than half of the sessions.
    """
    texts: list[str] = [""] * len(sessions.sessions)
    for row, text in gather([(row, one.text) for row, one in zip(rows, written, strict=True)]):
        texts[row] = text

    def ranked(by: Sequence[str]) -> np.ndarray:
        own = reward.ranks(by, [sessions.targets[row] for row in rows], [sessions.seen[row] for row in rows])
        out = np.zeros(len(texts), dtype=np.int64)
        for row, rank in gather(list(zip(rows, own.tolist(), strict=True))):
            out[row] = rank
        return out

    ranks = ranked([texts[row] for row in rows])
    measures: dict[str, Any] = {**validation_metrics(ranks)}
    users = np.unique(sessions.users or sessions.sessions, return_inverse=True)[1]
    if 2 * np.bincount(users).max() <= len(users):
        # The same permutation at every validation, so that it does not depend on the run.
        giver = dealt(users, 1, numbered(0))
        advantage = np.log(ranked([texts[giver[row]] for row in rows])) - np.log(ranks)
        measures |= {"own": float(advantage.mean()), "own_se": standard_error(advantage)}
    facts = gather([(one.tokens, one.finished) for one in written])
    return measures | {
        "tokens": float(np.mean([tokens for tokens, _ in facts])),
        "finished": float(np.mean([finished for _, finished in facts])),
        "distinct": len(set(texts)) / len(texts),
        "repetition": float(np.mean([repetition(words(text), run=2) for text in texts])),
        "ranks": ranks.tolist(),
    }


def gains(start: Sequence[int], now: Sequence[int]) -> dict[str, float]:
    """The gain since the start, and its noise, from ranks ``[S]`` at the start and now, paired by session.

    Returns:
        ``gain``: mean of ln(rank at the start) - ln(rank now), positive for an improvement; ``gain_se``, its standard
        error; ``ndcg_gain_se``, the standard error of the mean difference in NDCG.
    """
    before, after = np.asarray(start), np.asarray(now)
    gain = np.log(before) - np.log(after)
    difference = from_ranks("ndcg", after) - from_ranks("ndcg", before)
    return {
        "gain": float(gain.mean()),
        "gain_se": standard_error(gain),
        "ndcg_gain_se": standard_error(difference),
    }


class Guard:
    """The rules that detect a collapsed run; the recipe has the limits (``GuardLimits``)."""

    def __init__(self, limits: GuardLimits):
        self._limits = limits

    def __call__(self, curve: Sequence[dict[str, Any]]) -> str | None:
        """The rule that the last row of a curve violates, as a message; None for none. The first row is the start."""
        start, now, limits = curve[0], curve[-1], self._limits
        for key, what in (("distinct", "distinct profiles"), ("finished", "profiles that end by themselves")):
            least = getattr(limits, key) * start.get(f"val_{key}", 0.0)
            if now.get(f"val_{key}", 1.0) < least:
                return (
                    f"share of {what} {now[f'val_{key}']:.2f}, at the start {start[f'val_{key}']:.2f} "
                    f"(guard.{key}: {getattr(limits, key):g} of that)"
                )
        before, own = start.get("val_own"), now.get("val_own")
        if limits.own and None not in (before, own) and before > 2 * start["val_own_se"]:
            advantage = own + 2 * now["val_own_se"]
            if advantage < limits.own * before:
                return (
                    f"own profiles no longer rank better than another user's: by {own:.3f} in log rank, at the start "
                    f"by {before:.3f} (guard.own: {limits.own:g} of that)"
                )
        if now.get("entropy", np.inf) < limits.entropy and now["val_ndcg"] < start["val_ndcg"]:
            return (
                f"entropy {now['entropy']:.4f} nats per token and validation NDCG {now['val_ndcg']:.4f} below the "
                f"start's {start['val_ndcg']:.4f} (guard.entropy: {limits.entropy:g})"
            )
        return None
