"""Best-of-n keeps the same profiles for any number scored at a time, and holds no more scores than that number."""

from __future__ import annotations

import numpy as np
import pytest

from langptune.profiles.best_of import best_rows, best_samples


@pytest.mark.parametrize("block", [1, 8, 20, 10_000])
def test_blocks_bound_what_is_held_and_change_nothing(block):
    rng = np.random.default_rng(0)
    sessions, each, items = 13, 4, 60
    vectors = rng.integers(-3, 4, (items, 5)).astype(np.float32)  # small whole numbers: every sum is exact
    queries = rng.integers(-3, 4, (sessions * each, 5)).astype(np.float32)
    seen = [rng.choice(items, 8, replace=False).tolist() for _ in range(sessions)]
    largest = 0

    def score(part: np.ndarray) -> np.ndarray:
        nonlocal largest
        largest = max(largest, len(part))
        return part @ vectors.T

    kept = best_samples(queries, score, seen, seen, 3, block)
    assert largest <= max(block, each) and len(set(kept)) > 1
    whole = (queries @ vectors.T).reshape(sessions, each, items)
    assert kept == best_rows(list(whole), seen, seen, 3)


def test_no_sessions_keep_nothing():
    assert best_samples(np.zeros((0, 5), np.float32), lambda part: part, [], [], 3) == []
