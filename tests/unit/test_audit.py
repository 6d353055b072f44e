"""The audit of order and leakage, on sessions whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from langptune.data.audit import Check, _drift, _rank, audit
from langptune.data.interactions import train_pairs
from tests.conftest import sessions_table

ITEMS = pl.DataFrame({"item": range(50)})


def checks(rows, dropped=None, kept=0, tied=0.0) -> dict[str, Check]:
    return {check.name: check for check in audit(ITEMS, sessions_table(rows), dropped or {}, kept, tied)}


def test_time_cold_and_ties_by_hand():
    found = checks(
        [
            ("a", "train", [0], 1, 10),
            ("a", "train", [0, 1], 2, 20),
            ("b", "train", [0], 1, 40),
            ("b", "train", [0, 1], 3, 50),
            ("a", "val", [0, 1, 2], 3, 30),
            ("a", "test", [0, 1, 2, 3], 1, 30),  # at the validation target's time; half of the train targets are newer
            ("c", "test", [4], 9, 60),  # an item and a user that do not occur in training, later than all of it
        ],
        {"identical rows": 1, "later interactions of a user with the same item": 2, "lines without a title": 70},
        kept=9,
        tied=0.5,
    )
    assert found["test targets before the end of training"] == Check(
        "test targets before the end of training",
        0.5,
        "warning",
        found["test targets before the end of training"].meaning,
    )
    assert found["train targets after a test target"].value == pytest.approx(0.25)
    assert (found["ties in time"].value, found["ties in time"].level) == (0.5, "warning")
    assert found["cold items"].value == found["cold users"].value == pytest.approx(0.5)
    assert found["repeated events"].value == pytest.approx(3 / 12), "of events, not of sessions"
    # Without themselves, train targets have counts 1, 0, 1, 0, and test targets 2 and 0. Shares below: 1 and 0.25.
    assert found["drift of popularity"].value == pytest.approx(0.625 - 0.5)


def test_repeated_events_that_are_kept_are_a_warning():
    check = checks([("a", "train", [0], 1, 10), ("a", "test", [0, 1], 2, 20)], kept=None)["repeated events"]
    assert (check.value, check.level) == (None, "warning")


def test_a_clean_temporal_split_is_ok():
    rng = np.random.default_rng(0)
    items = [int(item) for item in rng.integers(0, 20, 4000)]
    rows = [(f"u{at % 40}", "train", [items[at - 1]], items[at], at) for at in range(1, 3000)]
    rows += [(f"u{at % 40}", "val", [items[at - 1], items[at - 2]], items[at], 10_000 + at) for at in range(3000, 3200)]
    rows += [(f"u{at % 40}", "test", [items[at - 1]], items[at], 20_000 + at) for at in range(3200, 4000)]
    found = checks(rows)
    assert {found[name].level for name in found if name != "order"} == {"OK"}
    assert found["order"].level == "attention", "items at random have no order"


@pytest.mark.parametrize("ordered", [True, False])
def test_order_is_found_where_it_is(ordered):
    """Users walk through the items one by one, or meet the same items in random order."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(80):
        walk = [(int(rng.integers(50)) + step) % 50 if not ordered else (user + step) % 50 for step in range(12)]
        walk = list(dict.fromkeys(walk))
        rows += [(f"u{user}", "train", walk[:at], walk[at], user * 100 + at) for at in range(1, len(walk) - 2)]
        rows.append((f"u{user}", "val", walk[:-2], walk[-2], user * 100 + 50))
        rows.append((f"u{user}", "test", walk[:-1], walk[-1], user * 100 + 60))
    found = checks(rows)["order"]
    if ordered:
        assert found.level == "OK" and found.value > 0.5
    else:
        assert found.level == "attention"


def test_known_items_are_those_of_the_train_pairs():
    rng = np.random.default_rng(2)
    rows = [
        ("u", "train", [int(x) for x in rng.choice(30, 4, replace=False)], int(rng.integers(30)), t) for t in range(9)
    ]
    known = set(train_pairs(sessions_table(rows))["item"])
    for target in range(30):
        cold = checks([*rows, ("u", "test", [], target, 100)])["cold items"].value
        assert cold == float(target not in known)


def test_no_drift_where_all_items_are_alike():
    """A train target must not look popular because it is counted itself, which matters if items have few sessions."""
    rng = np.random.default_rng(0)
    rows = [
        (f"{user}", split, [int(rng.integers(500))], int(rng.integers(500)), time)
        for user in range(1000)
        for time, split in enumerate(("train", "test"))
    ]
    frame = sessions_table(rows)
    train, test = (frame.filter(pl.col("split") == split) for split in ("train", "test"))
    check = _drift(train, test, 500)
    assert check.level == "OK" and abs(check.value) < 0.03


def test_the_chain_ranks_as_over_the_whole_catalogue():
    rng = np.random.default_rng(1)
    for _ in range(300):
        popularity = rng.integers(0, 4, 40) / 200
        items = rng.choice(40, rng.integers(0, 9), replace=False)
        counts, seen, target = rng.integers(1, 3, len(items)), rng.integers(1, 40, 6), 0
        scores = popularity.copy()
        scores[items] += counts
        scores[seen] = -1
        expected = 1 + (scores > scores[0]).sum() + math.ceil(((scores == scores[0]).sum() - 1) / 2)
        assert _rank(target, seen, items, counts, popularity, np.sort(popularity)) == expected


def test_splits_without_sessions_are_no_crash():
    assert checks([("a", "test", [1], 2, 3)])["order"].value is None
    assert checks([("a", "train", [1], 2, 3)])["drift of popularity"].value is None
