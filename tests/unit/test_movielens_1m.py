"""The entries of MovieLens-1M on an archive of its size give the counts that publications state."""

from __future__ import annotations

import polars as pl
import pytest

from langptune.config.load import load
from langptune.data import protocols, readers
from tests import movielens
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ml-1m")
    movielens.write(folder)
    names = ["ml-1m-core5", "ml-1m-temporal-last"]
    # The synthetic archive has another hash than the real one.
    change = {name: {"source": {"folder": str(folder)}, "sha256": {}} for name in names}
    config = {"datasets": names, "methods": ["pop"], "dataset_overrides": change}
    known = load(config, ROOT).datasets
    return {name: (known[name], readers.read(known[name], name)) for name in names}


def test_counts_are_those_that_the_entry_expects(raw):
    entry, read = raw["ml-1m-core5"]
    assert (entry.expect.interactions, entry.expect.users, entry.expect.items) == (1_000_209, 6_040, 3_883)
    assert len(read.interactions) == 1_000_209 and read.interactions["user_id"].n_unique() == 6_040


def test_leave_one_out_has_the_published_users_and_items(raw):
    entry, read = raw["ml-1m-core5"]
    prepared = protocols.prepare(read, entry, "ml-1m-core5")
    assert len(prepared.items) == 3_416
    splits = dict(prepared.sessions.group_by("split").len().iter_rows())
    assert splits["test"] == splits["val"] == 6_040
    assert splits["train"] == prepared.facts["interactions"] - 3 * 6_040


def test_the_temporal_split_takes_the_last_item_of_each_user(raw):
    entry, read = raw["ml-1m-temporal-last"]
    prepared = protocols.prepare(read, entry, "ml-1m-temporal-last")
    test = prepared.sessions.filter(pl.col("split") == "test")
    assert 500 < len(test) == test["user_id"].n_unique() < 6_040
    known = read.interactions.join(prepared.items.select("item_id"), on="item_id")
    last = known.group_by("user_id").agg(pl.col("timestamp").max())
    joined = test.select("user_id", "target_time").join(last, on="user_id")
    assert (joined["target_time"] == joined["timestamp"]).all()
