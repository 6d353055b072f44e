"""Nothing but the rank of a target may depend on the target: change all targets, compare everything else."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import polars as pl
import pytest

from langptune.baselines import simple
from langptune.baselines.frame import fit
from langptune.config.sample import Sample
from langptune.data import contracts, protocols, readers, sample
from langptune.data.interactions import popularity
from langptune.profiles.text import query
from tests.amazon import write_amazon
from tests.conftest import entry, write_raw
from tests.unit.test_checkpoints import command, spec_of, weights_file, write_files
from tests.unit.test_readers import METADATA, REVIEWS, amazon

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
    """Train rows, and the counts computed from them, ignore val and test targets."""
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
            model = simple.Model(simple.Keys(scorer=scorer))
            model.fit(fit.lesson(done.sessions, N, "val", 1, print))
            tops.append(fit.ranks(model, chosen, N)["top"].to_list())
        assert tops[0] == tops[1]


@pytest.mark.parametrize("target", ["first", "last", "random", "successive"])
def test_no_model_is_trained_on_what_follows_the_test_cut_off(tmp_path, target):
    rng = np.random.default_rng(1)
    rows = [
        (f"u{user}", item, 4, int(time))
        for user in range(40)
        for item, time in zip(rng.choice(N, 12, replace=False) + 1, rng.choice(1000, 12, replace=False), strict=True)
    ]
    folder = write_raw(tmp_path, rows, ITEMS)
    protocol = {"name": "temporal", "validation_from": 0.6, "test_from": 0.8, "target": target, "history_length": 5}
    settings = entry(source={"folder": str(folder)}, protocol=protocol)
    raw = readers.read(settings, "toy")
    done = protocols.prepare(raw, settings, "toy")
    contracts.write(done.sessions, tmp_path / "sessions.parquet", "sessions")
    sessions = contracts.read(tmp_path / "sessions.parquet", "sessions", fit.COLUMNS, (contracts.AFTER_CUT,))
    times = raw.interactions.join(done.items.select("item", "item_id"), on="item_id")
    for shows, cut in zip(("val", "test"), done.facts["cuts"], strict=True):
        shown = fit.lesson(sessions, len(done.items), shows, 0, print).shown.unique()
        dated = shown.join(times, on=["user_id", "item"])
        assert len(dated) == len(shown) > 100 and dated["timestamp"].max() < cut
    tests = sessions.filter(pl.col("split") == "test")
    ahead = int(tests[contracts.AFTER_CUT].sum())
    assert (ahead == 0) == (target == "first"), "histories do reach beyond the cut-off"


def amazon_targets(folder, moved):
    """An Amazon category in which ``moved`` maps (user, item) of some rows to another rating and item.

    As in the real files, an item's average rating in the metadata includes all its reviews.
    """
    if not folder.exists():
        write_amazon(folder, reviews=8000, seed=4)
    reviews, metadata = folder / REVIEWS, folder / METADATA
    rows = [json.loads(line) for line in reviews.read_text(encoding="utf-8").split("\n") if line]
    taken = set()
    for row in rows:
        # Rows with equal times are ordered by a hash of the item, so a changed target in a tie would move.
        while (row["user_id"], row["timestamp"]) in taken:
            row["timestamp"] += 1
        taken.add((row["user_id"], row["timestamp"]))
        row.update(moved.get((row["user_id"], row["parent_asin"]), {}))
    reviews.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ratings = {}
    for row in rows:
        ratings.setdefault(row["parent_asin"], []).append(row["rating"])
    items = [json.loads(line) for line in metadata.read_text(encoding="utf-8").split("\n") if line]
    for item in items:
        if found := ratings.get(item["parent_asin"]):
            item["average_rating"] = round(sum(found) / len(found), 2)
    metadata.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return folder


AMAZON = {
    "paper": {"name": "paper"},
    "temporal": {"name": "temporal", "core": 5, "windows": 1, "history_length": 4},
    "leave-one-out": {"name": "leave-one-out", "core": 5},
}
TEXT = "{{ title }}{% if average_rating %} (average rating: {{ average_rating }}){% endif %}"


def amazon_prepared(folder, scratch, protocol):
    settings = amazon(folder, protocol=protocol, item_text=TEXT, prompt="amazon-movies-tv")
    scratch.mkdir(parents=True)
    return protocols.prepare(readers.read(settings, "movies-tv", scratch), settings, "movies-tv")


def leaks(before, after):
    """Names of data that training may see and that differ between two datasets with different held-out targets."""
    found = []
    for split in ("train", "val", "test"):
        hidden = ["target"] if split != "train" else []
        a, b = (d.sessions.filter(pl.col("split") == split).drop(hidden) for d in (before, after))
        if split == "val" and not a.drop("session").equals(b.drop("session")):
            found.append("val sessions")
        elif not a.equals(b):
            found.append(f"{split} sessions")
    if before.items["text"].to_list() != after.items["text"].to_list():
        found.append("item texts")
    if (popularity(before.sessions, len(before.items)) != popularity(after.sessions, len(after.items))).any():
        found.append("popularity")
    val, test = (
        before.sessions.filter(pl.col("split") == split).select("user_id", "target") for split in ("val", "test")
    )
    if len(val.join(test, on=["user_id", "target"])):
        found.append("selection")
    return found


def exchanged(sessions, items, split):
    """Changes that swap the targets of pairs of users in one split; every item and user keeps its count."""
    part = sessions.filter(pl.col("split") == split).sort("session")
    ids = items["item_id"].to_list()
    users, targets, seen = part["user_id"].to_list(), part["target"].to_list(), part["seen"].to_list()
    moved = {}
    for a in range(len(users)):
        for b in range(a + 1, len(users)):
            fresh = targets[a] not in seen[b] and targets[b] not in seen[a] and targets[a] != targets[b]
            if fresh and not {users[a], users[b]} & {user for user, _ in moved}:
                for user, old, new in ((users[a], targets[a], targets[b]), (users[b], targets[b], targets[a])):
                    moved[user, ids[old]] = {"parent_asin": ids[new], "asin": ids[new], "rating": 1.0}
    return moved


@pytest.mark.parametrize("name", AMAZON)
def test_targets_of_every_protocol_reach_nothing(tmp_path, name):
    before = amazon_prepared(amazon_targets(tmp_path / "a", {}), tmp_path / "s1", AMAZON[name])
    moved = exchanged(before.sessions, before.items, "test")
    assert len(moved) >= 4
    after = amazon_prepared(amazon_targets(tmp_path / "a", moved), tmp_path / "s2", AMAZON[name])
    assert not before.sessions["target"].equals(after.sessions["target"])
    assert leaks(before, after) == []


def test_paper_as_published_leaks_and_where(tmp_path):
    """The same check finds the named defects: average ratings include test ratings, selection uses test sessions."""
    defects = {"name": "paper", "defects": ["average-rating", "monitor-test"]}
    before = amazon_prepared(amazon_targets(tmp_path / "a", {}), tmp_path / "s1", defects)
    moved = exchanged(before.sessions, before.items, "test")
    after = amazon_prepared(amazon_targets(tmp_path / "a", moved), tmp_path / "s2", defects)
    assert leaks(before, after) == ["item texts", "selection"]


def trained_bytes(data, out, kind, **changes):
    """The weights that a training script writes on these files."""
    done = subprocess.run(command(kind, spec_of(kind, data, out, **changes)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return weights_file(out).read_bytes()


AHEAD = {"targets": 8, "reward": "log-rank", "unfinished": "score"}
"""A reward over the user's next train targets; the validation and test targets directly follow the last of them."""


@pytest.mark.parametrize(("kind", "changes"), [("cl", {}), ("rlso", {}), ("rlso", AHEAD)])
def test_held_out_targets_change_no_trained_byte(tmp_path, kind, changes):
    """Test targets affect nothing, not even the selection; validation targets affect only the selection."""
    data = write_files(tmp_path / "data")
    # Ten users, each with four train sessions, then one of validation and one of test.
    sessions = pl.read_parquet(data / "sessions.parquet").with_columns(
        user_id=pl.format("u{}", pl.col("session") % 10), target_time=pl.col("session").cast(pl.Int64)
    )
    assert (
        sessions.group_by("user_id").agg(pl.col("split").sort_by("target_time"))["split"].to_list()
        == [[*["train"] * 4, "val"]] * 10
    )
    short = {"batches": 6, "validate_every": 2, **changes}
    held_out = sessions.filter(pl.col("split") == "val").with_columns(
        (pl.col("session") + len(sessions)).alias("session"),
        (pl.col("target_time") + len(sessions)).alias("target_time"),
        pl.lit("test").alias("split"),
    )
    contracts.write(pl.concat([sessions, held_out]), data / "sessions.parquet", "sessions")
    before = trained_bytes(data, tmp_path / "a", kind, **short)
    last = trained_bytes(data, tmp_path / "b", kind, select="last", **short)
    if "targets" in changes:
        alone = short | {"targets": 1}
        assert trained_bytes(data, tmp_path / "e", kind, select="last", **alone) != last, "later targets are rewarded"

    def moved(split):
        other = (pl.col("target") + 7) % 150
        seen = pl.col("seen").list.contains(other)
        return pl.when((pl.col("split") == split) & ~seen).then(other).otherwise(pl.col("target")).cast(pl.Int32)

    changed = pl.concat([sessions, held_out]).with_columns(moved("test").alias("target"))
    contracts.write(changed, data / "sessions.parquet", "sessions")
    assert trained_bytes(data, tmp_path / "c", kind, **short) == before
    contracts.write(changed.with_columns(moved("val").alias("target")), data / "sessions.parquet", "sessions")
    assert trained_bytes(data, tmp_path / "d", kind, select="last", **short) == last
