"""Intervals, tests and tables: against simulation, numbers worked out by hand, and hostile text."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
import warnings
from typing import get_args

import numpy as np
import polars as pl
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from langptune import markup, metrics
from langptune.comparison import bootstrap, grid, pages, significance, statistics, tables
from langptune.comparison.grid import PublishedValue, RunEntry
from langptune.config.load import load
from langptune.config.methods import BaselineMethod, FusionMethod
from langptune.config.published import NO_ENTRY, Published, read_published
from langptune.errors import UserError, printable
from langptune.files import write_lines
from langptune.provenance import ROOT
from langptune.spreadsheet import cells, plain

METRICS = ["recall@10", "ndcg@10"]


# --- bootstrap ---------------------------------------------------------------------------------------------


def one(values: np.ndarray, resamples: int = 400, seed: int = 0, name: str = "m") -> np.ndarray:
    """Replicates of a single [S, R] table."""
    return bootstrap.replicates({name: values[:, :, None]}, resamples, seed)[name][:, 0]


def test_coverage_over_sessions_is_near_nominal():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(400):
        values = rng.exponential(1.0, size=(80, 1))  # skewed, true mean 1
        low, high = bootstrap.interval(one(values, seed=trial), 0.95)
        inside += bool(low <= 1.0 <= high)
    assert 0.90 <= inside / 400 <= 0.98


def test_coverage_over_sessions_and_seeds_is_near_nominal_where_sessions_alone_fail():
    rng = np.random.default_rng(2)
    both = sessions = 0
    for trial in range(300):
        values = rng.normal(0, 0.3, size=(1, 10)) + rng.normal(0, 1, size=(60, 1)) + rng.normal(0, 0.3, size=(60, 10))
        low, high = bootstrap.interval(one(values, seed=trial), 0.95)
        both += bool(low <= 0 <= high)
        low, high = bootstrap.interval(one(values[:, :1], seed=trial), 0.95)
        sessions += bool(low <= 0 <= high)
    assert 0.90 <= both / 300 <= 0.985
    assert sessions < both - 15, "one seed hides the spread between seeds"


def test_replicates_have_the_variance_that_theory_gives():
    values = np.random.default_rng(3).normal(size=(200, 1))
    draws = one(values, resamples=20_000)
    assert draws.std() == pytest.approx(values.std() / np.sqrt(200), rel=0.03)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.002)


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(4)
    base = rng.normal(size=(300, 1))
    apart = base + np.array([[-1.0, 0.0, 1.0]])
    alike = np.repeat(base, 3, axis=1)
    widths = [float(np.ptp(bootstrap.interval(one(values), 0.95))) for values in (apart, alike, base)]
    assert widths[0] > 3 * widths[1]
    assert widths[1] == pytest.approx(widths[2], rel=1e-9), "equal seeds must add nothing"


def test_replicates_are_reproducible_paired_and_independent_of_other_rows():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(50, 3, 2)), rng.normal(size=(50, 1, 2))
    alone = bootstrap.replicates({"a": a}, 200, 7)
    together = bootstrap.replicates({"b": b, "a": a, "shifted": b + 1.0}, 200, 7)
    assert np.array_equal(alone["a"], together["a"])
    assert together["shifted"] - together["b"] == pytest.approx(np.ones((200, 2)), abs=1e-12), "same sessions"
    assert not np.array_equal(bootstrap.replicates({"a": a}, 200, 8)["a"], alone["a"])


def test_chunks_cover_all_resamples(monkeypatch):
    values = np.random.default_rng(6).normal(size=(30, 2))
    monkeypatch.setattr(bootstrap, "CHUNK", 30 * 7)
    draws = one(values, resamples=101)
    assert draws.shape == (101,)
    assert np.isfinite(draws).all()
    assert draws.std() == pytest.approx(np.sqrt(values.mean(1).var() / 30 + values.mean(0).var() / 2), rel=0.4)


# --- tests -------------------------------------------------------------------------------------------------


def test_sign_flip_is_exact_for_few_differing_sessions():
    assert significance.sign_flip(np.array([1.0] * 4 + [0.0] * 296)) == 2 / 16
    assert significance.sign_flip(np.array([1.0, 2.0, -0.5])) == 4 / 8  # |sums|: 3.5 2.5 1.5 .5, each twice
    assert significance.sign_flip(np.zeros(9)) == 1.0


def test_sign_flip_counts_equal_sums_as_equal():
    # thirds do not add up exactly; every pattern's absolute sum must be compared with a tolerance
    values = np.array([1 / 3, 1 / 3, 1 / 3, 0.1, 0.2, 0.7])
    patterns = np.array(list(itertools.product([-1, 1], repeat=6)))
    sums = np.abs(patterns @ values).round(9)
    assert significance.sign_flip(values) == pytest.approx((sums >= round(values.sum(), 9)).mean())


def test_sign_flip_agrees_with_scipy_and_with_its_normal_limit(monkeypatch):
    values = np.random.default_rng(8).normal(0.15, 1, size=150)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    ).pvalue
    ours = significance.sign_flip(values)
    assert ours == pytest.approx(theirs, abs=0.012)
    assert significance.sign_flip(values, seed=0) == ours
    monkeypatch.setattr(significance, "NORMAL_FROM", 10)
    assert significance.sign_flip(values) == pytest.approx(ours, abs=0.015)


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(9)
    p = [significance.sign_flip(rng.choice([-1, 0, 1], p=[0.05, 0.9, 0.05], size=300), seed) for seed in range(200)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.085


def test_small_samples_have_the_p_of_scipy():
    """With ties and zeros, where SciPy ranks each of all sign patterns anew, and without."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 9, 13, 14, 40):
        for values in (rng.choice([0.0, 0.1, 0.2, -0.1, 1 / 3], size), rng.normal(size=size)):
            values[0] = 0.1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert significance.wilcoxon(values) == stats.wilcoxon(values).pvalue


def test_holm_is_that_of_statsmodels():
    p = [0.5, 0.01, 0.9, 0.01, 0.04, 1.0, 0.0]
    assert significance.holm(p) == multipletests(p, method="holm")[1].tolist()
    assert np.isnan(significance.holm([float("nan")])).all() and significance.holm([]) == []


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 -> x4 x3 x2 x1 = .04 .06 .06 .04, then made monotone
    assert significance.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert significance.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    with_gap = significance.holm([0.01, float("nan"), 0.04])
    assert with_gap[0] == pytest.approx(0.02)
    assert np.isnan(with_gap[1])
    assert with_gap[2] == pytest.approx(0.04)


def test_paired_effects_by_hand():
    found = significance.paired(np.array([1.0, 0.5, 0.0, 0.3]), np.array([0.0, 0.5, 0.5, 0.2]))
    assert (found.n, found.wins, found.ties, found.losses) == (4, 2, 1, 1)
    assert found.difference == pytest.approx(0.15)
    assert found.d_z == pytest.approx(0.15 / np.std([1.0, 0.0, -0.5, 0.1], ddof=1))
    assert found.p_ttest == pytest.approx(stats.ttest_rel([1.0, 0.5, 0.0, 0.3], [0.0, 0.5, 0.5, 0.2]).pvalue)


def test_rounding_dust_is_a_tie():
    found = significance.paired(np.array([0.1 + 0.2]), np.array([0.3]))
    assert (found.wins, found.ties, found.losses) == (0, 1, 0)
    assert (found.p_permutation, found.p_ttest, found.p_wilcoxon) == (1.0, 1.0, 1.0)


# --- grid and tables ---------------------------------------------------------------------------------------


def write(folder, name, ranks, sessions=None):
    path = folder / f"{name}.parquet"
    sessions = np.arange(len(ranks)) if sessions is None else np.asarray(sessions)
    pl.DataFrame(
        {
            "session": sessions.astype(np.int32),
            "user_id": [str(s) for s in sessions],
            "rank": np.asarray(ranks, dtype=np.int32),
            **{m: metrics.from_ranks(m, np.asarray(ranks)) for m in METRICS},
        }
    ).write_parquet(path)
    return str(path)


def entry(path, method, models="m", seed=0, **more):
    fields = {"title": method.upper(), "group": "baselines", "note": "", "trials": 0, **more}
    return RunEntry(method=method, models=models, seed=seed, metrics_path=path, **fields)


@pytest.fixture
def runs(tmp_path):
    """A reference with two models, a good method with three seeds, a bound, and a method that has not run."""
    rng = np.random.default_rng(11)
    weak = rng.integers(1, 200, size=80)
    entries = [
        entry(write(tmp_path, "ref1", weak), "ref", "enc+d1", group="profiles", title="Ref_1 & <b>50%</b>|"),
        entry(write(tmp_path, "ref2", rng.permutation(weak)), "ref", "enc+d2", group="profiles", title="Ref"),
        *(
            entry(
                write(tmp_path, f"good{s}", np.maximum(1, rng.integers(1, 25, size=80))),
                "good", seed=s, trials=6, note="tuned_on {val}",
            )
            for s in range(3)
        ),
        entry(write(tmp_path, "oracle", np.ones(80, int)), "oracle", group="bounds"),
    ]  # fmt: skip
    absent = entry(str(tmp_path / "absent.parquet"), "absent", title="Absent")
    return entries, absent


def made(entries, allow_missing=False, published=()):
    found = grid.collect(entries, METRICS, allow_missing)
    return statistics.compare(found, "ref", "ndcg@10", resamples=300, seed=1, published=published)


def test_groups_are_those_of_the_registry():
    *most, bounds = get_args(BaselineMethod.model_fields["group"].annotation)
    assert (*most, *get_args(FusionMethod.model_fields["group"].annotation)) == grid.GROUPS and bounds == "bounds"


def test_lines_are_ordered_and_numbers_are_those_of_the_files(runs):
    found = made(runs[0])
    assert [line.row.method for line in found.lines] == ["ref", "ref", "good", "oracle"]
    assert [line.row.group for line in found.lines] == ["profiles", "profiles", "baselines", "bounds"]
    good = found.lines[2]
    files = [pl.read_parquet(run.metrics_path)["ndcg@10"].mean() for run in runs[0][2:5]]
    assert good.means[1] == pytest.approx(np.mean(files), abs=1e-12)
    assert good.low[1] < good.means[1] < good.high[1]
    assert good.reference.models == "enc+d1"
    assert all(line.against == () and line.reference is line.row for line in found.lines if line.row.method == "ref")
    assert found.mark(good, 1) == 1
    assert good.against[1].p_holm == pytest.approx(min(1, 2 * good.against[1].effect.p_permutation), rel=0.01)


@pytest.mark.parametrize(
    ("models", "against"),
    [
        ("e2+d2", "e2+d2"),
        ("e1+d2", "e1+d2"),
        ("d2", "e1+d2"),
        ("d1", "e1+d1"),
        ("e2", "e2+d1"),
        ("EASE", "e1+d1"),
        ("e3+d2", "e1+d2"),
    ],
)
def test_the_reference_of_a_row_is_that_of_its_models(models, against):
    assert grid.own_reference(models, ["e1+d1", "e1+d2", "e2+d1", "e2+d2"]) == against
    assert grid.own_reference(models, ["pop"]) == "pop"


def test_the_reference_may_be_a_text_method():
    assert grid.own_reference("e1+d2", ["d1", "d2"]) == "d2"
    assert grid.own_reference("EASE", ["d1", "d2"]) == "d1"


def test_every_row_is_tested_against_the_reference_of_its_own_models(tmp_path):
    """The second encoder is better from the start: its trained row gains nothing over its own zero-shot row."""
    rng = np.random.default_rng(2)
    weak, strong = rng.integers(40, 200, size=60), rng.integers(1, 9, size=60)
    ranks = {
        ("ref", "e1+d"): weak, ("ref", "e2+d"): strong, ("cl", "e1+d"): strong, ("cl", "e2+d"): weak,
        ("text", "d"): strong, ("pop", "pop"): strong,
    }  # fmt: skip
    entries = [entry(write(tmp_path, "-".join(key), values), *key) for key, values in ranks.items()]
    found = made(entries)
    lines = {(line.row.method, line.row.models): line for line in found.lines}
    marks = {key: found.mark(line, 1) for key, line in lines.items()}
    assert marks == {
        ("ref", "e1+d"): 0, ("ref", "e2+d"): 0, ("cl", "e1+d"): 1, ("cl", "e2+d"): -1, ("text", "d"): 1,
        ("pop", "pop"): 1,
    }  # fmt: skip
    by_key = {(row["method"], row["models"]): row for row in csv.DictReader(io.StringIO(tables.comparisons_csv(found)))}
    assert set(by_key) == {("cl", "e1+d"), ("cl", "e2+d"), ("text", "d"), ("pop", "pop")}
    assert by_key["cl", "e2+d"]["reference_models"] == "e2+d"
    assert by_key["pop", "pop"]["reference_models"] == by_key["text", "d"]["reference_models"] == "e1+d"
    own = lines["ref", "e2+d"].means[list(METRICS).index(by_key["cl", "e2+d"]["metric"])]
    assert float(by_key["cl", "e2+d"]["reference_mean"]) == pytest.approx(own)
    gains = statistics.gains(found).filter(pl.col("models") == "e2+d")
    assert gains.filter(pl.col("method") == "ref")["difference"].abs().max() == 0
    assert gains.filter(pl.col("method") == "cl")["rank_gain"].max() < 0
    page = pages.to_markdown(found, "t", [])
    assert page.count("| reference |") == 2 and "with the same models" in page
    assert "Holm-corrected over 4 comparisons" in page


def test_a_missing_reference_takes_the_tests_of_its_own_rows_alone(tmp_path):
    rng = np.random.default_rng(3)
    paths = {name: write(tmp_path, name, rng.integers(1, 99, size=40)) for name in ("a", "b", "c")}
    entries = [
        entry(paths["a"], "ref", "e1+d"), entry(str(tmp_path / "none"), "ref", "e2+d"), entry(paths["b"], "cl", "e1+d"),
        entry(paths["c"], "cl", "e2+d"),
    ]  # fmt: skip
    found = made(entries, allow_missing=True)
    assert {line.row.key for line in found.lines if line.against} == {"cl/e1+d"}
    assert "No tests of the rows whose reference is missing: REF (e2+d)." in pages.explanations(found)
    lost = statistics.gains(found).filter(pl.col("difference").is_null())
    assert set(lost.select("method", "models").iter_rows()) == {("cl", "e2+d")}


def test_a_worse_method_is_marked_as_worse(tmp_path):
    entries = [
        entry(write(tmp_path, "ref", np.ones(40, int)), "ref"),
        entry(write(tmp_path, "bad", np.full(40, 99)), "bad"),
    ]
    found = made(entries)
    bad = next(line for line in found.lines if line.row.method == "bad")
    assert found.mark(bad, 0) == -1
    assert "0.0000 [0.0000, 0.0000] ↓" in pages.to_markdown(found, "t", [])


def test_a_complete_comparison_fails_on_a_missing_run(runs):
    entries, absent = runs
    with pytest.raises(UserError, match=r"1 of 7 runs have no metrics, the first is .*absent\.parquet"):
        made([*entries, absent])


def test_a_partial_comparison_marks_what_is_missing_and_invents_nothing(runs):
    entries, absent = runs
    also = entry(absent.metrics_path, "good", seed=3, trials=6)
    found = made([*entries, also, absent], allow_missing=True)
    text = pages.to_markdown(found, "t", [])
    row = next(line for line in text.splitlines() if line.startswith("| Absent"))
    assert row.count("missing") == len(METRICS)
    assert not any(mark.isdigit() for mark in row.replace("0 of 1", ""))
    assert "| 3 of 4 |" in text
    assert "2 of 8 runs are missing" in text
    wide = list(csv.DictReader(io.StringIO(tables.wide_csv(found))))
    cells = next(line for line in wide if line["method"] == "absent")
    assert cells["status"] == "missing"
    assert all(cells[key] == "" for key in cells if "@" in key or key in ("sessions", "p_holm", "difference"))
    assert next(line for line in wide if line["method"] == "good")["status"] == "partial"
    assert "absent" not in tables.comparisons_csv(found)
    assert set(statistics.gains(found)["method"]) == {"ref", "good", "oracle"}


def test_without_the_reference_nothing_is_tested(runs):
    entries, absent = runs
    gone = entry(absent.metrics_path, "ref", "enc+d0")
    found = made([gone, *entries[2:]], allow_missing=True)
    assert all(line.against == () for line in found.lines)
    assert "No tests: the reference, REF (enc+d0), is missing." in pages.explanations(found)
    assert statistics.gains(found)["difference"].is_null().all()


def test_runs_over_other_sessions_are_refused(tmp_path):
    entries = [
        entry(write(tmp_path, "a", [1, 2, 3]), "ref"),
        entry(write(tmp_path, "b", [1, 2, 3], sessions=[0, 1, 5]), "b"),
    ]
    with pytest.raises(UserError, match=r"not over the same sessions: 2 are in one of them only \(first: session 2\)"):
        made(entries)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda frame: frame.drop("ndcg@10"), "column 'ndcg@10' is missing"),
        (lambda frame: frame.with_columns(pl.lit(float("nan")).alias("ndcg@10")), "empty or non-finite"),
        (lambda frame: pl.concat([frame, frame]), "duplicate sessions"),
        (lambda frame: frame.head(0), "contains no session"),
    ],
)
def test_broken_files_are_refused_even_where_missing_ones_are_not(tmp_path, break_it, message):
    path = write(tmp_path, "a", [1, 2, 3])
    break_it(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(UserError, match=message):
        made([entry(path, "ref")], allow_missing=True)


def test_unknown_reference_and_metric_are_refused(runs):
    found = grid.collect(runs[0], METRICS)
    with pytest.raises(UserError, match="did you mean 'good'"):
        statistics.compare(found, "goot", "ndcg@10")
    with pytest.raises(UserError, match="metric 'mrr' is not among"):
        statistics.compare(found, "ref", "mrr")


def test_gains_by_hand(tmp_path):
    entries = [
        entry(write(tmp_path, "r", [8, 1, 100]), "ref"),
        entry(write(tmp_path, "a", [2, 1, 200]), "a", seed=0),
        entry(write(tmp_path, "b", [8, 4, 200]), "a", seed=1),
    ]
    frame = statistics.gains(made(entries)).filter(pl.col("method") == "a").sort("session")
    assert frame["rank_gain"].to_list() == pytest.approx([1.0, -1.0, -1.0])
    ndcg = [(1 / np.log2(3) + 1 / np.log2(9)) / 2, (1 + 1 / np.log2(5)) / 2, 0]
    assert frame["value"].to_list() == pytest.approx(ndcg)
    assert frame["difference"].to_list() == pytest.approx([ndcg[0] - 1 / np.log2(9), ndcg[1] - 1, 0])


def test_hostile_text_is_printed_verbatim():
    text = "a_b & 50% | <b>x</b> $1 #2 {c} ~ ^ \\ *y* [z](u) `q`\nnext"
    assert markup.latex("a_b & 50% | <b>") == r"a\_b \& 50\% \textbar{} \textless{}b\textgreater{}"
    assert markup.markdown("a_b & 50% | <b>") == r"a\_b &amp; 50% \| &lt;b&gt;"
    assert markup.latex("\\{~^") == r"\textbackslash{}\{\textasciitilde{}\textasciicircum{}"
    for escape in (markup.latex, markup.markdown):
        assert "\n" not in escape(text)
        assert "<" not in escape(text)
    assert r"\[z\](u)" in markup.markdown(text)
    hostile = "id\x1b]0;owned\x07 \x9b31m\u202egnp.exe \ud800\rover"
    assert printable(markup.markdown(hostile)) == markup.markdown(hostile)
    assert markup.markdown(hostile) == r"id\\x1b\]0;owned\\x07 \\x9b31m\\u202egnp.exe \\ud800 over"
    assert markup.latex(hostile).startswith(r"id\textbackslash{}x1b]0;owned\textbackslash{}x07 ")


def test_tables_escape_titles_and_keep_their_shape(runs):
    found = made(runs[0])
    md = pages.to_markdown(found, "Data_set <i>", ["50% of users & more"])
    assert r"Ref\_1 &amp; &lt;b&gt;50%&lt;/b&gt;\|" in md
    assert "<i>" not in md
    body = [line.replace(r"\|", "") for line in md.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in body} == {5 + len(METRICS) + 2}
    assert r"<sup>a</sup> tuned\_on {val}" in md

    page = pages.to_html(md, "<D&D>")
    assert "<title>&lt;D&amp;D&gt;</title>" in page and "http" not in page
    assert "<b>50%" not in page and "&lt;b&gt;50%" in page and "<sup>a</sup>" in page
    assert page.count("<tr>") == len([line for line in md.splitlines() if line.startswith("|")]) - 1

    tex = pages.to_latex(found, "Data_set", ["50% of users & more"], "ml_100k")
    assert r"Ref\_1 \& \textless{}b\textgreater{}50\%\textless{}/b\textgreater{}\textbar{}" in tex
    assert r"\caption{Data\_set. 50\% of users \& more}" in tex
    assert r"\label{tab:ml-100k}" in tex
    assert r"tuned\_on \{val\}" in tex
    assert tex.count("{") == tex.count("}")
    rows = [line for line in tex.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {5 + len(METRICS)}
    assert all(ord(mark) < 128 for mark in tex), "plain LaTeX knows no arrows"


def test_titles_that_begin_like_markup_or_a_formula(tmp_path):
    """Behind LaTeX's line break ``[`` and ``*`` are an argument; a spreadsheet computes what begins with ``=``."""
    titles = [
        "[0.5pt] bracket",
        "*star",
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(A1)",
        "'=1",
        "\t=1+1",
        "-1.5",
        "plain",
    ]
    entries = [
        entry(write(tmp_path, str(at), [at + 1, 2, 200]), f"m{at}").model_copy(update={"title": title})
        for at, title in enumerate(titles)
    ]
    found = statistics.compare(grid.collect(entries, METRICS), "m0", "ndcg@10", resamples=100)
    lines = pages.to_latex(found, "D", [], "d").splitlines()
    assert not [line for line in lines if line.startswith(("[", "*"))]
    assert [line for line in lines if line.startswith("{}[0.5pt]")] and [
        line for line in lines if line.startswith("{}*")
    ]
    for text in (tables.wide_csv(found), tables.long_csv(found)):
        rows = list(csv.DictReader(io.StringIO(text)))
        cells = {row["method"]: row["title"] for row in rows}
        assert [cells[f"m{at}"] for at in range(10)] == [
            *("[0.5pt] bracket", "*star", "'=1+1", "'+cmd|' /C calc'!A0", "'-2+3", "'@SUM(A1)"),
            *("''=1", "'\t=1+1", "-1.5", "plain"),
        ]
        assert [plain(cells[f"m{at}"]) for at in range(10)] == titles
        for row in rows:
            assert all(float(row[key]) <= 1 for key in row if key in ("mean", "low", "high", *METRICS) and row[key])


def test_numbers_of_a_table_stay_numbers():
    made = cells(pl.DataFrame({"text": ["=1", None, "a"], "number": [-1.5, None, 2.0], "whole": [-3, 4, None]}))
    assert made["text"].to_list() == ["'=1", None, "a"]
    assert made.select("number", "whole").write_csv() == "number,whole\n-1.5,-3\n,4\n2.0,\n"


# --- lower is better ---------------------------------------------------------------------------------------


def test_if_lower_is_better_everything_is_inverted(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "METRICS", ["ndcg@10", "log-rank"])
    rng = np.random.default_rng(5)
    ranks = {"ref": rng.integers(40, 60, 60), "good": rng.integers(1, 20, 60), "bad": rng.integers(200, 300, 60)}
    entries = [entry(write(tmp_path, name, values), name) for name, values in ranks.items()]
    found = statistics.compare(grid.collect(entries, METRICS), "ref", "log-rank", resamples=200)
    assert [line.row.method for line in found.lines] == ["good", "ref", "bad"]
    good, _, bad = found.lines
    assert (found.mark(good, 1), found.mark(bad, 1)) == (1, -1)
    effect = good.against[1].effect
    expected = np.log(ranks["good"]).mean() - np.log(ranks["ref"]).mean()
    assert effect.difference == pytest.approx(expected) and effect.d_z < 0
    assert (effect.wins, effect.losses) == (60, 0) and bad.against[1].effect.losses == 60
    page = pages.to_markdown(found, "t", [])
    assert "Log rank (lower is better)" in page and "a lower value is better" in page
    row = next(line for line in page.splitlines() if line.startswith("| GOOD"))
    assert f"**{good.means[1]:.4f}**" in row and row.count("↑") == 2
    assert "lower" not in pages.to_markdown(
        statistics.compare(grid.collect(entries, ["ndcg@10"]), "ref", "ndcg@10"), "", []
    )


# --- contrasts ---------------------------------------------------------------------------------------------


def pair(of, against, name="c", title="", beyond=()):
    return grid.ContrastEntry(name=name, title=title, of=of, against=against, beyond=list(beyond))


def test_a_difference_of_differences_by_hand(tmp_path):
    """Own less shuffled of one method beyond own less shuffled of another, sessions and seeds paired."""
    rng = np.random.default_rng(3)
    ranks = {}
    for seed in (0, 1):
        base = rng.integers(10, 60, 60)
        far = base + 40
        ranks |= {
            ("own", seed): np.maximum(1, base - 9),
            ("dealt", seed): far,
            ("cl", seed): base + 5,
            ("cd", seed): far,
        }
    entries = [
        entry(write(tmp_path, f"{name}{seed}", values), name, seed=seed) for (name, seed), values in ranks.items()
    ]
    found = statistics.compare(
        grid.collect(entries, METRICS), "cl", "ndcg@10", 300,
        contrasts=[pair("own", "dealt", "a"), pair("own", "dealt", "b", "Does it grow?", ["cl", "cd"])],
    )  # fmt: skip
    plain, one = found.contrasts
    m = METRICS.index("ndcg@10")
    value = {key: metrics.from_ranks("ndcg@10", values) for key, values in ranks.items()}
    each = [(value["own", s] - value["dealt", s]) - (value["cl", s] - value["cd", s]) for s in (0, 1)]
    cell = one.tests[m]
    assert cell.effect.difference == pytest.approx(np.mean(each))
    assert cell.effect.p_permutation == significance.sign_flip(np.mean(each, axis=0))
    assert cell.low < cell.effect.difference < cell.high and (one.seeds, one.expected) == (2, 2)
    assert one.means[m] == pytest.approx(plain.tests[m].effect.difference), "the first side is the plain contrast"
    rows = [row for row in csv.DictReader(io.StringIO(tables.contrasts_csv(found))) if row["metric"] == "ndcg@10"]
    assert [(row["beyond"], row["beyond_against"]) for row in rows] == [("", ""), ("cl", "cd")]
    page = pages.to_markdown(found, "t", [])
    assert "OWN against DEALT, beyond CL against CD" in page and "less that of the other two" in page
    lost = statistics.compare(
        grid.collect([*entries[:-1], entry(str(tmp_path / "gone"), "cd", seed=1)], METRICS, allow_missing=True),
        "cl", "ndcg@10", 300, contrasts=[pair("own", "dealt", "b", "", ["cl", "cd"])],
    )  # fmt: skip
    assert (lost.contrasts[0].seeds, lost.contrasts[0].expected) == (1, 2), "seeds that all four have"


def test_a_contrast_pairs_sessions_and_seeds(tmp_path):
    """Both methods have the same seed effect, which pairing by seed takes out of the interval."""
    rng = np.random.default_rng(7)
    base, entries = rng.integers(20, 60, 80), []
    for seed, shift in enumerate((0, 100, 200)):
        noisy = base + shift + rng.integers(0, 3, 80)
        entries.append(entry(write(tmp_path, f"a{seed}", np.maximum(1, noisy - 9)), "a", seed=seed))
        entries.append(entry(write(tmp_path, f"b{seed}", noisy), "b", seed=seed))
    names = ["log-rank", "mrr"]
    for one in entries:
        frame = pl.read_parquet(one.metrics_path)
        more = [pl.Series(name, metrics.from_ranks(name, frame["rank"].to_numpy())) for name in names]
        frame.with_columns(more).write_parquet(one.metrics_path)
    made_of = lambda contrasts: statistics.compare(  # noqa: E731
        grid.collect(entries, names), "b", "mrr", 400, contrasts=contrasts
    )
    found = made_of([pair("a", "b")])
    (one,) = found.contrasts
    (line,) = [line for line in found.lines if line.row.method == "a"]
    assert (one.seeds, one.expected) == (3, 3)
    assert one.tests[0].effect == line.against[0].effect, "the same sessions, the same mean over seeds"
    width = lambda cell: cell.high - cell.low  # noqa: E731
    assert width(one.tests[0]) < width(line.against[0]) / 2, "seeds are drawn for both sides at once"
    assert (found.mark(one, 0), found.mark(one, 1)) == (1, 1) and one.tests[0].effect.difference < 0
    (turned,) = made_of([pair("b", "a")]).contrasts
    assert turned.tests[0].effect.difference == pytest.approx(-one.tests[0].effect.difference)
    assert turned.tests[0].effect.losses == one.tests[0].effect.wins == 80


def test_one_seed_is_paired_with_every_seed_and_missing_seeds_are_left_out(runs):
    entries, absent = runs
    gone = entry(absent.metrics_path, "good", seed=3)
    second = [entry(run.metrics_path, "other", seed=seed) for seed, run in zip((1, 2, 4), entries[2:5], strict=True)]
    entries = [*entries, gone, *second, absent]
    found = statistics.compare(
        grid.collect(entries, METRICS, allow_missing=True), "ref", "ndcg@10", 200,
        contrasts=[
            pair("good", "oracle", "a", "How far?"), pair("good", "other", "b"), pair("good", "absent", "c"),
        ],
    )  # fmt: skip
    by_name = {one.name: one for one in found.contrasts}
    assert [(one.seeds, one.expected) for one in found.contrasts] == [(3, 4), (2, 2), (0, 4)]
    assert by_name["a"].means[1] == pytest.approx(found.lines[2].means[1]) and by_name["a"].against_means[1] == 1
    values = [pl.read_parquet(run.metrics_path)["ndcg@10"].mean() for run in entries[2:5]]
    assert by_name["b"].tests[1].effect.difference == pytest.approx((values[1] + values[2] - values[0] - values[1]) / 2)
    assert by_name["c"].tests == ()
    # One family over what is tested, apart from that of the reference.
    p = [by_name[name].tests[1].effect.p_permutation for name in "ab"]
    assert [by_name[name].tests[1].p_holm for name in "ab"] == significance.holm(p)
    written = list(csv.DictReader(io.StringIO(tables.contrasts_csv(found))))
    assert [row["status"] for row in written] == ["partial"] * 2 + ["complete"] * 2 + ["missing"] * 2
    assert all(row["difference"] == row["sessions"] == row["p_permutation_holm"] == "" for row in written[4:])
    page = pages.to_markdown(found, "t", []).partition("**Contrasts**")[2]
    assert "| How far?: GOOD against ORACLE | m | 3 of 4 |" in page
    assert "Holm-corrected over 2 contrasts" in page and "1 of 3 contrasts lack a side" in page


def test_contrasts_are_of_the_same_models_and_a_baseline_meets_them_all(tmp_path):
    keys = [
        ("ref", "e1+d1"),
        ("ref", "e1+d2"),
        ("cl", "e1+d1"),
        ("cl", "e1+d2"),
        ("text", "d1"),
        ("text", "d2"),
        ("pop", "pop"),
    ]
    path = write(tmp_path, "one", np.arange(1, 31))
    rows = grid.collect([entry(path, *key) for key in keys], METRICS).rows
    models = lambda of, against: [(a.models, b.models) for a, b in grid.contrasted(rows, of, against)]  # noqa: E731
    assert models("cl", "ref") == [("e1+d1", "e1+d1"), ("e1+d2", "e1+d2")]
    assert models("cl", "text") == [("e1+d1", "d1"), ("e1+d2", "d2")]
    assert models("text", "cl") == [("d1", "e1+d1"), ("d2", "e1+d2")]
    assert models("cl", "pop") == [("e1+d1", "pop"), ("e1+d2", "pop")]
    assert models("pop", "cl") == [("pop", "e1+d1"), ("pop", "e1+d2")]
    with pytest.raises(UserError, match="method 'pob' is not among the compared methods; did you mean 'pop'"):
        models("cl", "pob")


def test_contrasts_stand_in_every_table_and_change_no_other_number(runs):
    plain = made(runs[0])
    found = grid.collect(runs[0], METRICS)
    results_with = statistics.compare(
        found, "ref", "ndcg@10", resamples=300, seed=1,
        contrasts=[pair("good", "ref", "best", "50% & <more>"), pair("ref", "oracle", "far")],
    )  # fmt: skip
    for text in (tables.wide_csv, tables.long_csv, tables.comparisons_csv):
        assert text(results_with) == text(plain)
    assert [one.of.models for one in results_with.contrasts] == ["m", "m", "enc+d1", "enc+d2"]
    before, _, after = pages.to_markdown(results_with, "D", []).partition("\n**Contrasts**\n")
    assert before == pages.to_markdown(plain, "D", [])
    body = [line.replace(r"\|", "") for line in after.splitlines() if line.startswith("|")]
    assert len(body) == 2 + 4 and {line.count("|") for line in body} == {3 + len(METRICS) + 2}
    assert "50% &amp; &lt;more&gt;: GOOD against" in after and "| m / enc+d1 |" in after
    page = pages.to_html(pages.to_markdown(results_with, "D", []), "D")
    assert page.count("<table>") == 2
    tex = pages.to_latex(results_with, "D", [], "d")
    assert r"\label{tab:d}" in tex and r"\label{tab:d-contrasts}" in tex
    assert tex.count("{") == tex.count("}") and all(ord(mark) < 128 for mark in tex)
    second = tex.partition(r"\label{tab:d-contrasts}")[2].splitlines()
    rows = [line for line in second if line.endswith(r" \\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {3 + len(METRICS)}


@pytest.mark.parametrize(
    ("contrasts", "message"),
    [
        ({"a": ["langptune-cl", "popp"]}, r"'a': against: 'popp' is not among this run's methods; did you mean 'pop'"),
        ({"a": {"of": "langptun", "against": "pop"}}, r"'a': of: 'langptun' is not among .*; did you mean 'langptune"),
        ({"a": ["pop", "pop"]}, r"'a': 'pop' is on both sides"),
        ({"a": ["pop", "ease"], "b": ["ease", "pop"]}, r"'b': the same methods as 'a'"),
        ({"a": ["pop"]}, r"contrasts.*a.*two methods, found 1"),
        ({"a": {"of": "pop", "against": "ease", "beyond": ["pop"]}}, r"takes two methods, found 1"),
        ({"a": {"of": "pop", "against": "ease", "beyond": ["pop", "eas"]}}, r"'a': beyond: 'eas' is not among"),
        ({"a": {"of": "pop", "against": "ease", "beyond": ["ease", "pop"]}}, r"beyond: the same two methods"),
        ({"a": {"of": "pop", "against": "ease", "beyond": ["pop", "pop"]}}, r"'a': 'pop' is on both sides"),
        ({"a": {"of": "pop", "again": "ease"}}, r"again"),
    ],
)
def test_mistakes_about_contrasts_are_reported_before_any_job(contrasts, message):
    config = {
        "datasets": ["ml-100k"], "encoders": ["smollm2-135m"], "decoders": ["minilm-l6"],
        "methods": ["langptune-cl", "pop", "ease"], "comparison": {"reference": "pop", "contrasts": contrasts},
    }  # fmt: skip
    with pytest.raises(UserError, match=message) as caught:
        load(config, ROOT, "my.yaml")
    assert "\n" not in str(caught.value)


# --- published numbers -------------------------------------------------------------------------------------

SHIPPED = ROOT / "results" / "reference" / "published.csv"
HEAD = ",".join(Published.model_fields)


def published_config(path, **more):
    """A config whose comparison asks for the published numbers of a file."""
    return {
        "datasets": ["ml-100k"],
        "encoders": ["gemma-2b-it", "smollm2-135m"],
        "decoders": ["mxbai-embed-large-v1"],
        "methods": ["langptune-0", "history", "lightgcn", "ease"],
        "comparison": {"published": str(path), "metrics": ["ndcg@10", "ndcg@20", "mrr@20"], **more},
    }


def test_the_shipped_file_is_the_papers_table():
    known = load(published_config(SHIPPED), ROOT)
    rows = known.published
    main = {(p.method, p.encoder, p.metric): p.value for p in rows if not p.key}
    assert len(main) == 17 * 3 and len(rows) == 17 * 3 + 4 + 3 * 4
    assert main["langptune-paper", "llama-3-8b-instruct", "ndcg@20"] == 0.0494
    assert main["langptune-cl-paper", "gemma-2b-it", "recall@20"] == 0.0863
    assert main["history-cl-paper", "", "mrr@20"] == 0.0408
    assert {p.key: p.value_of_key for p in rows if p.value == 0.0319 and p.key} == {"max_tokens": "64"}
    assert all(p.dataset == "movies-tv" and p.source for p in rows)
    # A study's last point is the main table's number.
    assert {(p.method, p.value) for p in rows if p.value_of_key in ("1", "512")} <= {
        (p.method, p.value) for p in rows if not p.key and p.metric == "ndcg@20"
    }
    # No note may go on saying that there is no entry once there is one.
    assert not {p.method for p in rows if p.note.startswith(NO_ENTRY)} & set(known.methods)


def test_published_numbers_are_matched_by_dataset_method_models_and_metric():
    workflow = load(published_config(SHIPPED, published_as={"ml-100k": "movies-tv"}), ROOT)
    found = {cell: number.value for cell, number in workflow.published_of("ml-100k").items()}
    assert found == {
        ("langptune-0", "gemma-2b-it+mxbai-embed-large-v1", "ndcg@20"): 0.0289,
        ("langptune-0", "gemma-2b-it+mxbai-embed-large-v1", "mrr@20"): 0.0189,
        ("history", "mxbai-embed-large-v1", "ndcg@20"): 0.0372,
        ("history", "mxbai-embed-large-v1", "mrr@20"): 0.0261,
        ("lightgcn", "LightGCN", "ndcg@20"): 0.0525,
        ("lightgcn", "LightGCN", "mrr@20"): 0.0387,
    }
    assert load(published_config(SHIPPED), ROOT).published_of("ml-100k") == {}, "of another dataset"


GOOD = "d,,,ease,,,ndcg@20,0.5,paper,"
BAD = {
    "no number": (f"{HEAD}\nd,,,ease,,,ndcg@20,many,paper,", r"p\.csv: line 2: column 'value': 'many' is not a number"),
    "above one": (f"{HEAD}\n{GOOD}\nd,,,pop,,,ndcg@20,5.2,paper,", r"line 3: key 'value': .*\(found 5\.2\)"),
    "not finite": (f"{HEAD}\nd,,,ease,,,ndcg@20,nan,paper,", r"line 2: key 'value': .*\(found nan\)"),
    "unknown method": (
        f"{HEAD}\nd,,,lightgnc,,,ndcg@20,0.5,paper,",
        r"unknown method 'lightgnc'; did you mean 'lightgcn'",
    ),
    "unknown encoder": (
        f"{HEAD}\nd,,,ease,gemma-2b,,ndcg@20,0.5,paper,",
        r"encoder 'gemma-2b'; did you mean 'gemma-2b-it'",
    ),
    "decoder as encoder": (f"{HEAD}\nd,,,ease,minilm-l6,,ndcg@20,0.5,paper,", r"line 2: unknown encoder 'minilm-l6'"),
    "unknown metric": (f"{HEAD}\nd,,,ease,,,ngdc,0.5,paper,", r"line 2: column 'metric': unknown metric 'ngdc'"),
    "no source": (f"{HEAD}\nd,,,ease,,,ndcg@20,0.5,,", r"line 2: key 'source'"),
    "twice": (f"{HEAD}\n{GOOD}\n{GOOD}", r"line 3: the same number is in line 2; keep one"),
    "short row": (f"{HEAD}\nd,,,ease", r"line 2: not 10 cells"),
    "long row": (f"{HEAD}\n{GOOD},more", r"line 2: not 10 cells; quote a cell that holds a comma"),
    "column missing": (HEAD.replace(",source", ""), r"column 'source' is missing"),
    "column unknown": (HEAD.replace("encoder", "encodr"), r"unknown column 'encodr'; did you mean 'encoder'\?"),
    "empty": ("", r"column 'dataset' is missing; found none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_of_published_numbers_are_named(tmp_path, name):
    text, message = BAD[name]
    (tmp_path / "p.csv").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load(published_config(tmp_path / "p.csv"), ROOT)
    assert "\n" not in str(caught.value) and str(tmp_path / "p.csv") in str(caught.value)


def test_a_published_method_without_an_entry_says_so_in_its_note(tmp_path):
    (tmp_path / "p.csv").write_text(f"{HEAD}\nd,,,mcl,,,ndcg@20,0.5,paper,{NO_ENTRY}: MCL\n", encoding="utf-8")
    assert [row.method for row in read_published(tmp_path / "p.csv", ["ease"], [], [])] == ["mcl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"published": "none.csv"}, r"none\.csv: No such file or directory; comparison\.published names"),
        ({"published": "README.md"}, r"README\.md: unknown column"),
        ({"published": "results/reference/ml-100k-demo/means.png"}, r"means\.png: not a CSV file in UTF-8"),
        ({"published": None, "published_as": {"ml-100k": "x"}}, r"published_as needs comparison\.published"),
        (
            {"published_as": {"ml-10k": "movies-tv"}},
            r"'ml-10k' is not among this run's datasets; did you mean 'ml-100k'",
        ),
        ({"published_as": {"ml-100k": "movie-tv"}}, r"has no dataset 'movie-tv'; did you mean 'movies-tv'"),
    ],
)
def test_mistakes_about_published_numbers_are_named(change, message):
    config = published_config("results/reference/published.csv")
    config["comparison"] |= change
    with pytest.raises(UserError, match=message) as caught:
        load(config, ROOT, "my.yaml")
    assert "\n" not in str(caught.value)


def test_published_numbers_are_beside_ours_in_every_table(runs):
    entries, absent = runs
    numbers = [
        PublishedValue(method="good", models="m", metric="ndcg@10", value=0.1234),
        PublishedValue(method="absent", models="m", metric="ndcg@10", value=0.05),
    ]
    plain, found = made(entries), made([*entries, absent], allow_missing=True, published=numbers)
    md = pages.to_markdown(found, "D", [])
    body = [line.replace(r"\|", "") for line in md.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in body} == {5 + len(METRICS) + 1 + 2}
    assert "| Recall@10 | NDCG@10 | Published |" in md and "Published: one number" in md
    cells = {line.split("|")[1].split("<")[0].strip(): [c.strip() for c in line.split("|")] for line in body}
    assert cells["GOOD"][8] == "0.1234" and cells["ORACLE"][8] == ""
    assert cells["Absent"][7:9] == ["missing", "0.0500"], "a published number stands in its own column alone"
    tex = pages.to_latex(found, "D", [], "d")
    rows = [line for line in tex.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {5 + len(METRICS) + 1}
    assert "& 0.1234 &" in tex and rf"\multicolumn{{{5 + len(METRICS) + 2}}}" in tex
    wide = {line["method"]: line for line in csv.DictReader(io.StringIO(tables.wide_csv(found)))}
    assert wide["good"]["ndcg@10_published"] == "0.1234" and wide["oracle"]["ndcg@10_published"] == ""
    assert "recall@10_published" not in wide["good"]
    long = list(csv.DictReader(io.StringIO(tables.long_csv(found))))
    assert [line["published"] for line in long if line["method"] == "good"] == ["", "0.1234"]
    # Without published numbers nothing of it is seen, and with them no number of ours changes.
    for text in (pages.to_markdown(plain, "D", []), tables.wide_csv(plain), tables.long_csv(plain)):
        assert "ublished" not in text
    assert [line.against for line in made(entries, published=numbers[:1]).lines] == [
        line.against for line in plain.lines
    ]
    with pytest.raises(UserError, match="metric 'mrr' is not among"):
        made(entries, published=[PublishedValue(method="good", models="m", metric="mrr", value=0.1)])


def test_the_weight_of_popularity_is_in_every_table(runs, tmp_path):
    (tmp_path / "popularity.json").write_text('{"weight": 1.5}')
    weights = [{"weight": 0.0}, {"weight": 0}, *[{"weight_path": str(tmp_path / "popularity.json")}] * 2, {"weight": 2}]
    entries = [run.model_copy(update=weight) for run, weight in zip(runs[0], weights, strict=False)] + runs[0][5:]
    plain, found = made(runs[0]), made([*entries, runs[1]], allow_missing=True)
    md, tex = pages.to_markdown(found, "D", []), pages.to_latex(found, "D", [], "d")
    body = [line.replace(r"\|", "") for line in md.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in body} == {6 + len(METRICS) + 2}
    cells = {line.split("|")[1].split("<")[0].strip(): [c.strip() for c in line.split("|")] for line in body}
    assert cells["Method"][6] == "w" and "w: weight of log(1 + train count)" in md
    assert [cells[name][6] for name in ("Ref", "GOOD", "ORACLE", "Absent")] == ["0", "1.5, 1.5, 2", "", ""]
    rows = [line for line in tex.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {6 + len(METRICS)}
    assert rf"\multicolumn{{{6 + len(METRICS) + 1}}}" in tex
    for text in (tables.wide_csv(found), tables.long_csv(found)):
        weight = {line["method"]: line["weight"] for line in csv.DictReader(io.StringIO(text))}
        assert weight == {"ref": "0", "good": "1.5, 1.5, 2", "oracle": "", "absent": ""}
    for text in (pages.to_markdown(plain, "D", []), tables.wide_csv(plain), tables.long_csv(plain)):
        assert "weight" not in text
    (tmp_path / "popularity.json").write_text("{}")
    with pytest.raises(UserError, match=r"popularity\.json: no weight in it"):
        made(entries)


def test_the_script_gives_the_same_bytes_twice(runs, tmp_path):
    outs = ("table_csv", "table_long", "table_md", "table_html", "table_tex", "comparisons", "contrasts", "gains")
    seen = []
    for turn in "ab":
        spec = {
            "dataset": "d", "title": "D", "facts": ["fact"], "reference": "ref", "metrics": METRICS,
            "bootstrap": 200, "runs": [run.model_dump() for run in runs[0]],
            "contrasts": [{"name": "a", "of": "good", "against": "oracle"}],
            **{f"{out}_out": str(tmp_path / turn / out) for out in outs},
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "compare.py"), "--spec", json.dumps(spec)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen.append([(tmp_path / turn / out).read_bytes() for out in outs])
    assert seen[0] == seen[1]
    manifest = json.loads((tmp_path / "a" / "table_csv.manifest.json").read_text())
    assert set(manifest["notes"]["runs"]) == {run.metrics_path for run in runs[0]}


def test_a_study_of_a_recipe_is_a_table_and_a_panel_for_each_value(tmp_path):
    rng = np.random.default_rng(0)
    runs = []
    cells = [("", {}), ("a", {"variant": "a", "reward": "ndcg", "algorithm": "rebel"})]
    cells += [("b", {"variant": "b", "reward": "mrr", "algorithm": "rebel"})]
    cells += [("c", {"variant": "a", "reward": "ndcg", "algorithm": "rloo"})]
    for name, setting in cells:
        for seed in (0, 1) if name else (0,):
            path = tmp_path / f"{name or 'plain'}-{seed}.parquet"
            values = rng.random(20) * (2 if name == "b" else 1)
            ranks = rng.integers(1, 9, 20).astype("int32")
            pl.DataFrame(
                {"session": pl.Series(range(20), dtype=pl.Int32), "rank": ranks, "ndcg@10": values}
            ).write_parquet(path)
            rows = [{"batch": 0, "val_ndcg": 0.1}] + [{"batch": b, "tokens": 10.0 + seed} for b in (1, 2)]
            rows[-1] |= {"collapsed": "entropy"} if (name, seed) == ("b", 1) else {}
            write_lines(tmp_path / f"{name}-{seed}.jsonl", rows)
            curves = [{"path": str(tmp_path / f"{name}-{seed}.jsonl"), "profiles": 64}] if name else []
            runs.append(
                {
                    "curves": curves,
                    "method": f"m.{name}" if name else "plain",
                    "models": "e+d",
                    "seed": seed,
                    "title": name,
                    "group": "profiles",
                    "metrics_path": str(path),
                    "of": "m" if name else "plain",
                    "label": "M" if name else "Plain",
                    "setting": setting,
                }
            )
    out = [str(tmp_path / f"study.{end}") for end in ("png", "pdf")]
    spec = {"title": "R", "key": "recipe", "runs": runs, "bootstrap": 200, "figure_out": out}
    spec["table_out"] = str(tmp_path / "s.csv")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "study.py"), "--spec", json.dumps(spec)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(tmp_path / "s.csv").with_columns(pl.col(pl.String).fill_null(""))
    assert table.select("variant", "reward", "algorithm", "seeds").rows() == [
        ("", "", "", 1),
        ("a", "ndcg", "rebel", 2),
        ("b", "mrr", "rebel", 2),
        ("a", "ndcg", "rloo", 2),
    ]
    assert table.select("tokens", "collapsed").rows() == [(None, None), (1344, 0), (1344, 1), (1344, 0)]
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    assert (tmp_path / "study.png").stat().st_size > 5000
