"""Metrics of recommended lists: against RecBole, rectools and scipy, by hand, and through the script."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats
from scipy.spatial import distance

from langptune import list_metrics, provenance
from langptune.comparison import lists
from langptune.config import settings
from langptune.data import contracts
from langptune.data.interactions import train_pairs
from langptune.errors import UserError
from langptune.figures.inputs import Comparison
from langptune.language.tastes import tastes_of
from langptune.list_metrics import Facts, Lists
from langptune.provenance import ROOT
from langptune.ranking.ranks import TOP
from tests.conftest import sessions_table

ITEMS, USERS, K = 80, 40, 8
GENRES = [f"Genre {number}" for number in range(70)]  # more genres than a machine word has bits


@pytest.fixture(scope="module")
def catalogue() -> pl.DataFrame:
    """Items with up to four genres, except item 7, which has none, and texts with shared words."""
    rng = np.random.default_rng(3)
    chosen = [sorted(rng.choice(len(GENRES), rng.integers(20, 40), replace=False)) for _ in range(ITEMS)]
    chosen[7] = []
    texts = [" ".join(f"word{word}" for word in rng.integers(0, 60, 6)) for _ in range(ITEMS)]
    return pl.DataFrame(
        {
            "item": range(ITEMS),
            "item_id": [f"i{item}" for item in range(ITEMS)],
            "title": texts,
            "text": texts,
            "first_seen": [0] * ITEMS,
            "genres": [", ".join(GENRES[at] for at in parts) for parts in chosen],
        },
        schema={**contracts.ITEMS, "genres": pl.String},
    )


@pytest.fixture(scope="module")
def sessions() -> pl.DataFrame:
    """Train sessions of the first 60 items, some of them popular; and one test session per user."""
    rng = np.random.default_rng(4)
    rows = []
    for user in range(USERS):
        seen = rng.permutation((60 * rng.random(30) ** 2).astype(int)).tolist()
        seen = list(dict.fromkeys(seen))[: 4 + user % 9]
        rows += [(f"u{user}", "train", seen[:at], seen[at], at) for at in range(1, len(seen))]
        rows.append((f"u{user}", "test", seen, int(rng.integers(60, ITEMS)), 99))
    return sessions_table(rows)


@pytest.fixture(scope="module")
def compared(sessions) -> pl.DataFrame:
    return sessions.filter(pl.col("split") == "test")


@pytest.fixture(scope="module")
def facts(catalogue, sessions, compared) -> Facts:
    return lists.facts_of(catalogue, sessions, compared, tastes_of(catalogue, "genres").has)


@pytest.fixture(scope="module")
def made() -> Lists:
    rng = np.random.default_rng(5)
    return Lists(np.stack([rng.permutation(ITEMS)[:K] for _ in range(USERS)]), ITEMS)


def frame(items: np.ndarray) -> pd.DataFrame:
    """Lists in the format of rectools."""
    users, places = np.nonzero(items >= 0)
    return pd.DataFrame({"user_id": users, "item_id": items[users, places], "rank": places + 1})


RECBOLE = """
import json, sys
from collections import Counter
from langptune.baselines.engine import recbole_compat
recbole_compat.apply()
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.metrics import AveragePopularity, GiniIndex, ItemCoverage
given = json.load(sys.stdin)
data = DataStruct()
data.set("rec.items", torch.tensor(given["items"]))
data.set("data.num_items", given["n_items"])
data.set("data.count_items", Counter({int(item): count for item, count in given["counts"].items()}))
settings = {"topk": [given["k"]], "metric_decimal_place": 12}
found = {}
for kind in (AveragePopularity, GiniIndex, ItemCoverage):
    found |= {name.split("@")[0]: float(value) for name, value in kind(settings).calculate_metric(data).items()}
print(json.dumps(found))
"""


def test_coverage_gini_and_popularity_are_those_of_recbole(made, facts):
    given = {"items": made.items.tolist(), "n_items": ITEMS, "k": K}
    given["counts"] = {item: int(count) for item, count in enumerate(facts.popularity)}
    command = [sys.executable, "-c", RECBOLE]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = {name: list_metrics.values(name, made, facts).mean() for name in ("popularity", "gini", "coverage")}
    assert ours["popularity"] == pytest.approx(theirs["averagepopularity"], abs=1e-9)
    assert ours["gini"] == pytest.approx(theirs["giniindex"], abs=1e-9)
    assert ours["coverage"] == pytest.approx(theirs["itemcoverage"], abs=1e-9)


@pytest.fixture(scope="module", params=["full", "short"])
def listed(request, made) -> Lists:
    """Full lists, or lists of two to eight items."""
    if request.param == "full":
        return made
    lengths = np.random.default_rng(6).integers(2, K + 1, USERS)
    return Lists(np.where(np.arange(K) < lengths[:, None], made.items, -1), ITEMS)


@pytest.fixture(scope="module")
def known(sessions) -> pd.DataFrame:
    """Train interactions in the format of rectools."""
    pairs = train_pairs(sessions)
    return pd.DataFrame({"user_id": pairs["user_id"].to_list(), "item_id": pairs["item"].to_list()})


def test_popularity_lift_novelty_and_coverage_are_those_of_rectools(listed, facts, known, compared):
    from rectools.metrics import AvgRecPopularity, CatalogCoverage, MeanInvUserFreq

    theirs = AvgRecPopularity(k=K).calc_per_user(frame(listed.items), known).to_numpy()
    assert np.abs(list_metrics.values("popularity", listed, facts) - theirs).max() < 1e-9
    longest = compared["seen"].list.len().max()
    history = np.array([seen + [-1] * (longest - len(seen)) for seen in compared["seen"].to_list()])
    own = AvgRecPopularity(k=longest).calc_per_user(frame(history), known).to_numpy()
    assert np.abs(list_metrics.values("popularity-lift", listed, facts) - (theirs - own) / own).max() < 1e-9
    theirs = MeanInvUserFreq(k=K).calc_per_user(frame(listed.items), known).to_numpy()
    assert np.abs(list_metrics.values("novelty", listed, facts) - theirs).max() < 1e-9
    theirs = CatalogCoverage(k=K, normalize=True).calc(frame(listed.items), range(ITEMS))
    assert list_metrics.values("coverage", listed, facts) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("metric", ["genre-diversity", "text-diversity"])
def test_diversity_is_that_of_rectools_with_distances_of_scipy(metric, listed, facts):
    from rectools.metrics import IntraListDiversity, PairwiseDistanceCalculator

    table, kind = (facts.genres, "jaccard") if metric == "genre-diversity" else (facts.words.toarray(), "cosine")
    distances = distance.squareform(distance.pdist(table, kind))

    class Calculator(PairwiseDistanceCalculator):
        def _get_distances_for_item_pairs(self, one, other):
            return distances[one.astype(int), other.astype(int)]

    theirs = IntraListDiversity(k=K, distance_calculator=Calculator()).calc_per_user(frame(listed.items)).to_numpy()
    assert np.abs(list_metrics.values(metric, listed, facts) - theirs).max() < 1e-9


def test_calibration_is_the_divergence_of_the_shares_of_genres(listed, facts, compared):
    """No available library has this metric: shares are computed by loops, the divergence by scipy."""
    expected = []
    for seen, items in zip(compared["seen"].to_list(), listed.items, strict=True):
        shares = []
        for chosen in (seen, items[items >= 0]):
            parts = [facts.genres[item] / facts.genres[item].sum() for item in chosen if facts.genres[item].any()]
            shares.append(np.mean(parts, axis=0))
        own, other = shares
        expected.append(stats.entropy(own, 0.99 * other + 0.01 * own))
    assert np.abs(list_metrics.values("calibration", listed, facts) - expected).max() < 1e-9
    assert max(expected) < -np.log(0.01)


def by_hand(**changes) -> tuple[Lists, Facts]:
    """Three items: two with genre 0, the second also with genre 1; the third has no genre and is not in training."""
    from scipy import sparse

    parts = {
        "popularity": np.array([4.0, 2.0, 0.0]),
        "users": 8,
        "history": sparse.csr_array(np.array([[1.0, 0, 0], [0, 0, 1.0]])),
        "genres": np.array([[1, 0], [1, 1], [0, 0]], dtype=bool),
        "words": sparse.csr_array(np.array([[1.0, 0], [0.6, 0.8], [0, 0]])),
    }
    return Lists(np.array([[1, 2], [0, -1]]), 3), Facts(**parts | changes)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("popularity", [1, 4]),
        ("popularity-lift", [-0.75, np.nan]),  # the second history has only an item that does not occur in training
        ("novelty", [2.5, 1]),  # an item without users counts as one with a single user
        ("genre-diversity", [1, np.nan]),  # one item has no pairs
        ("text-diversity", [1, np.nan]),
        ("calibration", [-np.log(0.99 * 0.5 + 0.01), np.nan]),  # the second history has no genre
        ("coverage", 1),
        ("gini", 0),
    ],
)
def test_values_by_hand(metric, expected):
    assert list_metrics.values(metric, *by_hand()) == pytest.approx(expected, nan_ok=True)


def test_lists_without_genres_have_none_of_the_history():
    listed, facts = by_hand()
    listed = Lists(np.array([[2, -1], [2, 1]]), 3)
    assert list_metrics.values("calibration", listed, facts)[0] == pytest.approx(-np.log(0.01))
    none = by_hand(genres=np.zeros((3, 2), dtype=bool))
    assert list_metrics.values("genre-diversity", *none)[0] == 0


def run_of(path, method, seed=0, models="m") -> lists.RankedRun:
    return lists.RankedRun(method=method, models=models, seed=seed, ranks_path=str(path))


@pytest.fixture
def runs(tmp_path, compared) -> list[lists.RankedRun]:
    """Two seeds of ``base``, and one of ``narrow``, whose lists are all equal. The files have one session more."""
    out = []
    for seed, method in enumerate(("base", "base", "narrow")):
        rng = np.random.default_rng(seed)
        tops = [[0] * 50, *(rng.permutation(ITEMS)[:50].tolist() for _ in range(USERS))]
        tops = [list(range(50))] * len(tops) if method == "narrow" else tops
        table = {"session": [9999, *compared["session"]], "target": [0] * 41, "rank": [1] * 41, "top": tops}
        path = tmp_path / f"{seed}.parquet"
        pl.DataFrame(table | {"top_scores": [[0.0] * 50] * 41}, schema=contracts.RANKS).write_parquet(path)
        out.append(run_of(path, method, seed))
    return out


def test_the_table_has_means_over_seeds_and_paired_intervals(runs, facts, compared):
    ids = compared["session"].to_numpy()
    rows = lists.collect(runs, ids, facts, K)
    table = lists.table(rows, list_metrics.left_out(facts), "base", len(ids), K, resamples=200)
    assert table["metric"].unique(maintain_order=True).to_list() == list_metrics.names()
    assert len(table) == 2 * len(list_metrics.names()) and table["left_out"].null_count() == len(table)
    one = {row["method"]: row for row in table.filter(pl.col("metric") == "popularity").iter_rows(named=True)}
    own = [list_metrics.values("popularity", lists.read(run.ranks_path, ids, K, ITEMS), facts) for run in runs]
    means = [values.mean() for values in own]
    assert one["base"]["mean"] == pytest.approx(np.mean(means[:2])) and one["base"]["difference"] is None
    assert one["narrow"]["difference"] == pytest.approx(means[2] - np.mean(means[:2]))
    assert [one["narrow"][end] for end in ("low", "high")] == pytest.approx([means[2]] * 2), "all its lists are alike"
    assert one["narrow"]["difference_low"] < one["narrow"]["difference"] < one["narrow"]["difference_high"]
    assert one["narrow"]["detectable"] > 0 and one["narrow"]["sessions"] == USERS
    one = {row["method"]: row for row in table.filter(pl.col("metric") == "coverage").iter_rows(named=True)}
    assert one["narrow"]["mean"] == K / ITEMS and one["base"]["low"] is None, "no interval of a number of all lists"
    assert one["narrow"]["difference"] == pytest.approx(K / ITEMS - one["base"]["mean"])


def test_what_the_dataset_lacks_is_left_out_with_the_reason(runs, catalogue, sessions, compared):
    facts = lists.facts_of(catalogue.with_columns(text=pl.lit("")), sessions, compared, None)
    ids = compared["session"].to_numpy()
    rows = lists.collect(runs, ids, facts, K)
    table = lists.table(rows, list_metrics.left_out(facts), "base", len(ids), K, resamples=100)
    out = table.filter(pl.col("left_out").is_not_null())
    assert dict(out.select("metric", "left_out").iter_rows()) == {
        "calibration": list_metrics.LACKING["genres"],
        "genre-diversity": list_metrics.LACKING["genres"],
        "text-diversity": list_metrics.LACKING["words"],
    }
    assert out["mean"].null_count() == len(out) == 3
    assert set(table["metric"]) == set(list_metrics.names())


def test_sessions_without_a_value_are_left_out_for_all_runs(runs, facts, compared):
    ids = compared["session"].to_numpy()
    rows = lists.collect(runs, ids, facts, K)
    rows[1].values["popularity-lift"][:10] = np.nan
    table = lists.table(rows, {}, "base", len(ids), K, resamples=100)
    assert set(table.filter(pl.col("metric") == "popularity-lift")["sessions"]) == {USERS - 10}
    assert set(table.filter(pl.col("metric") == "novelty")["sessions"]) == {USERS}
    rows[1].values["popularity-lift"][:] = np.nan
    table = lists.table(rows, {}, "base", len(ids), K, resamples=100)
    (line,) = table.filter(pl.col("metric") == "popularity-lift").iter_rows(named=True)
    assert line["left_out"] == "no session has a value of every run" and line["mean"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("top").list.head(0), "40 of 40 compared sessions .* have no list"),
        (pl.col("top") + ITEMS, r"an item lies outside 0\.\.79"),
        (pl.col("top").list.concat([pl.lit(None, pl.Int32)]).list.reverse(), r"an item lies outside 0\.\.79"),
        (pl.lit(1, dtype=pl.Int32).alias("session"), "ranked twice"),
    ],
)
def test_lists_of_other_data_are_one_line(change, message, runs, facts, compared):
    path = runs[0].ranks_path
    pl.read_parquet(path).with_columns(change).write_parquet(path)
    with pytest.raises(UserError, match=f"{re.escape(path)}.*{message}"):
        lists.collect(runs, compared["session"].to_numpy(), facts, K)


def test_a_run_that_is_listed_twice_is_refused(runs, facts, compared):
    with pytest.raises(UserError, match="duplicate run base/m with seed 0"):
        lists.collect([runs[0], runs[0]], compared["session"].to_numpy(), facts, K)


def test_the_script_writes_the_table_and_the_figure_shows_it(tmp_path, runs, catalogue, sessions, compared):
    evaluation = pl.DataFrame({"session": compared["session"], "split": ["test"] * USERS}, schema=contracts.EVALUATION)
    spec = {"runs": [run.model_dump() for run in runs], "reference": "base", "genre_field": "genres", "bootstrap": 100}
    for name, table in (("items", catalogue), ("sessions", sessions), ("evaluation", evaluation)):
        table.write_parquet(tmp_path / f"{name}.parquet")
        spec[f"{name}_in"] = str(tmp_path / f"{name}.parquet")
    spec["lists_out"] = str(tmp_path / "lists.csv")
    command = [sys.executable, str(ROOT / "scripts" / "list_metrics.py"), "--spec", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(tmp_path / "lists.csv")
    assert table.columns == list(lists.SCHEMA) and len(table) == 16 and set(table["k"]) == {10}
    manifest = json.loads((tmp_path / "lists.csv.manifest.json").read_text())
    assert set(manifest["notes"]["runs"]) == {run.ranks_path for run in runs}

    entry = {"title": "T", "group": "baselines", "metrics_path": "absent"}
    entries = [run.model_dump(exclude={"ranks_path"}) | entry | {"title": run.method} for run in runs]
    comparison = Comparison(runs=entries, reference="base", lists_in=spec["lists_out"])
    from langptune.figures.comparison.lists import draw

    figure = draw(comparison)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0] == "Miscalibration@10" and len(titles) == 8
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["base", "narrow"]


def test_one_new_file_is_a_metric_of_lists(tmp_path):
    """The file is copied from docs/extend.md: the table includes the metric, and only the table is recomputed."""
    page = (ROOT / "docs/extend.md").read_text()
    code = re.search(r"\*\*A metric of recommended lists\*\*.*?```python\n(.*?)```", page, re.S)[1]
    for folder in ("src", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    asked = """
import numpy as np
from langptune import list_metrics, provenance
from langptune.comparison import lists
from langptune.list_metrics import Facts, Lists
from scipy import sparse
scripts = provenance.ROOT / "scripts"
facts = Facts(np.array([3.0, 1.0, 0.0]), 4, sparse.csr_array(np.eye(2, 3)))
row = lists.Row("a", "b", {name: list_metrics.values(name, Lists(np.array([[0, 1], [2, 0]]), 3), facts)[..., None]
                           for name in list_metrics.names() if name not in list_metrics.left_out(facts)})
table = lists.table([row], list_metrics.left_out(facts), "a", 2, 2, 100)
new = [line["mean"] for line in table.iter_rows(named=True) if line["title"] == "Items unknown to training"]
loads = list_metrics.modules()
print([provenance.code_hash(scripts / "compare.py"), new, provenance.code_hash(scripts / "list_metrics.py", (), loads)])
"""

    def measured():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONSAFEPATH": "1"}
        done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ast.literal_eval(done.stdout)

    compare, none, script = measured()
    (tmp_path / "src/langptune/list_metrics/unknown.py").write_text(code)
    again, new, changed = measured()
    assert compare == again and none == [] and new == [0.25] and script != changed


def test_a_file_that_is_no_metric_is_one_line(monkeypatch):
    from langptune.list_metrics import coverage

    list_metrics.metric.cache_clear()
    with monkeypatch.context() as patch:
        patch.delattr(coverage, "NEEDS")
        with pytest.raises(UserError, match=r"coverage\.py: a metric of lists has NEEDS"):
            list_metrics.metric("coverage")
    with monkeypatch.context() as patch:
        patch.setattr(coverage, "NEEDS", ("times",))
        with pytest.raises(UserError, match=r"coverage\.py: NEEDS must be a tuple of genres, words"):
            list_metrics.metric("coverage")
    with monkeypatch.context() as patch:
        patch.setattr(coverage, "PER_SESSION", True)
        with pytest.raises(UserError, match=r"coverage\.py: values: shape \(\), expected \(2,\)"):
            list_metrics.values("coverage", *by_hand())


@pytest.mark.parametrize(("length", "message"), [(1, "greater than or equal to 2"), (TOP + 1, f"equal to {TOP}")])
def test_only_kept_items_are_asked_for(length, message):
    with pytest.raises(ValueError, match=message):
        settings.Comparison(list_length=length)
    assert settings.Comparison(list_length=TOP).list_length == TOP


def test_the_driver_reads_the_metrics_without_importing_them():
    code = "import sys; from langptune import list_metrics; list_metrics.modules(); "
    code += "sys.exit(bool({'polars', 'scipy', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    script = ROOT / "scripts" / "list_metrics.py"
    files = {path.stem for path in provenance.code_files(script, loads=list_metrics.modules())}
    assert {"coverage", "gini", "calibration"} <= files
