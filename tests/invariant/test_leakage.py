"""Nothing but the rank of a target may depend on the target: change all targets, compare everything else."""

from __future__ import annotations

import subprocess

import numpy as np
import polars as pl
import pytest

from langptune.baselines.simple import popularity, score_blocks
from langptune.baselines.text import query
from langptune.config.sample import Sample
from langptune.data import contracts, protocols, readers, sample
from langptune.ranking.decoder import rank_sessions
from tests.conftest import entry, write_raw
from tests.unit.test_checkpoints import command, spec_of, weights_file, write_files

N = 40
ITEMS = [(i, f"Film {i}", 1990, "Drama") for i in range(1, N + 1)]


def prepared(tmp_path, last_item):
    """Users with eight interactions at distinct times; ``last_item(user)`` picks the last."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(25):
        seen = rng.choice(np.arange(1, 31), 7, replace=False)  # 31..40 are left for targets
        rows += [(f"u{user}", item, 4, 100 * user + k) for k, item in enumerate(seen)]
        rows.append((f"u{user}", last_item(user), 4, 100 * user + 50))
    folder = write_raw(tmp_path, rows, ITEMS)
    settings = entry(source={"folder": str(folder)})
    return protocols.prepare(readers.read(settings, "toy"), settings, "toy")


def test_test_targets_reach_nothing(tmp_path):
    a = prepared(tmp_path / "a", lambda user: 31 + user % 5)
    b = prepared(tmp_path / "b", lambda user: 36 + user % 5)
    changed = pl.col("split") == "test"
    assert a.sessions.filter(~changed).equals(b.sessions.filter(~changed)), "train and val sessions"
    for column in ("history", "ratings", "seen"):
        assert a.sessions[column].equals(b.sessions[column]), column
    assert not a.sessions["target"].equals(b.sessions["target"])
    assert a.items.drop("first_seen").equals(b.items.drop("first_seen")), "item texts"
    assert (popularity(a.sessions, N) == popularity(b.sessions, N)).all()
    draws = [sample.draw(p.sessions, Sample(test=5)) for p in (a, b)]
    assert draws[0].equals(draws[1])
    texts = a.items["text"].to_list()
    for view in ("history", "last-item"):
        queries = [[query(view, h, texts, 3) for h in p.sessions["history"].to_list()] for p in (a, b)]
        assert queries[0] == queries[1]


def test_validation_targets_reach_no_training(tmp_path):
    """Seen from the sessions: train rows, and what is counted from them, ignore val and test targets."""
    a = prepared(tmp_path / "a", lambda user: 31)
    held_out = a.sessions.with_columns(
        target=pl.when(pl.col("split") == "train").then(pl.col("target")).otherwise(pl.lit(39, pl.Int32))
    )
    assert (popularity(a.sessions, N) == popularity(held_out, N)).all()


def test_scores_of_other_items_ignore_the_target(tmp_path):
    done = prepared(tmp_path, lambda user: 31 + user % 5)
    tests = done.sessions.filter(pl.col("split") == "test")
    other = tests.with_columns(target=pl.lit(39, pl.Int32))
    for scorer in ("pop", "random"):
        tops = []
        for chosen in (tests, other):
            blocks = score_blocks(scorer, chosen, done.sessions, N, seed=1)
            tops.append(rank_sessions(chosen, blocks)["top"].to_list())
        assert tops[0] == tops[1]


def trained_bytes(data, out, kind, **changes):
    """The weights that a training script writes on these files."""
    done = subprocess.run(command(kind, spec_of(kind, data, out, **changes)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return weights_file(out).read_bytes()


@pytest.mark.parametrize("kind", ["cl", "rlso"])
def test_held_out_targets_change_no_trained_byte(tmp_path, kind):
    """Test targets reach nothing, not even the selection; validation targets reach nothing but the selection."""
    data = write_files(tmp_path / "data")
    sessions = pl.read_parquet(data / "sessions.parquet")
    short = {"batches": 6, "validate_every": 2}
    held_out = sessions.filter(pl.col("split") == "val").with_columns(
        (pl.col("session") + len(sessions)).alias("session"), pl.lit("test").alias("split")
    )
    contracts.write(pl.concat([sessions, held_out]), data / "sessions.parquet", "sessions")
    before = trained_bytes(data, tmp_path / "a", kind, **short)
    last = trained_bytes(data, tmp_path / "b", kind, select="last", **short)

    def moved(split):
        other = (pl.col("target") + 7) % 150
        seen = pl.col("seen").list.contains(other)
        return pl.when((pl.col("split") == split) & ~seen).then(other).otherwise(pl.col("target")).cast(pl.Int32)

    changed = pl.concat([sessions, held_out]).with_columns(moved("test").alias("target"))
    contracts.write(changed, data / "sessions.parquet", "sessions")
    assert trained_bytes(data, tmp_path / "c", kind, **short) == before
    contracts.write(changed.with_columns(moved("val").alias("target")), data / "sessions.parquet", "sessions")
    assert trained_bytes(data, tmp_path / "d", kind, select="last", **short) == last
