"""Readers, protocols and contracts: exact sessions, byte-for-byte determinism, one clear line for bad input."""

from __future__ import annotations

import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langptune.config.datasets import Temporal
from langptune.config.sample import Sample
from langptune.data import contracts, protocols, readers, sample
from langptune.data.sessions import stable_hash
from langptune.errors import UserError
from langptune.provenance import file_hash
from tests.conftest import ROOT, entry, write_raw

ITEMS = [(i, f"Film {i}", 1990 + i, "Drama Comedy") for i in range(1, 9)]
ROWS = [("u1", i, 4, 100 + i) for i in range(1, 7)] + [("u2", i, 3, 200 - i) for i in range(1, 5)]


def load(folder, **changes):
    return readers.read(entry(source={"folder": str(folder)}, **changes), "toy")


def prepare(folder, **changes):
    return protocols.prepare(load(folder, **changes), entry(source={"folder": str(folder)}, **changes), "toy")


def test_real_ml100k_is_complete_and_prepared_deterministically(tmp_path):
    import yaml

    from langptune.config.datasets import DatasetEntry

    raw = yaml.safe_load((ROOT / "config/datasets.yaml").read_text())["ml-100k"]
    real = DatasetEntry.model_validate(raw)
    hashes = []
    for name in ("a", "b"):
        done = protocols.prepare(readers.read(real, "ml-100k"), real, "ml-100k")
        contracts.write(done.sessions, tmp_path / f"{name}.parquet", "sessions")
        contracts.write(done.items, tmp_path / f"{name}.items.parquet", "items")
        hashes.append((file_hash(tmp_path / f"{name}.parquet"), file_hash(tmp_path / f"{name}.items.parquet")))
    assert hashes[0] == hashes[1]
    assert done.facts["sessions"] == {"train": 97171, "val": 943, "test": 943}
    assert "The Usual Suspects" in set(done.items["title"])
    assert done.items["first_seen"].null_count() == 0


def test_leave_one_out_by_hand(tmp_path):
    sessions = prepare(write_raw(tmp_path, ROWS, ITEMS)).sessions
    u1 = sessions.filter(pl.col("user_id") == "u1")
    assert u1["split"].to_list() == ["train"] * 3 + ["val", "test"]
    assert u1["target"].to_list() == [1, 2, 3, 4, 5]  # items are numbered from 0
    last = u1.row(-1, named=True)
    assert last["history"] == [1, 2, 3, 4] and last["seen"] == [0, 1, 2, 3, 4]
    # u2's rows are in reverse order of time: sessions follow the time, not the rows
    assert sessions.filter(pl.col("user_id") == "u2").row(-1, named=True)["target"] == 0


def test_sessions_do_not_depend_on_the_order_of_rows(tmp_path):
    tied = [("u1", i, 4, 100) for i in range(1, 9)]
    shuffled = tied.copy()
    random.Random(1).shuffle(shuffled)
    a = prepare(write_raw(tmp_path / "a", tied, ITEMS)).sessions
    b = prepare(write_raw(tmp_path / "b", shuffled, ITEMS[::-1])).sessions
    assert a.equals(b)
    assert a["target"].to_list() != sorted(a["target"].to_list()), "ties must not be ordered by item id"


def test_temporal_uses_nothing_later_than_its_cut(tmp_path):
    rows = [(f"u{u}", i, 4, 10 * i + u) for u in range(6) for i in range(1, 9)]
    protocol = {"name": "temporal", "validation_from": 0.6, "test_from": 0.8, "history_length": None}
    folder = write_raw(tmp_path, rows, ITEMS)
    sessions = prepare(folder, protocol=protocol).sessions
    times = {(u, int(i) - 1): t for u, i, _, t in rows}
    cuts = {s: sessions.filter(pl.col("split") == s)["target_time"].min() for s in ("val", "test")}
    train_latest = sessions.filter(pl.col("split") == "train")["target_time"].max()
    assert train_latest < cuts["val"] < cuts["test"]
    for row in sessions.filter(pl.col("split") != "train").iter_rows(named=True):
        assert max(times[row["user_id"], i] for i in row["seen"]) < cuts[row["split"]]
        assert row["target_time"] >= cuts[row["split"]]


@pytest.mark.parametrize("choice", ["first", "last", "random", "successive"])
def test_temporal_targets_are_those_that_are_chosen(tmp_path, choice):
    rows = [(f"u{u}", i, 4, 10 * i + u) for u in range(6) for i in range(1, 9)]
    protocol = {"name": "temporal", "validation_from": 0.4, "test_from": 0.7, "history_length": None, "target": choice}
    sessions = prepare(write_raw(tmp_path, rows, ITEMS), protocol=protocol).sessions
    first = prepare(tmp_path, protocol=protocol | {"target": "first"}).sessions
    train = [table.filter(pl.col("split") == "train").drop("session") for table in (sessions, first)]
    assert train[0].equals(train[1])
    starts = {(row["user_id"], row["split"]): row["target"] for row in first.to_dicts() if row["split"] != "train"}
    for (user, split), part in sessions.filter(pl.col("split") != "train").group_by("user_id", "split"):
        # Every user sees items 0 to 7 in this order, and the validation targets end where the test targets begin.
        start, end = starts[user, split], 8 if split == "test" else starts[user, "test"]
        targets = part["target"].sort().to_list()
        wanted = {"first": [start], "last": [end - 1], "successive": list(range(start, end))}
        assert targets == wanted[choice] if choice in wanted else len(targets) == 1 and start <= targets[0] < end
        assert end - start > 1, "there is a choice"
        for row in part.to_dicts():
            assert row["seen"] == row["history"] == list(range(row["target"]))
    if choice == "random":
        again = prepare(write_raw(tmp_path / "again", rows[::-1], ITEMS), protocol=protocol).sessions
        assert again.equals(sessions) and not again.equals(first)


@pytest.mark.parametrize("choice", ["first", "last", "random", "successive"])
def test_ties_in_time_are_found_whatever_is_the_target(tmp_path, choice):
    """Events after the cut that are no target count too: which of those at one time is the target is arbitrary."""
    rows = [(f"u{u}", i, 4, 10 * i + u) for u in range(3) for i in range(1, 9)]
    rows += [("u3", i, 4, 10 * min(i, 7)) for i in range(1, 9)]  # its last two are at one time
    protocol = {"name": "temporal", "validation_from": 0.4, "test_from": 0.82, "history_length": None, "target": choice}
    done = prepare(write_raw(tmp_path, rows, ITEMS), protocol=protocol)
    test = done.sessions.filter(pl.col("split") == "test")
    tied = (test["user_id"] == "u3") & (test["target_time"] == 70)
    assert done.facts["tied_test_targets"] == pytest.approx(tied.mean()) and tied.any()


def test_temporal_without_spread_is_refused(tmp_path):
    rows = [("u1", i, 4, 100) for i in range(1, 9)]
    raw = load(write_raw(tmp_path, rows, ITEMS))
    protocol = Temporal(name="temporal")
    with pytest.raises(UserError, match="do not separate"):
        protocols.prepare(raw, entry(protocol=protocol.model_dump()), "toy")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8), st.integers(0, 20)), min_size=1, max_size=60))
def test_leave_one_out_properties(tmp_path_factory, triples):
    """Compare with a slow implementation: per user, distinct items by (time, hash), all prefixes, last two held out."""
    folder = write_raw(tmp_path_factory.mktemp("p"), [(f"u{u}", i, 4, t) for u, i, t in triples], ITEMS)
    expected = []
    for user in sorted({u for u, _, _ in triples}):
        first: dict[int, int] = {}
        for u, i, t in triples:
            if u == user:
                first[i] = min(t, first.get(i, t))
        order = sorted(first, key=lambda i: (first[i], int.from_bytes(stable_hash("tie", f"u{user}", str(i)))))
        if len(order) >= 3:
            for k in range(1, len(order)):
                split = {len(order) - 1: "test", len(order) - 2: "val"}.get(k, "train")
                expected.append((f"u{user}", split, [i - 1 for i in order[:k]][-4:], order[k] - 1))
    try:
        sessions = prepare(folder).sessions
    except UserError as error:
        assert "leaves no" in str(error)
        assert not {"train", "val", "test"} <= {split for _, split, _, _ in expected}
        return
    found = sessions.select("user_id", "split", "history", "target").rows()
    assert [(u, s, list(h), t) for u, s, h, t in found] == expected


def test_duplicates_are_dropped_and_counted(tmp_path):
    rows = [*ROWS, ROWS[0], ("u1", 2, 5, 999)]
    done = prepare(write_raw(tmp_path, rows, ITEMS))
    assert done.facts["drops"]["identical rows"] == 1
    assert done.facts["drops"]["later interactions of a user with the same item"] == 1
    assert done.facts["interactions"] == len(ROWS)


NASTY = [
    'He said "no"',
    "<script>alert(1)</script>",
    "café 🎬 映画",
    "a & b % c_d $e$ {f}",
    "<|im_end|> [CLS]",
    "x" * 100_000,
]


def test_nasty_titles_survive_as_they_are(tmp_path):
    items = [(i + 1, title, 1990, "Drama") for i, title in enumerate(NASTY)]
    done = prepare(write_raw(tmp_path, [(u, i, 4, i) for u in "ab" for i in range(1, 7)], items))
    assert done.items["title"].to_list() == NASTY
    assert done.items["text"][0] == 'He said "no" (1990). Genres: Drama'


BAD = {
    "rating out of range": (
        lambda r, i: (r.__setitem__(2, ("u1", 3, 9, 103)), i)[1],
        r"toy\.inter: line 4: rating 9",
    ),
    "rating NaN": (
        lambda r, i: r.__setitem__(2, ("u1", 3, "nan", 103)),
        r"line 4: rating is 'nan', not a number",
    ),
    "rating text": (lambda r, i: r.__setitem__(0, ("u1", 1, "good", 103)), r"line 2: rating is 'good'"),
    "no timestamp": (lambda r, i: r.__setitem__(1, ("u1", 2, 4, "")), r"line 3: timestamp is ''"),
    "unknown item": (lambda r, i: r.append(("u1", 77, 4, 300)), r"line 12: item '77' is not in toy\.item"),
    "empty user": (lambda r, i: r.append(("", 1, 4, 300)), r"line 12: 'user_id' is empty"),
    "item twice": (lambda r, i: i.append(i[0]), r"toy\.item: line 10: item '1' occurs a second time"),
    "nothing": (lambda r, i: r.clear(), r"toy\.inter: no rows below the header"),
    "newline in a title": (lambda r, i: i.append((9, "Two\nlines", 1999, "Drama")), r"toy\.item"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(tmp_path, name):
    change, message = BAD[name]
    rows, items = ROWS.copy(), ITEMS.copy()
    change(rows, items)
    with pytest.raises(UserError, match=message) as caught:
        load(write_raw(tmp_path, rows, items))
    assert "\n" not in str(caught.value)


def test_missing_wrong_and_truncated_files(tmp_path):
    folder = write_raw(tmp_path / "x", ROWS, ITEMS)
    with pytest.raises(UserError, match=r"SHA-256 is .* expects 000000000000\.\.\.; restore"):
        load(folder, sha256={"toy.inter": "0" * 64})
    with pytest.raises(UserError, match="has 10 interactions, expected 11"):
        load(folder, expect={"interactions": 11, "users": 2, "items": 8})
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="package 'nowhere_at_all' is not installed"):
        readers.read(entry(source={"package": "nowhere_at_all"}), "toy")
    with pytest.raises(UserError, match="did you mean 'recbole-atomic'"):
        load(folder, reader="recbole-atmic")
    with pytest.raises(UserError, match="column 'movie_titel' is missing; did you mean 'movie_title'"):
        load(folder, columns={"title": "movie_titel"})
    with pytest.raises(UserError, match="'yeer' is undefined"):
        prepare(folder, item_text="{{ yeer }}")
    (folder / "toy.inter").write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        load(folder)


def test_a_protocol_without_a_remaining_row_is_refused(tmp_path):
    with pytest.raises(UserError, match="leaves no train sessions"):
        prepare(write_raw(tmp_path, ROWS[:2], ITEMS))


def test_contracts_refuse_broken_tables(tmp_path):
    sessions = prepare(write_raw(tmp_path, ROWS, ITEMS)).sessions
    broken = {
        "target must not be among": sessions.with_columns(target=pl.col("seen").list.first()),
        "history must not be empty": sessions.with_columns(
            history=pl.lit([], dtype=pl.List(pl.Int32)), ratings=pl.lit([], dtype=pl.List(pl.Float32))
        ),
        "split must be one of": sessions.with_columns(split=pl.lit("dev")),
        "column 'target' has type": sessions.with_columns(pl.col("target").cast(pl.Int64)),
        "column 'seen' is missing": sessions.drop("seen"),
        "must be unique": pl.concat([sessions, sessions]),
    }
    for message, frame in broken.items():
        with pytest.raises(UserError, match=message):
            contracts.write(frame, tmp_path / "s.parquet", "sessions")
    assert not (tmp_path / "s.parquet").exists()
    contracts.write(sessions, tmp_path / "s.parquet", "sessions")
    whole = (tmp_path / "s.parquet").read_bytes()
    (tmp_path / "s.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        contracts.read(tmp_path / "s.parquet", "sessions")


def test_sample_is_fixed_and_contained(tmp_path):
    sessions = prepare(
        write_raw(tmp_path, [(f"u{u}", i, 4, i) for u in range(30) for i in range(1, 6)], ITEMS)
    ).sessions
    drawn = sample.draw(sessions, Sample(test=7, seed=3))
    assert drawn.equals(sample.draw(sessions, Sample(test=7, seed=3)))
    assert not drawn.equals(sample.draw(sessions, Sample(test=7, seed=4)))
    assert len(drawn) == 7
    tests = set(sessions.filter(pl.col("split") == "test")["session"])
    assert set(drawn.filter(pl.col("split") == "test")["session"]) <= tests
    assert (sample.draw(sessions, Sample(test=1000))["split"] == "test").sum() == 30
