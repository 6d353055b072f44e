"""Metrics from ranks: by hand, by property, against ranx, and through the script that writes them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langptune import metrics
from langptune.data import contracts
from langptune.errors import UserError
from langptune.provenance import ROOT
from langptune.ranking.ranks import full_ranks

NAMES = (*(name for name in metrics.DEFAULT if metrics.direction(name) > 0), "mrr@5", "mrr@10", "ndcg@1")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recall@3", [1, 1, 1, 0, 0]),
        ("ndcg@3", [1, 1 / np.log2(3), 0.5, 0, 0]),
        ("ndcg@7", [1, 1 / np.log2(3), 0.5, 1 / np.log2(5), 1 / 3]),
        ("mrr@3", [1, 1 / 2, 1 / 3, 0, 0]),
        ("mrr", [1, 1 / 2, 1 / 3, 1 / 4, 1 / 7]),
        ("log-rank", [0, np.log(2), np.log(3), np.log(4), np.log(7)]),
    ],
)
def test_values_by_hand(name, expected):
    assert metrics.from_ranks(name, np.array([1, 2, 3, 4, 7])) == pytest.approx(expected, abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMES), st.lists(st.integers(1, 5000), min_size=1, max_size=50))
def test_values_lie_in_the_unit_interval_and_fall_with_the_rank(name, ranks):
    values = metrics.from_ranks(name, np.sort(ranks))
    assert values.dtype == np.float64
    assert ((values >= 0) & (values <= 1)).all()
    assert (np.diff(values) <= 0).all()
    assert metrics.from_ranks(name, np.array([1]))[0] == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=50), st.integers(1, 50))
def test_larger_cut_offs_never_lose(ranks, k):
    for kind in ("recall", "ndcg", "mrr"):
        shorter, longer = (metrics.from_ranks(f"{kind}@{at}", np.array(ranks)) for at in (k, k + 1))
        assert (shorter <= longer).all()


@pytest.mark.parametrize(
    "name", ["ncg", "recall@", "recall@0", "hit@10", "ndcg@-1", "NDCG@10", "ndcg@1.5", "log-rank@5"]
)
def test_unknown_metrics_are_refused(name):
    with pytest.raises(UserError, match="unknown metric"):
        metrics.parse(name)


def test_titles_say_where_lower_is_better():
    assert {name: metrics.direction(name) for name in ("recall@1", "mrr", "log-rank")} == {
        "recall@1": 1, "mrr": 1, "log-rank": -1,
    }  # fmt: skip
    assert [metrics.title(name) for name in ("ndcg@10", "recall@5", "mrr", "log-rank")] == [
        "NDCG@10", "Recall@5", "MRR", "Log rank (lower is better)",
    ]  # fmt: skip


def test_ranks_below_one_are_refused():
    with pytest.raises(UserError, match="1-based"):
        metrics.from_ranks("mrr", np.array([3, 0]))


RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
told = json.load(sys.stdin)
values = evaluate(Qrels(told["qrels"]), Run(told["run"]), told["names"], return_mean=False)
json.dump({name: list(map(float, values[name])) for name in told["names"]}, sys.stdout)
"""


def test_agrees_with_ranx_per_session_on_full_rankings():
    rng = np.random.default_rng(5)
    n_sessions, n_items = 120, 60
    scores = rng.standard_normal((n_sessions, n_items))
    targets = rng.integers(0, n_items, n_sessions).tolist()
    masks = [np.setdiff1d(rng.integers(0, n_items, 8), [target]) for target in targets]
    ranked = full_ranks(scores, targets, masks, top=n_items)
    users = [f"{s:04d}" for s in range(n_sessions)]
    run = {
        user: {str(item): float(score) for item, score in zip(items, values, strict=True) if item >= 0}
        for user, items, values in zip(users, ranked.top, ranked.top_scores, strict=True)
    }
    told = {
        "run": run,
        "qrels": {u: {str(t): 1} for u, t in zip(users, targets, strict=True)},
        "names": NAMES,
    }
    # runs ranx's own code without compiling it, which would take a minute
    done = subprocess.run(
        [sys.executable, "-c", RANX],
        input=json.dumps(told),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    for name in NAMES:
        assert np.abs(metrics.from_ranks(name, ranked.rank) - theirs[name]).max() < 1e-9, name


@pytest.fixture
def stage(tmp_path):
    """Four users, ten items; sessions 1 and 3 are the compared test sessions."""
    n_items = 10
    items = pl.DataFrame({"item": pl.Series(range(n_items), dtype=pl.Int32)}).with_columns(
        item_id=pl.col("item").cast(pl.String),
        title=pl.lit("t"),
        text=pl.lit("t"),
        first_seen=pl.lit(0, dtype=pl.Int64),
    )
    sessions = pl.DataFrame(
        {
            "session": [0, 1, 2, 3],
            "user_id": ["a", "b", "c", "d"],
            "split": ["val", "test", "test", "test"],
            "history": [[0]] * 4,
            "ratings": [[1.0]] * 4,
            "reviews": [None] * 4,
            "seen": [[0]] * 4,
            "target": [1, 2, 3, 4],
            "target_time": [0] * 4,
        },
        schema=contracts.SESSIONS,
    )
    ranks = pl.DataFrame(
        {
            "session": [3, 2, 1, 0],
            "target": [4, 3, 2, 1],
            "rank": [7, 1, 2, 1],
            "top": [[1]] * 4,
            "top_scores": [[0.5]] * 4,
        },
        schema=contracts.RANKS,
    )
    evaluation = pl.DataFrame({"session": [3, 0, 1], "split": ["test", "val", "test"]}, schema=contracts.EVALUATION)

    def run(names=("recall@5", "ndcg@5", "mrr"), split="test", **frames):
        tables = {"items": items, "sessions": sessions, "ranks": ranks, "evaluation": evaluation} | frames
        for kind, frame in tables.items():
            frame.write_parquet(tmp_path / f"{kind}.parquet")
        spec = {f"{kind}_in": str(tmp_path / f"{kind}.parquet") for kind in tables}
        spec |= {"metrics": list(names), "split": split, "metrics_out": str(tmp_path / "metrics.parquet")}
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "evaluate.py"), "--spec", json.dumps(spec)],
            capture_output=True,
            text=True,
            check=False,
        )

    run.ranks, run.out = ranks, tmp_path / "metrics.parquet"
    return run


def test_evaluate_writes_the_compared_sessions_only(stage):
    done = stage()
    assert done.returncode == 0, done.stderr
    frame = pl.read_parquet(stage.out)
    assert frame.columns == ["session", "user_id", "rank", "recall@5", "ndcg@5", "mrr"]
    assert frame["session"].to_list() == [1, 3]
    assert frame["user_id"].to_list() == ["b", "d"]
    assert frame["rank"].to_list() == [2, 7]
    assert frame["recall@5"].to_list() == [1.0, 0.0]
    assert frame["ndcg@5"].to_list() == pytest.approx([1 / np.log2(3), 0.0])
    assert frame["mrr"].to_list() == pytest.approx([1 / 2, 1 / 7])
    assert (stage.out.parent / "metrics.parquet.manifest.json").exists()


def test_evaluate_can_take_another_split(stage):
    assert stage(split="val").returncode == 0
    assert pl.read_parquet(stage.out)["session"].to_list() == [0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"names": ["recall@11"]}, "cut-off 11 is larger than the catalogue of 10 items"),
        ({"keep": [0, 2, 3]}, "1 of 2 compared sessions (first: session 1) have no rank"),
        ({"target": 9}, "2 of 2 compared sessions (first: session 1) have another target"),
        ({"rank": 11}, "have a rank outside 1..10"),
        ({"split": "train"}, "no session of split 'train'"),
    ],
)
def test_evaluate_refuses_in_one_line(stage, change, told):
    ranks = stage.ranks.filter(pl.col("session").is_in(change.pop("keep", [0, 1, 2, 3])))
    for column in ("target", "rank"):
        if column in change:
            ranks = ranks.with_columns(pl.lit(change.pop(column), dtype=pl.Int32).alias(column))
    done = stage(ranks=ranks, **change)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not stage.out.exists()


def test_evaluate_does_not_load_torch():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import evaluate; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_new_file_is_a_metric(tmp_path):
    """The file is copied from docs/extend.md. Only the evaluation is recomputed, and no training."""
    code = re.search(
        r"\*\*A metric\*\* of the rank.*?```python\n(.*?)```", (ROOT / "docs/extend.md").read_text(), re.S
    )[1]
    for folder in ("src", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    asked = """
from langptune import metrics, provenance
scripts = provenance.ROOT / "scripts"
hashes = [provenance.code_hash(scripts / f"{name}.py") for name in ("train_encoder", "train_decoder", "fit_baseline")]
new = metrics._kinds().count("first") and [metrics.title("first"), metrics.from_ranks("first", [1, 2]).tolist()]
loads = [metrics.module("first")] if new else []
print([*hashes, new, provenance.code_hash(scripts / "evaluate.py", (), loads)])
"""

    def measured():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONSAFEPATH": "1"}
        done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ast.literal_eval(done.stdout)

    *before, none, evaluated = measured()
    (tmp_path / "src/langptune/metrics/first.py").write_text(code)
    *after, new, again = measured()
    assert before == after and none == 0 and new == ["First", [1.0, 0.0]] and again != evaluated


def test_a_metric_without_a_constant_is_one_line(monkeypatch):
    metrics._metric.cache_clear()
    monkeypatch.delattr(metrics.ndcg, "CUTOFF")
    with pytest.raises(UserError, match=r"ndcg\.py: a metric has CUTOFF"):
        metrics.parse("ndcg@10")
    metrics._metric.cache_clear()
