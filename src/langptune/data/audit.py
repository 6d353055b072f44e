"""Order and leakage in a prepared dataset: what its protocol lets a method know, and whether order tells anything.

The checks read the prepared sessions, and facts that their preparation noted. None of them changes a result; the
dataset card shows them with a level each: ``OK``, ``attention`` (say it in a paper) and ``warning`` (it limits what
results mean). Global leakage of per-user splits is the subject of Ji, Sun, Zhang and Li, "A critical study on data
leakage in recommender system offline evaluation" (TOIS 2023); shuffled histories as a test of order are due to
Klenitskiy et al., "Does it look sequential?" (RecSys 2024), who use SASRec and GRU4Rec where a chain of items stands
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from langptune.randomness import numbered

Level = Literal["OK", "attention", "warning"]
_BLOCK = 100_000
_SHUFFLE = 9


@dataclass(frozen=True)
class Check:
    """One line of the audit.

    value: a share of 0 to 1, or what ``meaning`` says; None where the dataset cannot tell.
    """

    name: str
    value: float | None
    level: Level
    meaning: str


def audit(
    items: pl.DataFrame, sessions: pl.DataFrame, dropped: dict[str, int], kept: int | None, tied: float
) -> list[Check]:
    """The checks of one dataset.

    Args:
        items: contract ``items``.
        sessions: contract ``sessions``.
        dropped: reason -> rows left out by the preparation, for repeated events.
        kept: events that were left when repeated ones were dropped (step ``repeats`` of the funnel); None where they
            were not dropped.
        tied: share of test targets that have the time of another event of their user.
    """
    train, val, test = (sessions.filter(pl.col("split") == split) for split in ("train", "val", "test"))
    return [
        *_time(train, test),
        _repeats(kept, dropped),
        _ties(tied),
        *_cold(train, test),
        _drift(train, test, len(items)),
        _order(train, val, len(items)),
    ]


def _level(value: float, attention: float, warning: float) -> Level:
    """The level of a value that should be small: above which it needs attention, and above which it is a warning."""
    return "warning" if value > warning else "attention" if value > attention else "OK"


def _time(train: pl.DataFrame, test: pl.DataFrame) -> list[Check]:
    """Training on what happened after a test target."""
    if train.is_empty() or test.is_empty():
        return []
    times = np.sort(train["target_time"].to_numpy())
    later = 1 - np.searchsorted(times, test["target_time"].to_numpy(), side="right") / len(times)
    before = float((later > 0).mean())
    return [
        Check(
            "test targets before the end of training",
            before,
            _level(before, 0.0, 0.05),
            "share of test targets that are older than the newest train target: models know the future of these",
        ),
        Check(
            "train targets after a test target",
            float(later.mean()),
            _level(float(later.mean()), 0.0, 0.05),
            "share of train targets that are newer than a test target, mean over test targets",
        ),
    ]


def _repeats(kept: int | None, dropped: dict[str, int]) -> Check:
    """Events that the preparation left out because they repeat an earlier one."""
    name = "repeated events"
    if kept is None:
        return Check(
            name,
            None,
            "warning",
            "the protocol keeps events in which a user meets an item again: a target may be known",
        )
    repeated = sum(
        count for reason, count in dropped.items() if reason.startswith(("identical rows", "later interact"))
    )
    share = repeated / max(1, kept + repeated)
    return Check(
        name,
        share,
        _level(share, 0.01, 0.1),
        "share of events in which a user meets an item again; only the first one is kept, so that no target is known",
    )


def _ties(share: float) -> Check:
    """Targets at the very time of another event of their user: the order of these is by a hash, and means nothing."""
    return Check(
        "ties in time",
        share,
        _level(share, 0.05, 0.25),
        "share of test targets at the same time as another event of their user: which of these is last is arbitrary",
    )


def _known(train: pl.DataFrame) -> np.ndarray:
    """Items of the train sessions, int ``[K]``, sorted."""
    found = [train["target"].unique()]
    for start in range(0, len(train), _BLOCK):  # histories overlap: all of them at once would be fifty times the data
        found.append(train["history"].slice(start, _BLOCK).explode().drop_nulls().unique())
    return np.unique(np.concatenate([part.to_numpy() for part in found]))


def _cold(train: pl.DataFrame, test: pl.DataFrame) -> list[Check]:
    """Items and users that training does not know."""
    if test.is_empty():
        return []
    items = float((~np.isin(test["target"].to_numpy(), _known(train))).mean())
    users = float((~test["user_id"].is_in(train["user_id"].unique().implode())).mean())
    return [
        Check(
            "cold items",
            items,
            _level(items, 0.01, 0.1),
            "share of test targets that no train session contains: models of ids cannot rank them",
        ),
        Check(
            "cold users",
            users,
            _level(users, 0.01, 1.0),
            "share of test users without a train session: models of users know at most their test histories",
        ),
    ]


def _drift(train: pl.DataFrame, test: pl.DataFrame, n_items: int) -> Check:
    """Whether test targets are as popular as train targets, by popularity in training."""
    meaning = (
        "share of train targets that are less popular than a test target, mean over test targets, minus one half; at 0 "
        "test targets are as popular as train targets, below 0 less popular"
    )
    if train.is_empty() or test.is_empty():
        return Check("drift of popularity", None, "attention", meaning)
    counts = np.bincount(train["target"].to_numpy(), minlength=n_items)
    # A test target is not among the counts. Nor is a train target: each would be more popular by itself.
    ordered = np.sort(counts[train["target"].to_numpy()] - 1)
    of_test = counts[test["target"].to_numpy()]
    below, upto = (np.searchsorted(ordered, of_test, side=side) for side in ("left", "right"))
    value = float(((below + upto) / 2 / len(ordered)).mean()) - 0.5
    return Check("drift of popularity", value, _level(abs(value), 0.05, 0.15), meaning)


def _order(train: pl.DataFrame, val: pl.DataFrame, n_items: int) -> Check:
    """What a chain of items loses on validation when histories are shuffled.

    The chain scores an item by how often it followed the last item of the history in training. Its NDCG@10 with the
    true last item is compared with that of a random item of the history.
    """
    meaning = (
        "share of its validation NDCG@10 that a chain of items (what followed the last item in training) loses when "
        "histories are shuffled; near 0 or below: there is no order to learn, and sequential models have no advantage"
    )
    long = val.filter(pl.col("history").list.len() > 1)
    pairs = train.select(pl.col("history").list.last().alias("last"), "target").drop_nulls()
    if pairs.is_empty() or long.is_empty():
        return Check("order", None, "attention", meaning)
    counts = pairs.group_by("last", "target").len()
    popularity = np.bincount(pairs["target"].to_numpy(), minlength=n_items) / (len(pairs) + 1)  # below 1: breaks ties
    followers = {
        int(last[0]): (part["target"].to_numpy(), part["len"].to_numpy()) for last, part in counts.group_by("last")
    }
    nobody = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    ordered = np.sort(popularity)
    rng = numbered(0, _SHUFFLE)
    gains = np.zeros((len(long), 2))
    for row, (history, seen, target) in enumerate(long.select("history", "seen", "target").iter_rows()):
        for column, last in enumerate((history[-1], history[int(rng.integers(len(history)))])):
            rank = _rank(target, np.asarray(seen), *followers.get(last, nobody), popularity, ordered)
            gains[row, column] = 1 / np.log2(1 + rank) if rank <= 10 else 0.0
    true, shuffled = gains.mean(axis=0)
    if true == 0.0:
        return Check("order", None, "attention", meaning)
    difference = gains[:, 0] - gains[:, 1]
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else float("inf")
    # Order is there when the loss is clearly above what chance gives.
    level: Level = "OK" if difference.mean() > 2 * error else "attention"
    return Check("order", float((true - shuffled) / true), level, meaning)


def _rank(
    target: int, seen: np.ndarray, items: np.ndarray, counts: np.ndarray, popularity: np.ndarray, ordered: np.ndarray
) -> int:
    """Rank of an item by popularity plus the counts of a few items, without those that are seen.

    It looks at few items: to score the whole catalogue for each of a hundred thousand users would take hours.

    Args:
        seen: int ``[H]``; the target is not among them.
        items, counts: int ``[F]``, distinct items and what is added for each.
        popularity: float64 ``[N]``, below 1.
        ordered: ``popularity``, ascending.
    """
    score = popularity[target] + counts[items == target].sum()
    unseen = ~np.isin(items, seen)
    scored = (popularity[items] + counts)[unseen]
    alone = popularity[np.union1d(seen, items)]  # all but these have their popularity as their score
    below, upto = (int(np.searchsorted(ordered, score, side=side)) for side in ("left", "right"))
    above = len(ordered) - upto - int((alone > score).sum()) + int((scored > score).sum())
    equal = upto - below - int((alone == score).sum()) + int((scored == score).sum())
    return 1 + above + equal // 2
