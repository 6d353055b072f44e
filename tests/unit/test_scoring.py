"""Popularity as a term of the score: the formula, the counts, and the choice of its weight."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from langptune.data import contracts, sample
from langptune.errors import UserError
from langptune.metrics import from_ranks
from langptune.provenance import Record
from langptune.ranking import kept
from langptune.ranking.decoder import ItemVectors, rank_sessions
from langptune.ranking.ranks import full_ranks
from langptune.ranking.scoring import Scoring, choose, log_popularity, read_weight, score, scoring_of, text_alone
from langptune.training import reward
from tests.unit.test_checkpoints import spec_of, write_files
from tests.unit.test_controls import TABLE

pytestmark = pytest.mark.usefixtures("one_thread")


def unit(rows: int, seed: int, width: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def catalogue(items: int = 40) -> ItemVectors:
    """The last two items share a text."""
    return ItemVectors(unit(items - 1, 0), np.array([*range(items - 1), items - 2]))


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_scores_are_the_formula(weight):
    items, counts = catalogue(), np.arange(40)
    scoring = Scoring(items, np.log1p(counts).astype(np.float32), weight)
    queries = unit(3, 1)
    found = scoring.scores(queries)
    for row, query in enumerate(queries):
        for item in range(40):
            cosine = float(query.astype(float) @ items.vectors[items.row_of_item[item]].astype(float))
            assert found[row, item] == pytest.approx(cosine / 0.05 + weight * np.log(1 + item), abs=1e-4)
    assert found.dtype == np.float32
    assert (found[:, 38] == found[:, 39]).all() == (weight == 0), (
        "one text twice ties, unless popularity tells them apart"
    )
    other = score(torch.tensor(items.scores(queries)), torch.tensor(scoring.popularity), weight)
    assert np.allclose(other.numpy(), found, atol=1e-5)
    assert np.array_equal(np.concatenate(list(scoring.blocks(queries))), found)


def test_popularity_is_what_pop_counts_and_only_where_it_weighs():
    assert np.allclose(log_popularity(TABLE, 5), np.log1p([1, 2, 2, 0, 0]))
    items = ItemVectors(unit(5, 0), np.arange(5))
    assert np.array_equal(scoring_of(items, TABLE, 2.0).popularity, log_popularity(TABLE, 5))
    plain = scoring_of(items, TABLE.clear(), 0.0)
    assert plain.weight == 0 and np.array_equal(plain.scores(unit(2, 3)), text_alone(items).scores(unit(2, 3)))


def asked(targets: list[int]) -> pl.DataFrame:
    seen = [[(target + 1) % 40] for target in targets]
    return pl.DataFrame(
        {"session": range(len(targets)), "target": targets, "seen": seen},
        schema={key: contracts.SESSIONS[key] for key in ("session", "target", "seen")},
    )


def test_the_weight_is_the_one_with_the_best_ndcg():
    scoring = Scoring(catalogue(), np.log1p(np.arange(40)).astype(np.float32))
    queries = unit(30, 5)
    popular = asked(np.random.default_rng(0).integers(25, 40, 30).tolist())
    grid = [3, 0, 0.5, 1]
    weight, rows = choose(popular, queries, scoring, grid)
    assert [row["weight"] for row in rows] == sorted(grid)
    for row in rows:
        scores = Scoring(scoring.items, scoring.popularity, row["weight"]).scores(queries)
        ranks = full_ranks(scores, popular["target"].to_list(), popular["seen"].to_list()).rank
        assert row["ndcg"] == pytest.approx(from_ranks("ndcg", ranks).mean())
        assert row["ndcg@10"] == pytest.approx(from_ranks("ndcg@10", ranks).mean())
        assert row["log_rank"] == pytest.approx(np.log(ranks).mean())
    assert weight == max(rows, key=lambda row: row["ndcg"])["weight"] > 0
    # The texts name targets that no other user watched, so popularity only harms.
    own = asked(list(range(10)))
    assert choose(own, scoring.items.vectors[:10], scoring, grid)[0] == 0
    flat = Scoring(scoring.items, np.zeros(40, dtype=np.float32))
    assert choose(popular, queries, flat, grid)[0] == 0, "the smallest of equals"


def test_a_weight_is_a_number_or_a_file(tmp_path):
    path = tmp_path / "popularity.json"
    path.write_text(json.dumps({"weight": 1}))
    assert read_weight(0.5, None) == 0.5 and read_weight(0.5, path) == 1.0
    for text in ("", "[]", '{"weight": null}', '{"wait": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"popularity\.json: no weight in it") as caught:
            read_weight(0.5, path)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("planted"))


def work(name: str, spec: dict) -> Record:
    script = importlib.import_module(f"scripts.{name}")
    checked = script.Spec.model_validate(spec)
    record = Record(Path(script.__file__), checked.model_dump(mode="json"))
    script.work(checked, record, lambda line: None)
    return record


def choosing(data: Path, out: Path, **changes) -> dict:
    plain = spec_of("cl", data, out)
    files = {key: plain[key] for key in ("decoder", "decoder_in", "items_in", "sessions_in", "training_in")}
    own = {
        "text": "history",
        "history_items": 3,
        "weights": [0, 1.0, 4.0],
        "vectors_in": str(data / "vectors.safetensors"),
    }
    return {**files, **own, "weight_out": str(out / "popularity.json"), **changes}


def profiles(sessions: list[int], texts: dict[int, list[str]], path: Path) -> str:
    rows = [(session, number, text) for session in sessions for number, text in enumerate(texts[session])]
    table = pl.DataFrame(
        {
            "session": [row[0] for row in rows],
            "sample": [row[1] for row in rows],
            "profile": [row[2] for row in rows],
            "prompt_tokens": [1] * len(rows),
            "tokens": [1] * len(rows),
            "finished": [True] * len(rows),
            "logprob": [0.0] * len(rows),
        },
        schema=contracts.PROFILES,
    )
    contracts.write(table, path, "profiles")
    return str(path)


def test_the_script_chooses_on_validation_alone(tmp_path, data):
    work("choose_popularity", choosing(data, tmp_path))
    chosen = json.loads((tmp_path / "popularity.json").read_text())
    assert chosen["sessions"] == 10 and [row["weight"] for row in chosen["grid"]] == [0, 1, 4]
    assert set(chosen["inputs"]) == {"decoder_in", "vectors_in"}
    assert chosen["largest_of_grid"] == (chosen["weight"] == 4)
    work("choose_popularity", choosing(data, tmp_path / "low", weights=[0.0]))
    assert not json.loads((tmp_path / "low" / "popularity.json").read_text())["largest_of_grid"], "no grid, no end"
    sessions = contracts.read(data / "sessions.parquet", "sessions")
    held_out = sessions.filter(pl.col("split") == "val")["session"].to_list()
    texts = {session: [f"likes n{session % 16}", "never read"] for session in held_out}
    path = profiles(held_out, texts, tmp_path / "val.parquet")
    work("choose_popularity", choosing(data, tmp_path / "p", text="profiles", profiles_in=path))
    assert json.loads((tmp_path / "p" / "popularity.json").read_text())["text"] == "profiles"
    lost = profiles(held_out[1:], texts, tmp_path / "lost.parquet")
    with pytest.raises(UserError, match="1 of 10 sessions have no profile"):
        work("choose_popularity", choosing(data, tmp_path / "q", text="profiles", profiles_in=lost))
    empty = contracts.read(data / "training.parquet", "evaluation").filter(pl.col("split") == "train")
    contracts.write(empty, tmp_path / "training.parquet", "evaluation")
    with pytest.raises(UserError, match=r"no val session to choose a weight of popularity on; use a protocol"):
        work("choose_popularity", choosing(data, tmp_path / "r", training_in=str(tmp_path / "training.parquet")))


def test_test_targets_reach_no_weight(tmp_path, data):
    """Validation targets do not reach the counts either: they change only the ranks."""
    sessions = contracts.read(data / "sessions.parquet", "sessions")
    held_out = sessions.filter(pl.col("split") == "val").with_columns(
        pl.col("session") + len(sessions), split=pl.lit("test")
    )
    other, outcomes = (pl.col("target") + 7) % 160, {}
    moved = pl.when(~pl.col("seen").list.contains(other)).then(other).otherwise("target").cast(pl.Int32)
    for name, split in (("plain", None), ("test", "test"), ("val", "val")):
        table = pl.concat([sessions, held_out])
        target = pl.when(pl.col("split") == split).then(moved).otherwise("target")
        contracts.write(table.with_columns(target=target), tmp_path / f"{name}.parquet", "sessions")
        counts = log_popularity(contracts.read(tmp_path / f"{name}.parquet", "sessions"), 160)
        work("choose_popularity", choosing(data, tmp_path / name, sessions_in=str(tmp_path / f"{name}.parquet")))
        outcomes[name] = (counts.tolist(), (tmp_path / name / "popularity.json").read_text())
    assert outcomes["plain"] == outcomes["test"]
    assert outcomes["plain"][0] == outcomes["val"][0] and outcomes["plain"][1] != outcomes["val"][1]


@pytest.mark.parametrize(
    ("source", "change"),
    [("history", None), ("history", "mean-vector"), *(("profiles", c) for c in (None, "shuffled", "text-alone"))],
)
def test_scores_are_kept_for_a_fusion(tmp_path, data, source, change):
    """The kept scores give the ranks, and validation sessions are scored like test sessions."""
    planted = contracts.read(data / "sessions.parquet", "sessions")
    held_out = planted.filter(pl.col("split") == "val")["session"].to_list()
    texts = {session: [f"likes n{session % 16}"] for session in held_out}
    base = {key: choosing(data, tmp_path)[key] for key in ("decoder", "decoder_in", "vectors_in", "items_in")}
    setting = {"source": source, "change": change, "weight": 0.0 if change == "text-alone" else 2.0, "seed": 1}

    def rank(name: str, test: list[int], val: list[int]) -> Path:
        folder = tmp_path / name
        of = pl.col("session").is_in
        split = pl.when(of(test)).then(pl.lit("test")).when(of(val)).then(pl.lit("val")).otherwise(pl.lit("train"))
        table = planted.with_columns(split=split)
        contracts.write(table, folder / "sessions.parquet", "sessions")
        spec = {**base, **setting, "history_items": 3, "sessions_in": str(folder / "sessions.parquet")}
        for key, kind, part in (("evaluation", "test", test), ("training", "val", val)):
            chosen = table.filter(pl.col("split") == kind).select("session", "split")
            contracts.write(chosen, folder / f"{key}.parquet", "evaluation")
            spec[f"{key}_in"] = str(folder / f"{key}.parquet")
            if source == "profiles":
                field = "val_profiles_in" if kind == "val" else "profiles_in"
                spec[field] = profiles(part, texts, folder / f"{kind}-profiles.parquet")
        out = {f"{name}_out": str(folder / f"{name}.parquet") for name in ("ranks", "scores", "val_scores")}
        work("rank_texts", {**spec, **out})
        return folder

    one, other = rank("one", held_out[:6], held_out[6:]), rank("other", held_out[6:], held_out[:6])
    for folder, crossed, mine in ((one, other, held_out[:6]), (other, one, held_out[6:])):
        table = planted.filter(pl.col("session").is_in(mine))
        (scores,) = kept.read(folder / "scores.parquet", table, 160)
        assert scores.dtype == np.float32
        assert rank_sessions(table, iter([scores])).equals(contracts.read(folder / "ranks.parquet", "ranks"))
        (again,) = kept.read(crossed / "val_scores.parquet", table, 160)
        assert np.array_equal(again, scores)


def test_ranks_and_rewards_take_the_weight(tmp_path, data):
    """rank_texts.py takes a number or a file; its ranks equal those of ``Scoring``."""
    sessions = contracts.read(data / "sessions.parquet", "sessions")
    # Validation sessions replace the test split, which the planted data lack.
    asked = sessions.with_columns(split=pl.col("split").replace("val", "test"))
    contracts.write(asked, tmp_path / "sessions.parquet", "sessions")
    contracts.write(
        asked.filter(pl.col("split") == "test").select("session", "split"), tmp_path / "e.parquet", "evaluation"
    )
    (tmp_path / "popularity.json").write_text(json.dumps({"weight": 3.0}))
    base = choosing(data, tmp_path)
    spec = {key: base[key] for key in ("decoder", "decoder_in", "vectors_in", "items_in", "history_items")}
    spec |= {
        "source": "history",
        "sessions_in": str(tmp_path / "sessions.parquet"),
        "evaluation_in": str(tmp_path / "e.parquet"),
    }
    ranks = {}
    for name, setting in {
        "none": {},
        "number": {"weight": 3.0},
        "file": {"popularity_in": str(tmp_path / "popularity.json")},
    }.items():
        out = tmp_path / f"{name}.parquet"
        assert work("rank_texts", {**spec, **setting, "ranks_out": str(out)}).notes["weight"] == (
            0 if name == "none" else 3
        )
        ranks[name] = contracts.read(out, "ranks")
    assert ranks["number"].equals(ranks["file"]) and not ranks["number"]["rank"].equals(ranks["none"]["rank"])
    encoder = spec_of("rlso", data, tmp_path / "rl", batches=1, validate_every=1, checkpoint_every=9)
    found = [
        work(
            "train_encoder",
            {**encoder, **setting, "checkpoints": str(tmp_path / str(at)), "curve_out": str(tmp_path / f"{at}.jsonl")},
        )
        for at, setting in enumerate(({}, {"popularity_in": str(tmp_path / "popularity.json")}))
    ]
    assert [record.notes["weight"] for record in found] == [0, 3]
    first = [json.loads((tmp_path / f"{at}.jsonl").read_text().splitlines()[0])["val_ndcg"] for at in range(2)]
    assert first[0] != first[1], "the same profiles, ranked by other scores"


def test_a_share_of_the_train_sessions_is_all_that_rewards_read(tmp_path, data, monkeypatch):
    seen, original = [], reward.futures

    def recorded(sessions, chosen, count):
        seen.append((set(sessions["session"]), set(chosen)))
        return original(sessions, chosen, count)

    monkeypatch.setattr(reward, "futures", recorded)
    for share in (0.25, 1.0):
        work("train_encoder", spec_of("rlso", data, tmp_path / str(share), batches=1) | {"train_fraction": share})
    (few, chosen), (every, _) = seen
    assert chosen == few < every and len(few) == len(every) / 4
    held_out = contracts.read(data / "sessions.parquet", "sessions").filter(pl.col("split") != "train")
    assert not every & set(held_out["session"])


def test_all_train_sessions_may_be_drawn_from(tmp_path, data):
    """``sessions: all`` makes prompts for as many sessions as the phase draws, sampled or not."""
    chosen = contracts.read(data / "training.parquet", "evaluation")
    few = pl.concat([chosen.filter(pl.col("split") == "train").head(5), chosen.filter(pl.col("split") == "val")])
    contracts.write(few, tmp_path / "training.parquet", "evaluation")
    counts = {}
    for sessions in ("sample", "all"):
        spec = spec_of("rlso", data, tmp_path / sessions, batches=3, sessions_per_batch=4, sessions=sessions)
        spec["training_in"] = str(tmp_path / "training.parquet")
        counts[sessions] = work("train_encoder", spec).notes["train_sessions"]
    assert counts == {"sample": 5, "all": 12}
    ids = pl.Series(range(100))
    assert sorted(sample.drawn(ids, 100, 0, "p")) == sample.drawn(ids, 200, 0, "p") == ids.to_list()
    once, again, other = (sample.drawn(ids, 30, seed, "p") for seed in (0, 0, 1))
    assert once == again != other and len(set(once)) == 30
