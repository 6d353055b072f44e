"""UserKNN, P3alpha, RP3beta, ALS: their scores follow the formulas, and no held-out target reaches them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from langptune.baselines import als, nmf, random_walk, userknn
from langptune.baselines.frame import fit, matrices
from langptune.errors import UserError
from tests.unit.test_controls import sessions
from tests.unit.test_nmf import BLOCKS, PER_BLOCK, N, planted

MODELS = {
    "nmf": lambda: nmf.Model(nmf.Keys(components=BLOCKS, max_iterations=300)),
    "userknn": lambda: userknn.Model(userknn.Keys(neighbours=8)),
    "p3alpha": lambda: random_walk.Model(random_walk.Keys()),
    "rp3beta": lambda: random_walk.Model(random_walk.Keys(beta=0.5)),
    "als": lambda: als.Model(als.Keys(factors=BLOCKS, regularization=1)),
}


def some_sessions(users: int = 25, items: int = 18, seed: int = 1) -> pl.DataFrame:
    """Each user has a train session, and every fifth user has a test session with a longer history."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        own = rng.permutation(items)[: rng.integers(4, 9)].tolist()
        rows.append((f"u{user}", "train", own[:-2], own[-2]))
        if user % 5 == 0:
            rows.append((f"u{user}", "test", own[:-1], own[-1]))
    return sessions(rows)


def lesson(table: pl.DataFrame, n_items: int) -> fit.Lesson:
    return fit.lesson(table, n_items, "val", 0, print)


def scored(model, table: pl.DataFrame, n_items: int) -> np.ndarray:
    """The scores of the test sessions by a model fitted on the table."""
    model.fit(lesson(table, n_items))
    return model.scores(table.filter(pl.col("split") == "test").select(model.asks))


def sets(table: pl.DataFrame) -> tuple[list[str], list[set[int]], list[tuple[str, set[int]]]]:
    """The items of each train user; and the user and shown items of each test session."""
    train = {row["user_id"]: {*row["history"], row["target"]} for row in table.to_dicts() if row["split"] == "train"}
    tests = [(row["user_id"], set(row["seen"])) for row in table.to_dicts() if row["split"] == "test"]
    users = sorted(train)
    return users, [train[user] for user in users], tests


@pytest.mark.parametrize(("neighbours", "shrink"), [(3, 0.0), (6, 2.5), (99, 1.0)])
def test_userknn_adds_the_similarities_of_the_nearest_other_users(neighbours, shrink):
    table = some_sessions()
    users, train, tests = sets(table)
    expected = np.zeros((len(tests), 18))
    for row, (user, shown) in enumerate(tests):
        similar = [
            0.0 if other == user else len(shown & items) / (np.sqrt(len(shown) * len(items)) + shrink)
            for other, items in zip(users, train, strict=True)
        ]
        for place in np.argsort(-np.array(similar), kind="stable")[:neighbours]:
            expected[row, list(train[place])] += similar[place]
    found = scored(userknn.Model(userknn.Keys(neighbours=neighbours, shrink=shrink)), table, 18)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta", "neighbours"), [(1.0, 0.0, 99), (0.7, 0.6, 99), (1.3, 0.3, 4)])
def test_walks_have_the_probabilities_of_their_steps(alpha, beta, neighbours, monkeypatch):
    monkeypatch.setattr(random_walk, "_WALKS", 5 * 18)  # several blocks of items
    table = some_sessions()
    _, train, tests = sets(table)
    count = [sum(item in items for items in train) for item in range(18)]
    walks = np.zeros((18, 18))
    for start in range(18):
        for items in train:
            for end in items - {start}:
                if start in items:
                    step = (1 / count[start]) ** alpha * (1 / len(items)) ** alpha
                    walks[start, end] += step / count[end] ** beta
    for row in walks:
        row[np.argsort(-row, kind="stable")[neighbours:]] = 0
    expected = [sum(walks[item] for item in shown) for _, shown in tests]
    keys = random_walk.Keys(alpha=alpha, beta=beta, neighbours=neighbours)
    np.testing.assert_allclose(scored(random_walk.Model(keys), table, 18), expected, atol=1e-12)


def test_als_solves_for_a_session_what_the_paper_says():
    table = some_sessions()
    model = als.Model(als.Keys(factors=5, regularization=0.3, confidence=4))
    found = scored(model, table, 18)
    items = np.asarray(model.als.item_factors)
    for row, (_, shown) in zip(found, sets(table)[2], strict=True):
        preference = np.isin(np.arange(18), list(shown)).astype(float)
        confidence = np.where(preference > 0, 4.0, 1.0)
        left = items.T @ (confidence[:, None] * items) + 0.3 * np.eye(5)
        user = np.linalg.solve(left, items.T @ (confidence * preference))
        np.testing.assert_allclose(row, items @ user, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_planted_blocks_are_found_for_users_who_were_not_trained_on(name):
    table = planted()
    tests = table.filter(pl.col("split") == "test")
    for row, history in zip(scored(MODELS[name](), table, N), tests["history"].to_list(), strict=True):
        assert set(np.argsort(-row)[:PER_BLOCK] // PER_BLOCK) == {history[0] // PER_BLOCK}


@pytest.mark.parametrize("name", MODELS)
def test_held_out_targets_reach_no_score(name):
    table = planted()
    held_out = pl.col("split") != "train"
    other = (pl.col("target") + 1) % N
    moved = pl.when(held_out & ~pl.col("seen").list.contains(other)).then(other).otherwise(pl.col("target"))
    changed = table.with_columns(moved.cast(pl.Int32).alias("target"))
    assert not changed.equals(table)
    assert (scored(MODELS[name](), table, N) == scored(MODELS[name](), changed, N)).all()


@pytest.mark.parametrize("name", MODELS)
def test_without_train_sessions_there_is_one_line(name):
    only = planted().filter(pl.col("split") == "val")
    with pytest.raises(UserError, match="there is nothing to train on; the sessions have no train split"):
        MODELS[name]().fit(lesson(only, N))


def test_train_matrix_holds_each_pair_of_train_once():
    table = sessions(
        [("b", "train", [0, 0], 1), ("b", "train", [0, 1], 2), ("a", "train", [1], 2), ("c", "val", [3], 4)]
    )
    matrix, users = matrices.train_users(lesson(table, 5), "model")
    assert users == ["a", "b"] and matrix.toarray().tolist() == [[0, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert matrices.session_matrix(table, 5).toarray()[[0, 3]].tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]


def test_of_equal_values_the_lower_columns_are_kept():
    rows = np.array([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 2.0, 1.0]])
    assert matrices.keep_largest(rows, 2).tolist() == [[0, 3, 3, 0], [0, 0, 2, 1]]
    assert matrices.keep_largest(rows, 9).tolist() == rows.tolist()
