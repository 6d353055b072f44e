"""Fusions: kept scores, the weighted sum against a naive computation, the upper bound, and what is refused."""

from __future__ import annotations

import importlib
import json
import re
import shutil

import numpy as np
import polars as pl
import pytest

from langptune.config.load import load
from langptune.config.workflow import Run
from langptune.data import contracts
from langptune.errors import UserError
from langptune.metrics import from_ranks
from langptune.provenance import ROOT, Record
from langptune.ranking import fusion, kept
from langptune.ranking.decoder import rank_sessions
from tests.unit.test_controls import sessions as table_of

N = 23


def sessions(count: int, seed: int = 0) -> pl.DataFrame:
    """Sessions over N items, with masks of different lengths."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(count):
        items = rng.permutation(N).tolist()
        rows.append((f"u{user}", "test", items[1 : 2 + rng.integers(6)], items[0]))
    return table_of(rows)


def scores(count: int, seed: int, dtype=np.float32) -> np.ndarray:
    """Scores with ties, on a different scale in each row."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 9, (count, N)) * rng.uniform(0.01, 1e4, (count, 1)) + rng.normal(0, 50)).astype(dtype)


def naive_rank(table: pl.DataFrame, row: int, first: np.ndarray, second: np.ndarray, weight: float) -> int:
    """The rank by its definition, item by item."""
    seen, target = set(table["seen"][row]), table["target"][row]
    free = [item for item in range(N) if item not in seen]

    def z(values: np.ndarray) -> dict[int, float]:
        numbers = [float(values[item]) for item in free]
        mean = sum(numbers) / len(numbers)
        spread = (sum((x - mean) ** 2 for x in numbers) / len(numbers)) ** 0.5
        return {item: (float(values[item]) - mean) / spread for item in free}

    one, two = z(first[row]), z(second[row])
    total = {item: (1 - weight) * one[item] + weight * two[item] for item in free}
    higher = sum(total[item] > total[target] + 1e-9 for item in free)
    ties = sum(abs(total[item] - total[target]) <= 1e-9 for item in free) - 1
    return 1 + higher + -(-ties // 2)


def blocks(first: np.ndarray, second: np.ndarray, size: int = 7):
    return [(first[at : at + size], second[at : at + size]) for at in range(0, len(first), size)]


@pytest.mark.parametrize("weight", [0.0, 0.35, 0.5, 1.0])
def test_fused_ranks_are_those_of_the_definition(weight):
    table, first, second = sessions(40), scores(40, 1), scores(40, 2, np.float64)
    found = rank_sessions(table, fusion.fused(table, blocks(first, second), weight))
    assert found["rank"].to_list() == [naive_rank(table, row, first, second, weight) for row in range(40)]
    assert not any(set(top) & set(seen) for top, seen in zip(found["top"], table["seen"], strict=True))


def test_all_of_the_weight_on_one_method_gives_its_own_ranks():
    """Ranks are equal to the last bit, even if one huge score makes the standardised scores of all others equal."""
    table, first, second = sessions(30), scores(30, 3), scores(30, 4, np.float64)
    first[:, 5], second[:, 7] = 1e15, 1e30
    for weight, own in ((0, first), (1, second)):
        found = rank_sessions(table, fusion.fused(table, blocks(first, second), weight))
        assert found.equals(rank_sessions(table, iter([own])))


def test_scores_are_standardised_over_the_items_that_may_be_recommended():
    table, values = sessions(20), scores(20, 5)
    values[3] = 0.1  # equal scores have no effect and cause no division by zero
    values[4, 2] = -np.inf
    masks = [seen.to_numpy() for seen in table["seen"]]
    found = fusion.standardised(values, masks)
    for row in range(20):
        free = np.setdiff1d(np.flatnonzero(np.isfinite(values[row])), masks[row])
        mean, spread = found[row, free].mean(), found[row, free].std()
        assert mean == pytest.approx(0, abs=1e-12) and spread == pytest.approx(float(row != 3), abs=1e-12)
    assert (found[3] == 0).all() and found[4, 2] == -np.inf


def test_the_weight_is_the_best_of_the_grid_on_the_given_sessions():
    table, noise, hint = sessions(60), scores(60, 6), scores(60, 7).astype(np.float64)
    rows = np.arange(60)
    hint[rows, table["target"].to_numpy()] = hint.max(axis=1) + hint.std(axis=1)
    weights = [step / 20 for step in range(21)]
    weight, grid = fusion.choose(table, blocks(noise, hint), weights)
    assert [row["weight"] for row in grid] == weights and weight > 0.5
    for row in grid:
        ranks = rank_sessions(table, fusion.fused(table, blocks(noise, hint), row["weight"]))["rank"].to_numpy()
        assert row["ndcg"] == from_ranks("ndcg", ranks).mean() and row["log_rank"] == np.log(ranks).mean()
    assert weight == max(grid, key=lambda row: row["ndcg"])["weight"]
    assert fusion.choose(table, blocks(noise, noise), weights)[0] == 0, "in doubt, the first method alone"


def test_the_bound_is_the_smaller_rank_with_its_list():
    table = sessions(30)
    first, second = (rank_sessions(table, iter([scores(30, seed)]), top=5) for seed in (8, 9))
    found = fusion.better(first, second)
    assert found["session"].equals(table["session"])
    assert found["rank"].to_list() == list(map(min, first["rank"], second["rank"]))
    for one, two, taken in zip(first.iter_rows(), second.iter_rows(), found.iter_rows(), strict=True):
        assert taken == (two if two[2] < one[2] else one)


# files


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kept_scores_come_back_in_blocks(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(kept, "BLOCK", 4 * N)
    table, values = sessions(30), scores(30, 1, dtype)
    wanted = table["session"].gather_every(3)
    with kept.keeping(tmp_path / "s.parquet", wanted) as keep:
        passed = list(keep(table, iter([values[:11], values[11:]])))
    assert np.array_equal(np.concatenate(passed), values)
    chosen = table.filter(pl.col("session").is_in(wanted.to_list()))
    found = list(kept.read(tmp_path / "s.parquet", chosen, N))
    assert [len(block) for block in found] == [4, 4, 2] and found[0].dtype == dtype
    assert np.array_equal(np.concatenate(found), values[::3])
    with kept.keeping(None) as keep:
        assert list(keep(table, iter([1]))) == [1]


def test_a_job_that_fails_leaves_no_scores(tmp_path):
    table = sessions(4)
    with pytest.raises(UserError, match="NaN"), kept.keeping(tmp_path / "s.parquet") as keep:
        rank_sessions(table, keep(table, iter([np.full((4, N), np.nan)])))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[:-1], r"scores of 9 sessions, but 10 are compared; 1 are in one .*first: session 9"),
        (lambda table: table.with_columns(pl.col("session") + 5), r"10 are in one of the two only \(first: session 0"),
        (lambda table: table[::-1], r"0 are in one of the two only\. A fusion needs"),
        (lambda table: table.with_columns(target=(pl.col("target") + 1) % N), "session 0 has another target"),
    ],
)
def test_scores_of_other_sessions_are_refused(tmp_path, change, message):
    table = sessions(10)
    kept.write(tmp_path / "s.parquet", change(table), iter([scores(len(change(table)), 1)]))
    with pytest.raises(UserError, match=message) as caught:
        list(kept.read(tmp_path / "s.parquet", table, N))
    assert "\n" not in str(caught.value) and str(tmp_path / "s.parquet") in str(caught.value)


def test_broken_scores_are_one_line(tmp_path):
    table, path = sessions(10), tmp_path / "s.parquet"
    kept.write(path, table, iter([scores(10, 1)]))
    with pytest.raises(UserError, match=rf"{N}.*expected 99 numbers per session"):
        list(kept.read(path, table, 99))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        list(kept.read(path, table, N))
    with pytest.raises(UserError, match="no such file"):
        list(kept.read(tmp_path / "none.parquet", table, N))


# the script


@pytest.fixture
def spec(tmp_path) -> dict:
    """Scores and ranks of two methods on 12 validation and 20 test sessions; method b knows the validation targets."""
    table = sessions(32).with_columns(split=pl.Series(["val"] * 12 + ["test"] * 20))
    items = {"item": range(N), "item_id": list(map(str, range(N))), "title": "", "text": "", "first_seen": 0}
    contracts.write(pl.DataFrame(items, schema=contracts.ITEMS), tmp_path / "items.parquet", "items")
    contracts.write(table, tmp_path / "sessions.parquet", "sessions")
    for name, split in (("training", "val"), ("evaluation", "test")):
        chosen = table.filter(pl.col("split") == split).select("session", "split")
        contracts.write(chosen, tmp_path / f"{name}.parquet", "evaluation")
    for name, seed in (("a", 1), ("b", 2)):
        values = scores(32, seed)
        if name == "b":
            values[np.arange(12), table["target"][:12].to_numpy()] = 1e6
        kept.write(tmp_path / f"val-{name}.parquet", table[:12], iter([values[:12]]))
        with kept.keeping(tmp_path / f"test-{name}.parquet") as keep:
            contracts.write(
                rank_sessions(table[12:], keep(table[12:], iter([values[12:]]))),
                tmp_path / f"ranks-{name}.parquet",
                "ranks",
            )
    tables = {f"{name}_in": str(tmp_path / f"{name}.parquet") for name in ("items", "sessions", "evaluation")}
    outputs = {"ranks_out": str(tmp_path / "ranks.parquet"), "choice_out": str(tmp_path / "choice.json")}
    return {"of": ["a", "b"], **tables, **outputs}


def two(tmp_path, kind: str) -> list[str]:
    return [str(tmp_path / f"{kind}-{name}.parquet") for name in "ab"]


def added(tmp_path) -> dict:
    training = str(tmp_path / "training.parquet")
    files = {"training_in": training, "scores_in": two(tmp_path, "test"), "val_scores_in": two(tmp_path, "val")}
    return {"combine": "scores", "weights": [0.0, 0.5, 0.9, 1.0], **files}


def work(fields: dict) -> Record:
    script = importlib.import_module("scripts.fuse")
    spec = script.Spec.model_validate(fields)
    record = Record(ROOT / "scripts" / "fuse.py", spec.model_dump(mode="json"))
    script.work(spec, record, lambda line: None)
    return record


def test_the_weight_comes_from_validation_and_the_ranks_from_the_test_scores(tmp_path, spec):
    record = work(spec | added(tmp_path))
    choice = json.loads((tmp_path / "choice.json").read_text())
    assert choice["of"] == ["a", "b"] and choice["sessions"] == 12 and record.notes["weight"] == choice["weight"] > 0.4
    test = contracts.read(spec["sessions_in"], "sessions")[12:]
    first, second = (np.concatenate(list(kept.read(path, test, N))) for path in two(tmp_path, "test"))
    found = contracts.read(spec["ranks_out"], "ranks")
    expected = [naive_rank(test, row, first, second, choice["weight"]) for row in range(20)]
    assert found["session"].equals(test["session"]) and found["rank"].to_list() == expected
    # With another weight on validation, the test scores are the same and the ranks change.
    work(spec | added(tmp_path) | {"weights": [0.0]})
    assert contracts.read(spec["ranks_out"], "ranks").equals(contracts.read(tmp_path / "ranks-a.parquet", "ranks"))


def test_the_bound_needs_ranks_alone(tmp_path, spec):
    record = work(spec | {"combine": "better-rank", "parts_in": two(tmp_path, "ranks")})
    first, second = (contracts.read(path, "ranks")["rank"] for path in two(tmp_path, "ranks"))
    found = contracts.read(spec["ranks_out"], "ranks")["rank"]
    assert found.to_list() == list(map(min, first, second))
    assert record.notes["better"] == {
        "a": (first < second).sum(), "b": (second < first).sum(), "equal": (first == second).sum()
    }  # fmt: skip


def test_methods_on_different_sessions_are_not_fused(tmp_path, spec):
    """One of them had a smaller sample."""
    chosen = contracts.read(spec["evaluation_in"], "evaluation")[1:]
    path = tmp_path / "smaller.parquet"
    contracts.write(chosen, path, "evaluation")
    with pytest.raises(UserError, match=r"test-a\.parquet: scores of 20 sessions, but 19 are compared"):
        work(spec | added(tmp_path) | {"evaluation_in": str(path)})
    ranks = contracts.read(tmp_path / "ranks-b.parquet", "ranks")[1:]
    contracts.write(ranks, tmp_path / "ranks-b.parquet", "ranks")
    with pytest.raises(UserError, match=r"ranks-b\.parquet: 1 of 20 compared sessions have no rank"):
        work(spec | {"combine": "better-rank", "parts_in": two(tmp_path, "ranks")})
    empty = contracts.read(tmp_path / "training.parquet", "evaluation").clear()
    contracts.write(empty, path, "evaluation")
    with pytest.raises(UserError, match=r"no val session in it; use a protocol"):
        work(spec | added(tmp_path) | {"training_in": str(path)})
    with pytest.raises(UserError, match="combine 'scores' needs 'scores_in'"):
        work(spec | added(tmp_path) | {"scores_in": None})


# the config

MODELS = "smollm2-135m+minilm-l6"


def config(overrides: dict | None = None, methods: tuple[str, ...] = ("ease-plus-langptune",), **keys) -> dict:
    base = {"datasets": ["ml-100k"], "encoders": ["smollm2-135m"], "decoders": ["minilm-l6"], "seeds": [3, 4]}
    return (
        base | {"methods": list(methods), "comparison": {"reference": methods[0]}, "overrides": overrides or {}} | keys
    )


def test_a_fusion_has_the_models_and_seeds_of_its_methods():
    names = ("ease-plus-langptune", "sasrec-plus-langptune", "ease-plus-history-cl")
    workflow = load(config(methods=names), ROOT)
    assert [(run.models, run.seed) for run in workflow.runs()] == [
        *((MODELS, seed) for _ in names[:2] for seed in (3, 4)),
        *(("minilm-l6", seed) for seed in (3, 4)),
    ]
    ease, langptune = workflow.parts_of(Run("ml-100k", names[0], MODELS, 4))
    assert (ease.models, ease.seed, langptune.models, langptune.seed) == ("EASE", 3, MODELS, 4), "EASE has one seed"
    sasrec = workflow.parts_of(Run("ml-100k", names[1], MODELS, 4))[0]
    assert (sasrec.models, sasrec.seed) == ("SASRec", 4)


def test_the_entry_of_the_docs_is_a_method(tmp_path):
    page = (ROOT / "docs" / "extend.md").read_text()
    entry = re.search(r"\*\*Two methods together\*\*.*?```yaml\n(.*?)```", page, re.S)[1]
    shutil.copytree(ROOT / "config", tmp_path / "config")
    with (tmp_path / "config" / "methods.yaml").open("a") as registry:
        registry.write(f"\n{entry}")
    workflow = load(config(methods=("bpr-plus-langptune",)), tmp_path)
    assert [run.models for run in workflow.parts_of(workflow.runs()[0])] == ["BPR", MODELS]


@pytest.mark.parametrize(
    ("of", "models", "parts"),
    [
        (["pop", "ease"], ["pop-EASE"], ["pop", "EASE"]),
        (["history-cl", "langptune"], [MODELS], ["minilm-l6", MODELS]),
        (["shuffled-langptune", "pop"], [MODELS], [MODELS, "pop"]),
    ],
)
def test_the_models_of_any_two_kinds(of, models, parts):
    workflow = load(config({"ease-plus-langptune": {"of": of}}), ROOT)
    assert workflow.models_of("ease-plus-langptune") == models
    found = workflow.parts_of(Run("ml-100k", "ease-plus-langptune", models[0], 3))
    assert [(run.method, run.models) for run in found] == list(zip(of, parts, strict=True))
    assert len(workflow.runs()) == (1 if of == ["pop", "ease"] else 2)


FUSED = "ease-plus-langptune"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"of": ["ease", "langtune"]}, "method 'ease-plus-langptune': of: unknown method 'langtune'; did you mean"),
        ({"of": ["ease", "ease"]}, "'ease' is named twice"),
        ({"of": ["ease"]}, "of"),
        ({"of": ["ease", "sasrec-plus-langptune"]}, "'sasrec-plus-langptune' is itself a fusion"),
        ({"of": ["ease", FUSED]}, f"'{FUSED}' is itself a fusion"),
        ({"of": ["ease", "oracle"]}, "'oracle' is a bound, so that a fusion of it is one too"),
        ({"combine": "better-rank"}, "reads the target; set group to bounds"),
        ({"group": "baselines"}, "group"),
        ({"combine": "mean"}, "combine"),
        ({"of": ["ease", "langptune-paper"]}, "'cl-paper-joint' has no recipe for encoder 'smollm2-135m'"),
    ],
)
def test_mistakes_are_reported_before_any_job(entry, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load(config({FUSED: entry}), ROOT)
    assert "\n" not in str(caught.value)


def test_a_fusion_of_texts_needs_models():
    with pytest.raises(UserError, match="method 'langptune' needs encoders and decoders"):
        load(config(encoders=[]), ROOT)
