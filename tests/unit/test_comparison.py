"""The tables of a comparison: numbers computed by hand, missing and broken files, and hostile text."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from typing import get_args

import numpy as np
import polars as pl
import pytest

from langptune import markup
from langptune.comparison import grid, pages, statistics, tables
from langptune.config.methods import BaselineMethod, FusionMethod
from langptune.errors import UserError, printable
from langptune.files import write_lines
from langptune.provenance import ROOT
from langptune.spreadsheet import cells, plain
from tests.compared import METRICS, entry, made, runs_of, write


@pytest.fixture
def runs(tmp_path):
    return runs_of(tmp_path)


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
    """The second encoder is better from the start, so its trained row gains nothing over its own zero-shot row."""
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
    row, cell = by_key["cl", "e2+d"], lines["cl", "e2+d"].against[list(METRICS).index(by_key["cl", "e2+d"]["metric"])]
    assert float(row["detectable"]) == pytest.approx(cell.effect.detectable)
    spread = float(row["difference"]) / float(row["d_z"])
    assert float(row["detectable"]) == pytest.approx(2.8016 * spread / 60**0.5, rel=1e-4)
    own = lines["ref", "e2+d"].means[list(METRICS).index(by_key["cl", "e2+d"]["metric"])]
    assert float(by_key["cl", "e2+d"]["reference_mean"]) == pytest.approx(own)
    gains = statistics.gains(found).filter(pl.col("models") == "e2+d")
    assert gains.filter(pl.col("method") == "ref")["difference"].abs().max() == 0
    assert gains.filter(pl.col("method") == "cl")["rank_gain"].max() < 0
    page = pages.to_markdown(found, "t", [])
    assert page.count("| reference |") == 2 and "with the same models" in page
    assert "Holm-corrected over 4 comparisons" in page
    values = {f"{line.against[1].effect.detectable:.4f}" for line in found.lines if line.against}
    assert f"NDCG@10 {values.pop()}. " in page and not values, (
        "under the table; one number where all rows have the same"
    )


def test_detectable_differences_are_a_range_over_the_rows(tmp_path):
    rng = np.random.default_rng(3)
    sizes = {"ref": (1, 20), "near": (1, 20), "far": (30, 99)}
    found = made([entry(write(tmp_path, name, rng.integers(*size, size=60)), name) for name, size in sizes.items()])
    values = sorted(line.against[1].effect.detectable for line in found.lines if line.against)
    text = f"NDCG@10 {values[0]:.4f} to {values[1]:.4f}. "
    assert text in pages.to_markdown(found, "t", []) and text in pages.to_latex(found, "t", [], "t")
    alike = made([entry(write(tmp_path, name, np.full(60, 5)), name) for name in ("ref", "same")])
    assert "Smallest difference" not in pages.to_markdown(alike, "t", []), "no spread, nothing to tell"


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
    """``[`` and ``*`` after a LaTeX line break begin an argument. A spreadsheet evaluates text that begins with `=`."""
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


def test_if_lower_is_better_everything_is_inverted(tmp_path):
    names = ["ndcg@10", "log-rank"]
    rng = np.random.default_rng(5)
    ranks = {"ref": rng.integers(40, 60, 60), "good": rng.integers(1, 20, 60), "bad": rng.integers(200, 300, 60)}
    entries = [entry(write(tmp_path, name, values, names=names), name) for name, values in ranks.items()]
    found = statistics.compare(grid.collect(entries, names), "ref", "log-rank", resamples=200)
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
                {"session": pl.Series(range(20), dtype=pl.Int32), "rank": ranks, "ndcg@10": values, "mrr": values / 2}
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
    spec |= {"table_out": str(tmp_path / "s.csv"), "metrics": ["mrr", "ndcg@10"], "reference": "plain"}
    spec["varied"] = ["reward", "algorithm"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "study.py"), "--spec", json.dumps(spec, sort_keys=True)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    both = pl.read_csv(tmp_path / "s.csv").with_columns(pl.col(pl.String).fill_null(""))
    table = both.filter(pl.col("metric") == "ndcg@10")
    assert len(both) == 8 and both["metric"].to_list() == ["mrr", "ndcg@10"] * 4
    assert table.select("variant", "reward", "algorithm", "seeds").rows() == [
        ("", "", "", 1),
        ("a", "ndcg", "rebel", 2),
        ("b", "mrr", "rebel", 2),
        ("a", "ndcg", "rloo", 2),
    ]
    assert table.select("tokens", "collapsed").rows() == [(None, None), (1344, 0), (1344, 1), (1344, 0)]
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    tests = table.select("difference", "difference_low", "difference_high", "p_permutation", "p_permutation_holm")
    assert tests.row(0) == (None,) * 5, "the reference is not tested against itself"
    tested = table[1:]
    assert np.allclose(tested["difference"], tested["mean"] - table["mean"][0])
    assert (tested["difference_low"] <= tested["difference"]).all()
    assert (tested["p_permutation_holm"] >= tested["p_permutation"]).all()
    assert tested.row(1, named=True)["p_permutation_holm"] < 0.05, "twice as high"
    # The figure has a panel for each value of the last of these columns.
    assert [name for name in table.columns if name in runs[-1]["setting"]] == ["variant", "reward", "algorithm"]
