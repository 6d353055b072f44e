"""Simple scorers and text views against values worked out by hand."""

from __future__ import annotations

import numpy as np
import polars as pl

from langptune.baselines.simple import score_blocks
from langptune.baselines.text import history_text, last_item
from langptune.data.contracts import SESSIONS
from langptune.data.interactions import popularity
from langptune.metrics import from_ranks
from langptune.ranking.decoder import rank_sessions


def sessions(rows):
    """rows: (user, split, history, target); everything seen is the history."""
    columns = {
        "session": list(range(len(rows))),
        "user_id": [r[0] for r in rows],
        "split": [r[1] for r in rows],
        "history": [r[2] for r in rows],
        "ratings": [[4.0] * len(r[2]) for r in rows],
        "reviews": [None] * len(rows),
        "seen": [r[2] for r in rows],
        "target": [r[3] for r in rows],
        "target_time": [0] * len(rows),
    }
    return pl.DataFrame(columns, schema=SESSIONS)


TABLE = sessions(
    [
        ("a", "train", [0], 1),
        ("a", "train", [0, 1], 2),
        ("b", "train", [1], 2),
        ("a", "val", [0, 1, 2], 3),
        ("a", "test", [0, 1, 2, 3], 4),
        ("b", "test", [1, 2], 0),
    ]
)


def test_popularity_counts_interactions_once_and_only_train():
    assert popularity(TABLE, 5).tolist() == [1, 2, 2, 0, 0]


def test_pop_ranks_by_hand():
    tests = TABLE.filter(pl.col("split") == "test")
    ranks = rank_sessions(tests, score_blocks("pop", tests, TABLE, 5, 0))
    # a: only item 4 is left, rank 1. b: items 0 (1), 3 (0), 4 (0) are left, the target 0 is first.
    assert ranks["rank"].to_list() == [1, 1]
    assert ranks["top"].to_list() == [[4], [0, 3, 4]]


def test_oracle_is_one_and_random_is_within_its_exact_expectation():
    n, users = 200, 400
    table = sessions([(f"u{u}", "test", [u % n], (u + 1) % n) for u in range(users)])
    oracle = rank_sessions(table, score_blocks("oracle", table, table, n, 0))
    assert (oracle["rank"] == 1).all()
    ranks = rank_sessions(table, score_blocks("random", table, table, n, 3))["rank"].to_numpy()
    free = n - 1  # one item is masked
    for metric in ("recall@10", "ndcg@10", "mrr"):
        # The rank is uniform on 1..free: mean and variance of the metric are finite sums.
        values = from_ranks(metric, np.arange(1, free + 1))
        bound = 4 * values.std() / np.sqrt(users)
        assert abs(from_ranks(metric, ranks).mean() - values.mean()) < bound
    again = rank_sessions(table[100:], score_blocks("random", table[100:], table, n, 3))["rank"].to_numpy()
    assert (again == ranks[100:]).all(), "a session's stream does not depend on what else is scored"


def test_text_views():
    texts = ["A", "B", "C", "D"]
    assert last_item([0, 2], texts) == "C"
    assert history_text([0, 1, 3], texts, 2) == "D\nB"
