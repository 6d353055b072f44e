"""Metrics on parts of the sessions: the parts sum to the whole, and each part has the sessions that its label says."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from langptune.comparison import grid, slices
from langptune.comparison.significance import detectable
from langptune.figures.comparison.slices import Point
from langptune.figures.comparison.slices import slices as draw
from tests.conftest import sessions_table

METRICS = ("ndcg@10", "log-rank")
ITEMS = 30


@pytest.fixture
def sessions() -> pl.DataFrame:
    """Forty users with train sessions, ten without; targets of all items, half of which do not occur in training."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(50):
        if user < 40:
            for _ in range(5):
                # Item 0 is by far the most popular one.
                rows.append((f"u{user}", "train", [], int(rng.choice([0, 0, 0, *range(15)]))))
        rows.append((f"u{user}", "test", list(range(15, 15 + user % 7)), int(rng.integers(ITEMS))))
    return sessions_table([(*row, at) for at, row in enumerate(rows)])


def row(method: str, models: str, sessions: int, seeds: int, seed: int) -> grid.Row:
    values = np.random.default_rng(seed).random((sessions, seeds, 2))
    ranks = np.ones((sessions, seeds), dtype=int)
    numbers = tuple(range(seeds))
    return grid.Row(method, models, method, "profiles", "", 0, numbers, numbers, values, ranks)


@pytest.fixture
def compared(sessions) -> grid.Grid:
    ids = sessions.filter(pl.col("split") == "test")["session"].to_numpy()
    rows = (row("base", "a+b", 50, 2, 1), row("other", "a+b", 50, 2, 2), row("pop", "pop", 50, 1, 3))
    return grid.Grid(ids, METRICS, rows)


def test_the_slices_sum_to_the_whole(compared, sessions):
    found = slices.table(compared, "base", sessions, ITEMS, resamples=100)
    known = {"history-length", "target-popularity", "target-in-training", "user-in-training"}
    assert known <= set(found["slicing"]) <= set(slices.SLICINGS)
    for (_, method, metric), part in found.group_by("slicing", "method", "metric"):
        assert part["sessions"].sum() == 50
        whole = next(one for one in compared.rows if one.method == method).values.mean(axis=(0, 1))
        mean = (part["mean"] * part["sessions"]).sum() / 50
        assert mean == pytest.approx(whole[METRICS.index(metric)], abs=1e-12)
    assert (found["low"] <= found["mean"]).all() and (found["mean"] <= found["high"]).all()


def test_differences_are_to_the_reference_of_the_same_models(compared, sessions):
    found = slices.table(compared, "base", sessions, ITEMS, resamples=100)
    assert found.filter(pl.col("method") == "base")["difference"].null_count() == len(found) // 3
    one = found.row(
        by_predicate=(pl.col("method") == "pop") & (pl.col("slice") == "new") & (pl.col("metric") == "ndcg@10"),
        named=True,
    )
    new = ~sessions.filter(pl.col("split") == "test")["user_id"].is_in([f"u{user}" for user in range(40)]).to_numpy()
    differences = compared.rows[2].values[new, 0, 0] - compared.rows[0].values[new][:, :, 0].mean(axis=1)
    assert one["sessions"] == 10 and one["difference"] == pytest.approx(differences.mean())
    assert one["detectable"] == pytest.approx(2.8016 * differences.std(ddof=1) / np.sqrt(10), rel=1e-4)


def test_each_slice_is_what_its_label_says(sessions):
    test = sessions.filter(pl.col("split") == "test")
    train = sessions.filter(pl.col("split") == "train")
    pairs = train.unique(["user_id", "target"])
    counts = np.bincount(pairs["target"].to_numpy(), minlength=ITEMS).astype(float)
    known = slices.target_in_training(test, train, counts)
    assert ((known.of == 0) == test["target"].is_in(train["target"].implode()).to_numpy()).all()
    lengths = test["seen"].list.len().to_numpy()
    parts = slices.history_length(test, train, counts)
    assert parts.labels == ("up to 2", "3 to 4", "over 4")
    assert all(
        {int(n) for n in lengths[parts.of == at]} <= allowed for at, allowed in enumerate(({0, 1, 2}, {3, 4}, {5, 6}))
    )
    thirds = slices.target_popularity(test.with_columns(target=pl.lit(0)), train, counts)
    assert (thirds.of == 0).all(), "the most popular item is in the head"
    share = [
        counts[slices.target_popularity(pl.DataFrame({"target": range(ITEMS)}), train, counts).of == at].sum()
        for at in range(3)
    ]
    assert min(share) > 0.15 * counts.sum() and sum(share) == counts.sum()


def test_a_slicing_without_parts_is_left_out(compared, sessions):
    alone = sessions.with_columns(user_id=pl.lit("u"), seen=pl.col("seen").list.head(0), target=pl.lit(0))
    assert slices.table(compared, "base", alone, ITEMS, resamples=100).is_empty()


def test_the_detectable_difference_is_found_in_four_of_five_samples():
    rng = np.random.default_rng(4)
    true = detectable(rng.normal(0, 1, 200_000)) * np.sqrt(200_000 / 60)
    found = [stats.ttest_1samp(rng.normal(true, 1, 60), 0).pvalue < 0.05 for _ in range(2000)]
    assert 0.77 < np.mean(found) < 0.83
    assert detectable(np.array([1.0])) is None
    few = np.zeros(300)
    few[:5] = 1.0
    assert detectable(few) is None, "five signs have no pattern below 5%"
    assert detectable(few, level=0.1) is not None
    few[5] = 1.0
    assert detectable(few) is not None
    assert detectable(np.zeros(50)) is None, "no difference at all does not mean that any would have been found"


def test_small_parts_are_grey_and_every_method_is_in_the_legend():
    points = [
        Point(
            f"m{number}",
            f"Method {number}",
            "profiles" if number < 6 else "baselines",
            part,
            size,
            number / 10,
            0.0,
            1.0,
        )
        for number in range(9)
        for part, size in (("known", 100), ("cold", 4))
    ]
    figure = draw({"Target in training": points}, "NDCG@10")
    axis = figure.axes[0]
    assert len(axis.patches) == 1 and [text.get_text() for text in axis.get_xticklabels()] == [
        "known\nn = 100",
        "cold\nn = 4",
    ]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Method 3", "Method 4", "Method 5", "Method 8"], "three of profiles, the best baseline"
    nothing = draw({}, "NDCG@10")
    shown = [text.get_text() for part in (nothing, *nothing.axes) for text in part.texts]
    assert any("cannot be parted" in text for text in shown)
