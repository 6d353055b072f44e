"""Exact ranks against a slow and simple reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langptune.errors import UserError
from langptune.ranking import ranks
from langptune.ranking.ranks import full_ranks


def slow(scores: list[float], target: int, mask: list[int]) -> tuple[int, list[int]]:
    """Rank and full order of one session by definition: masked items are left out."""
    items = [item for item in range(len(scores)) if item not in mask]
    higher = sum(scores[item] > scores[target] for item in items)
    ties = sum(scores[item] == scores[target] for item in items if item != target)
    half = ties // 2 if ties % 2 == 0 else ties // 2 + 1
    return 1 + higher + half, sorted(items, key=lambda item: (-scores[item], item))


@st.composite
def batches(draw):
    n_items = draw(st.integers(1, 12))
    size = draw(st.integers(1, 5))
    # few distinct values, so that most scores tie
    value = st.sampled_from([-np.inf, -1.5, 0.0, 0.25, 1.0]) | st.floats(-3, 3, width=32)
    scores = draw(st.lists(st.lists(value, min_size=n_items, max_size=n_items), min_size=size, max_size=size))
    targets = draw(st.lists(st.integers(0, n_items - 1), min_size=size, max_size=size))
    masks = [
        draw(st.lists(st.integers(0, n_items - 1).filter(lambda item, t=target: item != t), max_size=n_items))
        if n_items > 1
        else []
        for target in targets
    ]
    top = draw(st.integers(0, n_items + 3))
    return np.array(scores, dtype=np.float32), targets, masks, top


@settings(max_examples=200, deadline=None)
@given(batches())
def test_agrees_with_the_slow_reference(batch):
    scores, targets, masks, top = batch
    before = scores.copy()
    ranked = full_ranks(scores, targets, masks, top)
    assert np.array_equal(scores, before), "the scores must not be modified"
    width = min(top, scores.shape[1])
    assert ranked.rank.dtype == np.int32
    assert ranked.top.shape == ranked.top_scores.shape == (len(scores), width)
    for row in range(len(scores)):
        rank, order = slow(scores[row].tolist(), targets[row], masks[row])
        best = order[:width]
        padding = width - len(best)
        assert ranked.rank[row] == rank
        assert ranked.top[row].tolist() == best + [-1] * padding
        assert np.array_equal(ranked.top_scores[row, : len(best)], scores[row, best])
        assert np.isnan(ranked.top_scores[row, len(best) :]).all()


@settings(max_examples=60, deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_renaming_the_items_changes_no_rank(batch, random):
    scores, targets, masks, _ = batch
    new = list(range(scores.shape[1]))
    random.shuffle(new)  # item i is now called new[i]
    renamed = np.empty_like(scores)
    renamed[:, new] = scores
    there = full_ranks(renamed, [new[t] for t in targets], [[new[i] for i in mask] for mask in masks])
    assert np.array_equal(there.rank, full_ranks(scores, targets, masks).rank)


@pytest.mark.parametrize(("n_items", "middle"), [(1, 1), (2, 2), (9, 5), (10, 6), (1001, 501)])
def test_a_constant_scorer_lands_in_the_middle(n_items, middle):
    scores = np.zeros((n_items, n_items), dtype=np.float32)
    ranked = full_ranks(scores, list(range(n_items)), [[]] * n_items, top=3)
    assert set(ranked.rank.tolist()) == {middle}


def test_masked_items_count_neither_as_higher_nor_as_ties():
    scores = np.array([[5.0, 4.0, 3.0, 3.0, 3.0, 1.0]])
    assert full_ranks(scores, [2], [[]]).rank[0] == 4  # two higher, two ties: 1 + 2 + 1
    assert full_ranks(scores, [2], [[0]]).rank[0] == 3
    assert full_ranks(scores, [2], [[0, 3, 3]]).rank[0] == 3  # one higher, one tie, rounded up; duplicates harmless
    assert full_ranks(scores, [2], [[0, 1, 3, 4]]).rank[0] == 1


def test_float64_scores_are_not_rounded_to_ties():
    scores = np.array([[1.0, 1.0 + 1e-12]])
    assert full_ranks(scores, [0], [[]]).rank[0] == 2
    assert full_ranks(scores, [1], [[]]).rank[0] == 1


def test_a_catalogue_of_one_item():
    ranked = full_ranks(np.array([[0.3]]), [0], [[]])
    assert ranked.rank.tolist() == [1]
    assert ranked.top.tolist() == [[0]]


def test_an_empty_batch():
    ranked = full_ranks(np.empty((0, 4)), [], [], top=2)
    assert ranked.rank.shape == (0,)
    assert ranked.top.shape == (0, 2)


@pytest.mark.parametrize(
    ("scores", "targets", "masks", "message"),
    [
        ([[0.0, np.nan]], [0], [[]], "NaN or [+]inf"),
        ([[0.0, np.inf]], [0], [[]], "NaN or [+]inf"),
        ([[0.0, 1.0]], [2], [[]], "outside the catalogue"),
        ([[0.0, 1.0]], [-1], [[]], "outside the catalogue"),
        ([[0.0, 1.0]], [0], [[2]], "masked item lies outside"),
        ([[0.0, 1.0], [0.0, 1.0]], [0, 1], [[1], [0, 1]], "row 1: target 1 is in its own history"),
        ([[0.0, 1.0]], [0, 1], [[], []], "do not describe the same sessions"),
        ([[0.0, 1.0]], [0], [], "do not describe the same sessions"),
        ([0.0, 1.0], [0], [[]], "do not describe the same sessions"),
    ],
)
def test_broken_input_is_refused(scores, targets, masks, message):
    with pytest.raises(UserError, match=message):
        full_ranks(np.array(scores), targets, masks)


@pytest.mark.parametrize("block", [1, 1 << 12, 1 << 19])
@pytest.mark.parametrize("distinct", [3, 40, 10**6])
def test_large_catalogues_agree_too_in_blocks_of_any_size(block, distinct, monkeypatch):
    """Beyond 256 items, the maxima of columns bound the best items; few distinct values give many ties."""
    monkeypatch.setattr(ranks, "_BLOCK", block)
    rng = np.random.default_rng(distinct)
    scores = rng.integers(0, distinct, (6, 777)).astype(np.float32)
    scores[2] = -np.inf
    scores[3, 40:] = -np.inf
    targets = rng.integers(0, 777, 6)
    masks = [[item for item in rng.integers(0, 777, size).tolist() if item != target]
             for size, target in zip([0, 30, 30, 765, 3000, 30], targets, strict=True)]  # fmt: skip
    ranked = full_ranks(scores, targets, masks, 50)
    for row in range(6):
        rank, order = slow(scores[row].tolist(), targets[row], masks[row])
        best = order[:50]
        assert ranked.rank[row] == rank
        assert ranked.top[row].tolist() == best + [-1] * (50 - len(best))
