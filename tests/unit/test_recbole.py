"""RecBole models behind our interface. RecBole patches its process, so a separate worker process runs it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from langptune import metrics
from langptune.baselines import recbole
from langptune.baselines.engine import recbole_catalogue, recbole_compat
from langptune.baselines.engine.recbole_job import Job
from langptune.baselines.frame import fit
from langptune.baselines.frame.baseline import Lesson
from langptune.errors import UserError
from langptune.ranking import kept
from langptune.ranking.decoder import rank_sessions

ROOT = Path(__file__).parents[2]
N_ITEMS = 12
NEXT = np.random.default_rng(5).permutation(N_ITEMS)  # the item that follows place p on the circle is at place p + 1


def sequences(users: int = 40, length: int = 9) -> list[list[int]]:
    """Walks along one circle of all items; no walk visits an item twice."""
    starts = np.random.default_rng(7).integers(0, N_ITEMS, users)
    return [[int(NEXT[(start + step) % N_ITEMS]) for step in range(length)] for start in starts]


def leave_one_out(walks: list[list[int]]) -> pl.DataFrame:
    rows = []
    for user, items in enumerate(walks):
        for k in range(1, len(items)):
            split = {len(items) - 1: "test", len(items) - 2: "val"}.get(k, "train")
            rows.append((len(rows), f"user {user}", split, items[:k], items[:k], items[k], 100 * user + k))
    whole = pl.List(pl.Int32)
    types = [pl.Int32, pl.String, pl.String, whole, whole, pl.Int32, pl.Int64]
    return pl.DataFrame(rows, schema=dict(zip(fit.COLUMNS, types, strict=True)), orient="row")


def other_targets(sessions: pl.DataFrame, *splits: str) -> pl.DataFrame:
    """The same sessions, with every target of the splits replaced by another unseen item."""
    changed = []
    for split, seen, target in sessions.select("split", "seen", "target").iter_rows():
        free = [item for item in range(N_ITEMS) if item not in seen and item != target]
        changed.append(free[0] if split in splits else target)
    return sessions.with_columns(target=pl.Series(changed, dtype=pl.Int32))


Plan = tuple[recbole.Keys, int]
"""Settings of an entry, and a seed."""


def training(model: str, seed: int = 0, **changes) -> Plan:
    small = {"settings": {"train_batch_size": 64}, "epochs": 2, "history_items": 8}
    return recbole.Keys(model=model, **{**small, **changes}), seed


def lesson(sessions: pl.DataFrame, shows: str, seed: int = 0, log=lambda line: None) -> Lesson:
    return fit.lesson(sessions, N_ITEMS, shows, seed, log, device="cpu")


@pytest.fixture(scope="module")
def remote():
    """Runs a function of this module in one worker process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=300)


# These functions run in the worker


def _final(plan: Plan, sessions: pl.DataFrame) -> dict:
    lines: list[str] = []
    lessons = {shows: lesson(sessions, shows, plan[1], lines.append) for shows in ("val", "test")}
    fitted, selected = fit.final(lambda: recbole.Model(plan[0]), lessons["val"], lambda: lessons["test"])
    test = sessions.filter(pl.col("split") == "test")
    ranked = fit.ranks(fitted, test, N_ITEMS, top=3)
    return {
        "scores": fitted.scores(test),
        "rank": ranked["rank"].to_numpy(),
        "top": np.array(ranked["top"].to_list()),
        "best_epoch": selected.best_epoch,
        "val": selected.val,
        "curve": selected.curve,
        "lines": lines,
    }


def _weights(plan: Plan, sessions: pl.DataFrame) -> dict[str, np.ndarray]:
    job = Job(plan[0], lesson(sessions, "val", plan[1]))
    for epoch in (1, 2):
        job.epoch(epoch)
    return {key: value.numpy().copy() for key, value in job.model.state_dict().items()}


def _training_rows(plan: Plan, sessions: pl.DataFrame, shows: str | None) -> list[tuple]:
    """The rows that RecBole received, in our numbering: (user, item) or (user, list, item)."""
    job = Job(plan[0].model_copy(update={"refit": shows is not None}), lesson(sessions, shows or "val", plan[1]))
    table = job.data._dataset.inter_feat
    user = {int(at): number for number, at in enumerate(job.user_at)}
    item = {int(at): number for number, at in enumerate(job.item_at)}
    rows = []
    for n in range(len(table)):
        row = [user[int(table["user_id"][n])]]
        if "item_id_list" in table.columns:
            row.append(tuple(item[int(i)] for i in table["item_id_list"][n] if i))
        rows.append((*row, item[int(table["item_id"][n])]))
    return rows


def _masks() -> None:
    """BERT4Rec: lists include the target, every mask is predicted, and a query keeps the whole history."""
    sessions = leave_one_out(sequences())
    keys, _ = training("BERT4Rec", settings={"mask_ratio": 0.5, "train_batch_size": 64}, history_items=5)
    job = Job(keys, lesson(sessions, "val"))
    n_tokens = N_ITEMS + 1
    for batch in job.data:
        true, masked = batch["item_id_list"], batch["Mask_item_id_list"]
        places = batch["MASK_INDEX"]
        assert ((masked == n_tokens).sum(dim=1) == (places > 0).sum(dim=1)).all()
        assert ((masked == n_tokens).sum(dim=1) > 0).all()
        assert (masked[:, 0] != n_tokens).all()
        assert (true.gather(1, places)[places > 0] == batch["Pos_item_id"][places > 0]).all()
        assert (true[masked != n_tokens] == masked[masked != n_tokens]).all()
        last = true.gather(1, batch["item_length"][:, None] - 1)[:, 0]
        assert (last == batch["item_id"]).all()
    for history in ([3], [1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]):
        row = sessions.head(1).with_columns(history=pl.Series([history], dtype=pl.List(pl.Int32)))
        question = job._question(row)
        seen = job.model.reconstruct_test_data(question["item_id_list"], question["item_length"])[0]
        kept = history[-5:]
        assert seen[: len(kept)].tolist() == job.item_at[kept].tolist()
        assert seen[len(kept)] == n_tokens == job.model.mask_token
        assert int(question["item_length"]) - 1 == len(kept)


def _side_effects(folder: str) -> dict:
    import torch

    os.chdir(folder)
    sys.argv = ["train", "--epochs=1", "--model=Pop"]
    _quiet(training("SASRec", epochs=1))
    recbole_compat.apply()
    return {"files": [path.name for path in Path(folder).iterdir()], "anomaly": torch.is_anomaly_enabled()}


def _quiet(plan: Plan) -> None:
    fit.select(recbole.Model(plan[0]), lesson(leave_one_out(sequences()), "val", plan[1]))


# Refused before anything is loaded


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("LightGC", {}, "did you mean 'LightGCN'"),
        ("sasrec", {}, "did you mean 'SASRec'"),
        ("DeepFM", {}, "click-through"),
        ("lightgbm", {}, "click-through"),
        ("KGAT", {}, "knowledge graph"),
        ("SASRecF", {}, "item features"),
        ("Pop", {}, "use the method 'pop'"),
        ("SASRec", {"hiden_size": 3}, "did you mean 'hidden_size'"),
        ("SASRec", {"epochs": 3}, "own key 'epochs'"),
        ("SASRec", {"MAX_ITEM_LIST_LENGTH": 3}, "own key 'history_items'"),
        ("BPR", {"learning_rate": "1e-3"}, "not a number"),
        ("NeuMF", {"mf_pretrain_path": "x.pth"}, "unknown setting"),
    ],
)
def test_refused(model, settings, words):
    with pytest.raises(UserError, match=words):
        recbole_catalogue.check(model, settings)


def test_every_family_member_is_known():
    known = recbole_catalogue.models()
    assert len(known) > 80
    assert {"EASE", "ItemKNN", "BPR", "LightGCN", "GRU4Rec", "SASRec", "BERT4Rec"} <= known.keys()
    assert set(recbole_catalogue._REFUSED) <= known.keys()


def test_another_recbole_is_refused(monkeypatch):
    monkeypatch.setattr(recbole_compat, "version", lambda name: "1.3.0")
    with pytest.raises(UserError, match=r"RecBole 1\.3\.0 is installed.*recbole==1\.2\.1"):
        recbole_compat.apply()

    def absent(name):
        raise PackageNotFoundError

    monkeypatch.setattr(recbole_compat, "version", absent)
    with pytest.raises(UserError, match="not installed"):
        recbole_compat.apply()


def test_a_fix_without_its_place_is_refused():
    with pytest.raises(UserError, match=r"Path\._gone is missing"):
        recbole_compat._replace(Path, "_gone", None)


# models


def test_ease_is_the_closed_form_in_our_item_order(remote):
    sessions = leave_one_out(sequences(users=7))
    found = remote(_final, training("EASE", settings={"reg_weight": 3.0}, refit=False), sessions)
    x = np.zeros((7, N_ITEMS))
    for user, split, history, target in sessions.select("user_id", "split", "history", "target").iter_rows():
        if split == "train":
            x[int(user.split()[1]), [*history, target]] = 1
    p = np.linalg.inv(x.T @ x + 3.0 * np.eye(N_ITEMS))
    b = -p / np.diag(p)
    np.fill_diagonal(b, 0)
    np.testing.assert_allclose(found["scores"], x @ b, atol=1e-5)
    assert found["best_epoch"] == 0 and len(found["curve"]) == 1


@pytest.mark.parametrize("model", ["GRU4Rec", "SASRec", "BERT4Rec"])
def test_sequential_models_learn_the_circle(remote, model):
    size = {"GRU4Rec": {"embedding_size": 16, "hidden_size": 16}}.get(
        model, {"hidden_size": 16, "inner_size": 16, "hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1}
    )
    plan = training(model, settings={"train_batch_size": 32, "learning_rate": 0.01, **size}, epochs=30, patience=8)
    sessions = leave_one_out(sequences())
    found = remote(_final, plan, sessions)
    assert (found["rank"] == 1).mean() > 0.95, found["lines"][-1]
    test = sessions.filter(pl.col("split") == "test")
    for seen, top in zip(test["seen"].to_list(), found["top"].tolist(), strict=True):
        assert not set(seen) & set(top)
    assert [row["epoch"] for row in found["curve"]] == list(range(1, len(found["curve"]) + 1))
    assert set(found["curve"][0]) == {"epoch", "loss", "val_ndcg@10", "seconds"}
    best = max(row["val_ndcg@10"] for row in found["curve"])
    assert found["val"]["ndcg@10"] == best == found["curve"][found["best_epoch"] - 1]["val_ndcg@10"]


@pytest.mark.parametrize("model", ["LightGCN", "NeuMF", "MultiVAE", "SASRec", "BERT4Rec"])
def test_same_seed_same_scores(remote, model):
    sessions = leave_one_out(sequences())
    first, again = (remote(_final, training(model, seed=3), sessions)["scores"] for _ in range(2))
    other = remote(_final, training(model, seed=4), sessions)["scores"]
    assert np.isfinite(first).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("model", ["BPR", "GRU4Rec", "BERT4Rec"])
def test_no_target_shapes_the_weights(remote, model):
    sessions = leave_one_out(sequences())
    before = remote(_weights, training(model), sessions)
    after = remote(_weights, training(model), other_targets(sessions, "val", "test"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("model", ["BPR", "EASE", "SASRec"])
def test_test_targets_change_nothing_but_their_ranks(remote, model):
    sessions = leave_one_out(sequences())
    before = remote(_final, training(model), sessions)
    after = remote(_final, training(model), other_targets(sessions, "test"))
    assert np.array_equal(before["scores"], after["scores"])
    assert before["val"] == after["val"] and before["best_epoch"] == after["best_epoch"]


def test_refit_adds_what_the_test_session_shows_and_no_test_target(remote):
    sessions = leave_one_out(sequences(users=9))
    trained = set(remote(_training_rows, training("BPR"), sessions, None))
    selected = set(remote(_training_rows, training("BPR"), sessions, "val"))
    refitted = set(remote(_training_rows, training("BPR"), sessions, "test"))
    targets = {
        split: {(int(user.split()[1]), item) for user, item in part.select("user_id", "target").iter_rows()}
        for (split,), part in sessions.group_by("split")
    }
    assert trained == selected  # in leave-one-out, the validation session shows no new item
    assert refitted == trained | targets["val"]
    assert not refitted & targets["test"]


def test_one_session_does_not_show_the_target_of_another(remote):
    sessions = leave_one_out([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]])
    # user 0's validation session becomes a test session, and the later test session shows its target
    two = sessions.with_columns(
        split=pl.when((pl.col("user_id") == "user 0") & (pl.col("split") == "val"))
        .then(pl.lit("test"))
        .otherwise("split")
    )
    assert (0, 4) not in remote(_training_rows, training("BPR"), two, "test")
    assert (1, 10) in remote(_training_rows, training("BPR"), two, "test")


def test_windows_are_the_most_recent_and_truncated(remote):
    sessions = leave_one_out(sequences(users=3))
    rows = remote(_training_rows, training("SASRec", history_items=4, train_sessions=2), sessions, None)
    walks = sequences(users=3)
    expected = {(u, tuple(w[k - 4 : k]), w[k]) for u, w in enumerate(walks) for k in (5, 6)}
    assert set(rows) == expected and len(rows) == 6


def test_a_user_without_interactions_gets_equal_scores(remote):
    walks = sequences(users=12)
    stranger = leave_one_out(walks).filter((pl.col("user_id") != "user 11") | (pl.col("split") == "test"))
    found = remote(_final, training("BPR", refit=False), stranger)
    assert len(np.unique(found["scores"][-1])) == 1
    assert len(np.unique(found["scores"][0])) > 1


def test_bert4rec_masks_and_questions(remote):
    remote(_masks)


def test_a_diverging_model_is_named(remote):
    with pytest.raises(UserError, match=r"NeuMF, epoch \d+: .*(not a number|NaN)"):
        remote(_quiet, training("NeuMF", settings={"learning_rate": 1e30, "train_batch_size": 16}, epochs=5))


def test_no_validation_no_model(remote):
    sessions = leave_one_out(sequences()).filter(pl.col("split") != "val")
    with pytest.raises(UserError, match="no validation split"):
        fit.select(recbole.Model(training("BPR")[0]), lesson(sessions, "val"))


def test_leaves_no_files_reads_no_arguments_and_no_anomaly_mode(remote, tmp_path):
    assert remote(_side_effects, str(tmp_path)) == {"files": [], "anomaly": False}


# scripts


def _script(name: str, spec: dict, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / name, "--spec", json.dumps(spec)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def _written(folder: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """Sessions, and the fields of a spec that name their file and that of the items."""
    sessions = leave_one_out(sequences()).with_columns(
        ratings=pl.col("history").cast(pl.List(pl.Float32)), reviews=pl.lit(None, dtype=pl.List(pl.String))
    )
    sessions.write_parquet(folder / "sessions.parquet")
    items = pl.DataFrame({"item": range(N_ITEMS)}, schema={"item": pl.Int32})
    items.write_parquet(folder / "items.parquet")
    return sessions, {"items_in": "items.parquet", "sessions_in": "sessions.parquet"}


def test_trial_then_selection_then_final_run(tmp_path):
    sessions, inputs = _written(tmp_path)
    spec = {
        **inputs,
        "baseline": "recbole",
        "keys": {"model": "EASE", "settings": {"reg_weight": 1.0}},
        "seed": 0,
        "device": "cpu",
    }
    trial = {"mode": "trial", "point": {"reg_weight": 7.0}, "trial_out": "trial.json"}
    done = _script("fit_baseline.py", {**spec, **trial}, tmp_path)
    assert done.returncode == 0, done.stderr
    trial = json.loads((tmp_path / "trial.json").read_text())
    assert set(trial) == {"model", "settings", "seed", "best_epoch", "epochs_run", "val"}
    done = _script("select_baseline.py", {"trials_in": ["trial.json"], "best_out": "best.json"}, tmp_path)
    assert done.returncode == 0, done.stderr
    for name, split, count in (("training", "val", 99), ("evaluation", "test", 4)):
        chosen = sessions.filter(pl.col("split") == split).select("session", "split").head(count)
        chosen.write_parquet(tmp_path / f"{name}.parquet")
        spec[f"{name}_in"] = f"{name}.parquet"
    spec |= {
        "mode": "final",
        "best_in": "best.json",
        "ranks_out": "out/ranks.parquet",
        "curve_out": "out/curve.jsonl",
        "scores_out": "out/scores.parquet",
        "val_scores_out": "out/val_scores.parquet",
    }
    done = _script("fit_baseline.py", spec, tmp_path)
    assert done.returncode == 0, done.stderr
    ranks = pl.read_parquet(tmp_path / "out/ranks.parquet")
    assert ranks["session"].to_list() == sessions.filter(pl.col("split") == "test")["session"].to_list()
    told = json.loads((tmp_path / "out/ranks.parquet.manifest.json").read_text())
    assert told["notes"]["settings"] == {"reg_weight": 7.0}
    assert json.loads((tmp_path / "out/curve.jsonl").read_text())["epoch"] == 0
    # For a fusion, test scores are kept that give the ranks. Validation scores come from the trial's model, before it
    # is fitted again with the items of the test sessions, which include the validation targets.
    compared, val = sessions.filter(pl.col("split") == "test")[:4], sessions.filter(pl.col("split") == "val")
    (scores,) = kept.read(tmp_path / "out/scores.parquet", compared, N_ITEMS)
    assert rank_sessions(compared, iter([scores])).equals(ranks[:4])
    (scores,) = kept.read(tmp_path / "out/val_scores.parquet", val, N_ITEMS)
    found = metrics.from_ranks("ndcg@10", rank_sessions(val, iter([scores]))["rank"].to_numpy()).mean()
    assert found == trial["val"]["ndcg@10"]
    for lacking in ("ranks_out", "evaluation_in"):
        done = _script("fit_baseline.py", {**spec, lacking: None}, tmp_path)
        assert done.returncode == 2 and f"needs '{lacking}'" in done.stderr


def test_a_beta_of_zero_is_a_trial_of_rp3beta_like_the_others(tmp_path):
    _, inputs = _written(tmp_path)
    spec = {**inputs, "baseline": "random_walk", "keys": {"beta": 0.6}, "mode": "trial", "seed": 0, "device": "cpu"}
    paths = []
    for beta in (0.0, 0.4):
        paths.append(f"trial{beta}.json")
        done = _script("fit_baseline.py", spec | {"point": {"beta": beta}, "trial_out": paths[-1]}, tmp_path)
        assert done.returncode == 0, done.stderr
    done = _script("select_baseline.py", {"trials_in": paths, "best_out": "best.json"}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "best.json").read_text())["grid"] == {"beta": [0.0, 0.4]}


def test_selection_takes_the_first_of_equals(tmp_path):
    paths = []
    for number, score in enumerate((0.1, 0.3, 0.3)):
        trial = {
            "model": "EASE",
            "settings": {"reg_weight": number, "shape": [1]},
            "best_epoch": 0,
            "epochs_run": 0,
            "val": {"ndcg@10": score},
        }
        paths.append(f"trial{number}.json")
        (tmp_path / paths[-1]).write_text(json.dumps(trial))
    done = _script("select_baseline.py", {"trials_in": paths, "best_out": "best.json"}, tmp_path)
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["settings"]["reg_weight"] == 1 and best["grid"] == {"reg_weight": [0, 1, 2]}
    assert len(best["trials"]) == 3
    (tmp_path / paths[0]).write_text("{}")
    done = _script("select_baseline.py", {"trials_in": paths, "best_out": "best.json"}, tmp_path)
    assert done.returncode == 2 and "trial0.json" in done.stderr
