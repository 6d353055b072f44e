"""The orders of interactions that benchmarks/holdout.py compares."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from benchmarks import holdout
from langptune.data.reader_output import Raw


def raw(ids: list[str], times: list[int]) -> Raw:
    columns = {"row": range(len(ids)), "user_id": ["u"] * len(ids), "item_id": ids, "rating": 1.0, "timestamp": times}
    return Raw(pl.DataFrame(columns), pl.LazyFrame({"item_id": ids}), None, [Path("none")])


def in_order(raw: Raw) -> list[str]:
    return raw.interactions.sort("timestamp")["item_id"].to_list()


@pytest.mark.parametrize(
    ("ids", "rising", "falling"),
    [
        (["10", "9", "2", "1"], ["10", "2", "9", "1"], ["10", "9", "2", "1"]),
        (["x", "b", "a", "c"], ["x", "a", "b", "c"], ["x", "b", "a", "c"]),
    ],
)
def test_only_interactions_of_one_time_are_ordered_by_id(ids, rising, falling):
    before = raw(ids, [1, 2, 2, 3])
    found = holdout.orders(before, [0])
    assert in_order(found["rising"][0]) == rising and in_order(found["falling"][0]) == falling
    assert found["last"][0] is before and before.interactions["timestamp"].to_list() == [1, 2, 2, 3]
    assert all(one.interactions["item_id"].to_list() == ids for (one,) in found.values()), "rows keep their places"


def test_random_orders_differ_by_seed_and_move_items_to_other_times():
    ids = [str(n) for n in range(200)]
    found = holdout.orders(raw(ids, list(range(200))), [0, 1, 0])["random"]
    first, second, again = map(in_order, found)
    assert first == again != second and sorted(first) == sorted(ids)
    assert sum(one == other for one, other in zip(first, ids, strict=True)) < 20


def test_users_with_a_tied_last_item_are_counted():
    assert holdout.tied(raw(["a", "b", "c"], [1, 2, 2])) == 1
    assert holdout.tied(raw(["a", "b", "c"], [1, 1, 2])) == 0
