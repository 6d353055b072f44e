"""Contrasts of two methods, and differences of contrasts: by hand, in every table, and mistakes in the config."""

from __future__ import annotations

import csv
import io

import numpy as np
import polars as pl
import pytest

from langptune import metrics
from langptune.comparison import grid, pages, significance, statistics, tables
from langptune.config.load import load
from langptune.errors import UserError
from langptune.provenance import ROOT
from tests.compared import METRICS, entry, made, runs_of, write


@pytest.fixture
def runs(tmp_path):
    return runs_of(tmp_path)


def pair(of, against, name="c", title="", beyond=()):
    return grid.ContrastEntry(name=name, title=title, of=of, against=against, beyond=list(beyond))


def test_a_difference_of_differences_by_hand(tmp_path):
    """(Own less shuffled of one method) less (own less shuffled of another), paired by session and seed."""
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
    """Both methods have the same seed effect, which pairing by seed removes from the interval."""
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
    # The contrasts form one family, separate from that of the reference.
    p = [by_name[name].tests[1].effect.p_permutation for name in "ab"]
    assert [by_name[name].tests[1].p_holm for name in "ab"] == significance.holm(p)
    written = list(csv.DictReader(io.StringIO(tables.contrasts_csv(found))))
    assert [row["status"] for row in written] == ["partial"] * 2 + ["complete"] * 2 + ["missing"] * 2
    assert all(row["difference"] == row["sessions"] == row["p_permutation_holm"] == "" for row in written[4:])
    page = pages.to_markdown(found, "t", []).partition("**Contrasts**")[2]
    assert "| How far?: GOOD against ORACLE | m | 3 of 4 |" in page
    assert "Holm-corrected over 2 contrasts" in page and "1 of 3 contrasts are not tested" in page


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
