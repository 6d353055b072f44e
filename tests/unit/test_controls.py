"""Simple scorers, text views and controls against values computed by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from langptune.baselines import simple
from langptune.baselines.frame import fit
from langptune.config.base import read_yaml
from langptune.data import contracts
from langptune.data.contracts import SESSIONS
from langptune.data.interactions import popularity
from langptune.metrics import from_ranks
from langptune.profiles.shuffle import deal
from langptune.profiles.text import history_text, last_item
from langptune.provenance import ROOT
from langptune.ranking.decoder import embed_items, mean_vector


def sessions(rows):
    """Sessions from rows (user, split, history, target); everything seen is the history."""
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


def simply(scorer, chosen, table, n_items, seed=0):
    model = simple.Model(simple.Keys(scorer=scorer))
    model.fit(fit.lesson(table, n_items, "val", seed, print))
    return fit.ranks(model, chosen, n_items)


def test_pop_ranks_by_hand():
    tests = TABLE.filter(pl.col("split") == "test")
    ranks = simply("pop", tests, TABLE, 5)
    # User a has only item 4 left: rank 1. User b has items 0 (1), 3 (0), 4 (0) left, and the target 0 is first.
    assert ranks["rank"].to_list() == [1, 1]
    assert ranks["top"].to_list() == [[4], [0, 3, 4]]


def test_oracle_is_one_and_random_is_within_its_exact_expectation():
    n, users = 200, 400
    table = sessions([(f"u{u}", "test", [u % n], (u + 1) % n) for u in range(users)])
    oracle = simply("oracle", table, table, n)
    assert (oracle["rank"] == 1).all()
    ranks = simply("random", table, table, n, 3)["rank"].to_numpy()
    free = n - 1  # one item is masked
    for metric in ("recall@10", "ndcg@10", "mrr"):
        # The rank is uniform on 1..free, so mean and variance of the metric are finite sums.
        values = from_ranks(metric, np.arange(1, free + 1))
        bound = 4 * values.std() / np.sqrt(users)
        assert abs(from_ranks(metric, ranks).mean() - values.mean()) < bound
    again = simply("random", table[100:], table, n, 3)["rank"].to_numpy()
    assert (again == ranks[100:]).all(), "a session's stream does not depend on what else is scored"


def test_text_views():
    texts = ["A", "B", "C", "D"]
    assert last_item([0, 2], texts) == "C"
    assert history_text([0, 1, 3], texts, 2) == "D\nB"


def test_the_mean_vector_is_one_query_of_unit_length_for_all():
    vectors = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    found = mean_vector(vectors)
    assert found.dtype == np.float32 and found.shape == (3, 2)
    assert found == pytest.approx(np.tile(np.array([1, 2]) / np.sqrt(5), (3, 1)))
    assert (mean_vector(np.array([[1, 0], [-1, 0]], dtype=np.float32)) == 0).all(), "no direction is left"


FILMS = [
    "space war with robots",
    "a quiet love story",
    "horror in an old house",
    "cowboys in the desert",
    "a jazz band",
]
FILES = ("items", "sessions", "evaluation", "profiles")
TESTS = [("a", 0, 1), ("b", 1, 2), ("c", 2, 3), ("d", 3, 0)]
"""User, the film in the profile, the target."""


@pytest.fixture(scope="module")
def ranked(real_models, tmp_path_factory):
    """A function that ranks four sessions by scripts/rank_texts.py under a change; each profile is one film's text."""
    from langptune.config.models import DecoderEntry
    from langptune.models.load import load_decoder, pick_device

    folder = tmp_path_factory.mktemp("controls")
    entry = read_yaml(ROOT / "config" / "models.yaml")["minilm-l6"]
    model = load_decoder(real_models / "minilm-l6", DecoderEntry.model_validate(entry), pick_device())
    vectors, _ = embed_items(model, FILMS)
    vectors.save(folder / "vectors.safetensors")
    n = len(FILMS)
    items = {"item": range(n), "item_id": FILMS, "title": FILMS, "text": FILMS, "first_seen": [0] * n}
    table = sessions([(user, "test", [4], target) for user, _, target in TESTS])
    numbers = table["session"].to_list()
    profiles = {
        "session": numbers, "sample": [0] * 4, "profile": [FILMS[film] for _, film, _ in TESTS],
        "prompt_tokens": [1] * 4, "tokens": [1] * 4, "finished": [True] * 4, "logprob": [0.0] * 4,
    }  # fmt: skip
    for name, kind, frame in (
        ("items", "items", pl.DataFrame(items, schema=contracts.ITEMS)),
        ("sessions", "sessions", table),
        ("evaluation", "evaluation", table.select("session", "split")),
        ("profiles", "profiles", pl.DataFrame(profiles, schema=contracts.PROFILES)),
    ):
        contracts.write(frame, folder / f"{name}.parquet", kind)

    def make(**change) -> pl.DataFrame:
        out = folder / f"{change.get('change')}-{change.get('seed')}.parquet"
        spec = {
            "source": "profiles", "decoder": entry, "decoder_in": str(real_models / "minilm-l6"),
            "vectors_in": str(folder / "vectors.safetensors"), "ranks_out": str(out), **change,
            **{f"{name}_in": str(folder / f"{name}.parquet") for name in FILES},
        }  # fmt: skip
        command = [sys.executable, str(ROOT / "scripts" / "rank_texts.py"), "--spec", json.dumps(spec)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return contracts.read(out, "ranks")

    return make


@pytest.mark.models
def test_a_control_changes_only_its_text(ranked):
    own = ranked()
    assert [top[0] for top in own["top"].to_list()] == [film for _, film, _ in TESTS]
    dealt = ranked(change="shuffled", seed=3)
    users = {at: user for at, (user, _, _) in enumerate(TESTS)}
    profiles = pl.DataFrame({"session": range(4), "sample": [0] * 4, "profile": [film for _, film, _ in TESTS]})
    assert [top[0] for top in dealt["top"].to_list()] == deal(profiles, users, 3)["profile"].to_list()
    mean = ranked(change="mean-vector")
    assert len({tuple(top) for top in mean["top"].to_list()}) == 1, "one order for all"
    assert mean["top_scores"].to_list()[0] != own["top_scores"].to_list()[0]
    assert ranked(change="text-alone")["top"].to_list() == own["top"].to_list()
