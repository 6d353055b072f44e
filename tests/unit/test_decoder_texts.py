"""Texts that the decoder is trained on: histories of all or sampled sessions, sampled profiles, or both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from langptune.data import contracts
from langptune.errors import UserError
from langptune.profiles.text import history_text
from langptune.training import contrastive
from scripts import train_decoder
from tests import planted as p
from tests.unit.test_checkpoints import spec_of, write_files
from tests.unit.test_scoring import profiles, work

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Planted data; 12 of the train sessions are sampled, and have three profiles each."""
    folder = write_files(tmp_path_factory.mktemp("planted"))
    chosen = contracts.read(folder / "training.parquet", "evaluation")
    train, val = (chosen.filter(pl.col("split") == split) for split in ("train", "val"))
    contracts.write(pl.concat([train[::3].head(12), val]), folder / "training.parquet", "evaluation")
    for split, rows, samples in (("train", train[::3].head(12), 3), ("val", val, 1)):
        ids = rows["session"].to_list()
        profiles(ids, {at: [f"likes {at} {k}" for k in range(samples)] for at in ids}, folder / f"{split}.parquet")
    return folder


def spec(data: Path, out: Path, texts: str, fraction: float = 1.0, **changes) -> dict:
    base = spec_of("cl", data, out, texts=texts, batches=2, validate_every=1, **changes)
    read = {f"{split}_profiles_in": str(data / f"{split}.parquet") for split in ("train", "val") if texts != "history"}
    return {**base, **read, "train_fraction": fraction}


def rows(data: Path, texts: str, fraction: float = 1.0, **changes) -> dict:
    checked = train_decoder.Spec.model_validate(spec(data, data, texts, fraction, **changes))
    items = contracts.read(data / "items.parquet", "items")["text"].to_list()
    return train_decoder._train(checked, contracts.read(data / "sessions.parquet", "sessions"), items, "q: ")


def test_histories_are_those_of_all_train_sessions_and_profiles_of_the_sampled_ones(data):
    sessions = contracts.read(data / "sessions.parquet", "sessions")
    items = contracts.read(data / "items.parquet", "items")["text"].to_list()
    found = rows(data, "mixed", profile_samples=3, profile_temperature=1.0, history_items=2)
    texts, targets, ids = found["history"]
    train = sessions.filter(pl.col("split") == "train")
    assert ids == train["session"].to_list() and len(ids) == 40 and targets.tolist() == train["target"].to_list()
    assert list(texts) == ["q: " + history_text(history, items, 2) for history in train["history"].to_list()]
    texts, targets, ids = found["profiles"]
    assert len(texts) == 36 and len(set(ids)) == 12, "three rows a session"
    assert texts[:4] == ["q: likes 0 0", "q: likes 0 1", "q: likes 0 2", "q: likes 3 0"]
    assert targets.tolist() == [sessions["target"][session] for session in ids]
    sampled = rows(data, "history", sessions="sample", history_items=5)
    assert list(sampled) == ["history"] and sampled["history"][2] == sorted(set(ids))
    assert list(rows(data, "profiles")) == ["profiles"]
    half = rows(data, "mixed", fraction=0.5, history_items=2)
    assert [len(set(part[2])) for part in half.values()] == [20, 6]


def test_each_kind_has_its_share_of_every_batch_and_of_the_correction(tmp_path):
    """Mixed rows put items among the candidates at the rate that the correction assumes."""
    data = p.planted(train=60, val=4)
    targets = np.array(data.target["train"])
    kinds = (contrastive.Kind("histories", 50, 0.75), contrastive.Kind("profiles", 10, 0.25))
    batch, needed = 16, 16 * 3000
    order = contrastive.mixed_order(kinds, needed, 0, "contrastive-1")
    share = (order.reshape(-1, batch) >= 50).sum(1)
    assert (share == 4).all(), "ten profiles are four rows of sixteen in each batch"
    assert (np.bincount(order[order >= 50], minlength=60)[50:] == needed // 4 // 10).all()
    assert np.ptp(np.bincount(order, minlength=60)[:50]) <= 1, "gone through as often as one another"
    drawn = np.bincount(targets[order], minlength=len(data.items)) / (needed / batch)
    weights = contrastive.row_weights(kinds)
    assert weights.mean() == pytest.approx(1)
    expected = np.exp(contrastive.log_frequency(targets, len(data.items), batch, 0, weights))
    there = drawn > 0
    assert np.allclose(expected[there], drawn[there], rtol=5e-3)
    other = (contrastive.Kind("histories", 50, 0.7), contrastive.Kind("profiles", 10, 0.3))
    spread = contrastive.mixed_order(other, 1000, 0, "contrastive-1") >= 50
    assert set(spread.reshape(-1, 10).sum(1)) == {3}
    assert np.array_equal(order, contrastive.mixed_order(kinds, needed, 0, "contrastive-1"))
    assert not np.array_equal(order, contrastive.mixed_order(kinds, needed, 0, "contrastive-2"))


@pytest.mark.parametrize("texts", ["history", "profiles", "mixed"])
def test_the_script_trains_on_them_and_says_on_what(tmp_path, data, texts):
    settings = spec(data, tmp_path, texts, profile_samples=3, profile_temperature=1.0)
    notes = work("train_decoder", settings).notes
    counts = {"history": {"history": 40}, "profiles": {"profiles": 36}, "mixed": {"history": 40, "profiles": 36}}
    assert notes["rows"] == counts[texts] and notes["train_sessions"] == (12 if texts == "profiles" else 40)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    both = {"val_history_ndcg", "val_history_log_rank"} if texts == "mixed" else set()
    assert {"val_ndcg", "val_ndcg@10", "val_log_rank", *both} <= set(curve[0])
    assert ("val_history_ndcg" in curve[0]) == (texts == "mixed")


def test_missing_settings_are_named(tmp_path, data):
    with pytest.raises(UserError, match=r"key 'recipe\.history_items' is missing"):
        rows(data, "history", history_items=None)
    settings = spec(data, tmp_path, "profiles") | {"train_profiles_in": None}
    with pytest.raises(UserError, match="texts 'profiles' need 'train_profiles_in'"):
        work("train_decoder", settings)
    ids = (
        contracts.read(data / "training.parquet", "evaluation").filter(pl.col("split") == "train")["session"].to_list()
    )
    lost = profiles(ids[2:], {at: ["x"] for at in ids}, tmp_path / "lost.parquet")
    with pytest.raises(UserError, match=r"lost\.parquet: 2 of 12 train sessions have no profile"):
        work("train_decoder", spec(data, tmp_path, "mixed") | {"train_profiles_in": lost})
