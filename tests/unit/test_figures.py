"""Figures: valid files, the same bytes every time, and every method in its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest

from langptune.comparison.grid import GROUPS
from langptune.errors import UserError
from langptune.figures import comparison
from langptune.figures.bar import Bar
from langptune.figures.comparison.contrasts import Difference
from langptune.figures.comparison.contrasts import contrasts as draw_contrasts
from langptune.figures.comparison.curves import Curve, learning_curves
from langptune.figures.comparison.gains import Gain
from langptune.figures.comparison.gains import gains as draw_gains
from langptune.figures.comparison.means import bars as draw_means
from langptune.figures.comparison.published import Pair
from langptune.figures.comparison.published import published as draw_published
from langptune.figures.comparison.ranks import Ranks, rank_distributions
from langptune.figures.comparison.training import Training, training
from langptune.figures.inputs import Comparison
from langptune.figures.steering import intervals
from langptune.figures.study import StudyLine, models_grid, study, variants
from langptune.figures.style import save
from langptune.figures.tradeoff import tradeoff
from langptune.figures.weights import WeightLine, along_weights
from langptune.provenance import ROOT

MAGIC = {".png": b"\x89PNG", ".pdf": b"%PDF"}


def bars():
    return {
        title: [
            Bar("low_title & <b>", "Low_title & <b>", "profiles", 0.01, 0.0, 0.02),
            Bar("high", "High", "baselines", 0.07, 0.05, 0.09),
            Bar("middle", "Middle", "text controls", 0.03, 0.02, 0.04),
            Bar("oracle", "Oracle", "bounds", 1.0, 1.0, 1.0),
        ]
        for title in ("NDCG@10", "Recall@10")
    }


def gains():
    rng = np.random.default_rng(0)
    return [
        Gain(name, group, rng.choice([-0.5, 0, 0.5], p=[0.1, 0.8, 0.1], size=60), rng.normal(size=60))
        for name, group in (("A", "profiles"), ("B", "baselines"), ("Random", "bounds"))
    ]


def ranks():
    rng = np.random.default_rng(0)
    return [Ranks(f"M{i}", group, rng.integers(1, 100, 80)) for i, group in enumerate(GROUPS * 4)]


def curves():
    return [Curve(f"c{i % 4}", f"C{i % 4}", np.arange(1, 6), np.linspace(0.01, 0.05, 5)) for i in range(6)]


def phases():
    rows = [
        {"batch": b, "val_ndcg": 0.1 + 0.01 * b, "loss": 2 - 0.1 * b, "reward": 0.1, "val_own": 0.2, "val_own_se": 0.1}
        | ({"val_ndcg_gain_se": 0.004, "val_gain": 0.1 * b, "val_gain_se": 0.05} if b else {})
        for b in range(5)
    ]
    shifted = [{key: value + (key != "batch") * 0.02 for key, value in row.items()} for row in rows]
    return [
        Training("cl", "CL on profiles", [{k: row[k] for k in ("batch", "val_ndcg", "loss")} for row in rows]),
        Training("rlso", "CL on profiles, then RLSO with a long title", rows),
        Training("rlso", "CL on profiles, then RLSO with a long title", shifted),
    ]


def study_lines():
    return [
        StudyLine(f"M{i}", group, [64, 128, 512], [0.01, 0.02, 0.03], [0.0, 0.01, 0.02], [0.02, 0.03, 0.04])
        for i, group in enumerate(("profiles", "text controls"))
    ]


def published():
    ours = [
        Pair("langptune\ne+d", "LangPTune\ne+d", "profiles", 0.045, 0.02, 0.015, 0.03),
        Pair("lightgcn", "LightGCN", "baselines", 0.052, 0.06, 0.05, 0.07),
        Pair("random", "Random", "bounds", 0.0006, 0.0007, 0.0, 0.001),
    ]
    return {"NDCG@20": ours, "Recall@20": [ours[0], Pair("pop", "Pop", "baselines", 0.01, 0.012, 0.01, 0.02)]}


def pairs():
    return [("A", ["e1", "e2"], ["d1", "d2"], np.array([[0.01, np.nan], [0.05, 0.1]]))]


def contrasts():
    rows = [
        ("a", "What RLSO adds\nLangPTune – LangPTune-CL", 0.02, 0.01, 0.03, True),
        ("b", "LangPTune – Pop", -0.01, -0.02, 0.001, False),
    ]
    panels = {"NDCG@10": 1, "Log rank (lower is better)": -1}
    return {
        title: [Difference(*name, better * mean, *sorted((better * low, better * high)), better, filled)
                for *name, mean, low, high, filled in rows]
        for title, better in panels.items()
    }  # fmt: skip


DRAW = {
    "contrasts": lambda: draw_contrasts(contrasts()),
    "no contrasts": lambda: draw_contrasts({"NDCG@10": []}),
    "training": lambda: training(phases()),
    "no training": lambda: training([]),
    "study": lambda: study(study_lines(), "max tokens", "NDCG@10", logarithmic=True),
    "variants": lambda: variants({"rebel": bars()["NDCG@10"]}, {"CL": 0.03}, "NDCG@10"),
    "models": lambda: models_grid(pairs(), "NDCG@10"),
    "bars": lambda: draw_means(bars()),
    "gains": lambda: draw_gains(gains(), "Ref", "NDCG@10"),
    "no gains": lambda: draw_gains([], "Ref", "NDCG@10"),
    "ranks": lambda: rank_distributions(ranks(), 100),
    "published": lambda: draw_published(published()),
    "no published": lambda: draw_published({}),
    "curves": lambda: learning_curves(curves(), "NDCG@10"),
    "no curves": lambda: learning_curves([], "NDCG@10"),
}


@pytest.mark.parametrize("suffix", MAGIC)
@pytest.mark.parametrize("name", DRAW)
def test_files_have_the_same_bytes_twice(tmp_path, name, suffix):
    paths = [tmp_path / f"{turn}{suffix}" for turn in "ab"]
    for path in paths:
        save(DRAW[name](), path)
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(MAGIC[suffix])
    assert first == second
    assert b"CreationDate" not in first


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.png or \.pdf"):
        save(DRAW["bars"](), tmp_path / "a.svg")


def test_bars_are_sorted_and_bounds_are_listed_but_not_drawn():
    figure = draw_means(bars())
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["Low_title & <b>", "Middle", "High"]
    for axis in (left, right):
        assert [patch.get_width() for patch in axis.patches] == [0.01, 0.07, 0.03]
        assert axis.get_xlim()[1] < 0.2
    assert "Oracle 1.0000" in figure.get_supxlabel()


def test_a_figure_of_bounds_only_is_empty_with_a_sentence():
    figure = draw_means({"NDCG@10": [Bar("oracle", "Oracle", "bounds", 1, 1, 1)]})
    assert any("Only bounds" in text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_published_numbers_and_ours_share_a_row():
    left, right = draw_published(published()).axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["Random", "Pop", "LangPTune\ne+d", "LightGCN"], "in the order of the published numbers"
    at = names.index("LightGCN")
    dots = {
        (line.get_markerfacecolor() == "white"): line
        for line in left.lines
        if line.get_marker() == "o" and at in line.get_ydata()
    }
    assert (dots[True].get_xdata()[0], dots[False].get_xdata()[0]) == (0.052, 0.06)
    spans = [tuple(line.get_xdata()) for line in left.lines if line.get_marker() != "o" and at in line.get_ydata()]
    assert spans == [(0.052, 0.06), (0.05, 0.07)]
    assert {at for line in right.lines for at in line.get_ydata()} == {1, 2}, "a method without a pair has no mark"


def test_gains_show_the_shares_won_and_lost():
    made = Gain("A", "baselines", np.array([0.5, 0.5, -0.1, 0.0]), np.array([3.0, 1.0, -1.0, 1.0]))
    left, right = draw_gains([made], "Ref", "NDCG@10").axes
    assert [patch.get_width() for patch in left.patches] == [50.0, -25.0]
    medians = [line for line in right.lines if line.get_marker() == "o"]
    assert [float(np.ravel(line.get_xdata())[0]) for line in medians] == [1.0]


def test_contrasts_have_the_better_side_on_the_right():
    figure = draw_contrasts(contrasts())
    left, right = figure.axes
    assert not left.xaxis_inverted() and right.xaxis_inverted()
    assert [label.get_text().splitlines()[-1] for label in left.get_yticklabels()] == [
        "LangPTune – LangPTune-CL", "LangPTune – Pop",
    ]  # fmt: skip
    dots = [line for line in left.lines if line.get_marker() == "o"]
    assert dots[0].get_markerfacecolor() == dots[0].get_markeredgecolor() != dots[1].get_markerfacecolor() == "white"


def test_a_metric_by_which_lower_is_better_is_sorted_the_other_way():
    panels = {"Log rank": bars()["NDCG@10"]}
    labels = [label.get_text() for label in draw_means(panels, -1).axes[0].get_yticklabels()]
    assert labels == ["High", "Middle", "Low_title & <b>"], "drawn from below: the lowest mean is on top"
    turned = tradeoff(panels["Log rank"], {"Faithful": []}, "Log rank", -1)
    assert turned.axes[0].yaxis_inverted()


def test_rank_curves_are_the_share_at_or_above():
    figure = rank_distributions([Ranks("A", "profiles", np.array([1, 3, 3, 10]))], 10)
    line = figure.axes[0].lines[0]
    share = dict(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))
    assert (share[1], share[2], share[3], share[9], share[10]) == (0.25, 0.25, 0.75, 0.75, 1.0)


def panels(figure) -> list[dict]:
    """The axes of each phase of a training figure, by title; the axes of validation NDCG are ``ndcg``."""
    out = []
    for axis in figure.axes:
        title = axis.get_title(loc="left")
        if "validation NDCG" in title:
            out.append({"ndcg": axis})
        else:
            out[-1][title] = axis
    return out


def test_training_shows_each_phase_once_and_seeds_as_a_band():
    cl, rlso = panels(training(phases()))
    assert list(cl) == ["ndcg", "loss"], "CL has no reward"
    assert list(rlso) == ["ndcg", "loss", "reward", "gain in log rank", "own over shuffled"]
    assert not any(axis.collections for axis in cl.values()) and all(axis.collections for axis in rlso.values())
    assert cl["ndcg"].get_title(loc="left") == "CL on profiles\nvalidation NDCG"


def test_axes_of_a_column_of_training_are_equal():
    (cl, *seeds) = phases()
    cl.rows[0]["val_ndcg"], cl.rows[0]["val_own"] = 0.9, 3.0
    figure = training([cl, *seeds])
    figure.draw_without_rendering()
    first, second = panels(figure)
    for title in ("ndcg", "loss", "own over shuffled"):
        above, below = (block[title].get_position() for block in (first, second))
        assert (above.x0, above.width, above.height) == pytest.approx((below.x0, below.width, below.height)), title
    for title in ("ndcg", "own over shuffled"):
        assert first[title].get_ylim() == second[title].get_ylim()
    assert first["ndcg"].get_ylim()[1] > 0.9 and second["own over shuffled"].get_ylim()[1] > 3
    assert first["loss"].get_ylim() != second["loss"].get_ylim(), "another algorithm's loss has another unit"
    assert len({axis.get_xlim() for axis in second.values()}) == 1, "the axis of batches is one for a phase"


def test_training_shows_the_noise_of_validation():
    (cl, *seeds) = phases()
    axes = panels(training([cl, seeds[0]]))[1]
    (noise,) = axes["ndcg"].collections
    edges = noise.get_paths()[0].vertices
    assert {0.092, 0.1, 0.108} == set(edges[:, 1].round(6).tolist()), "two standard errors around the start"
    (own,) = axes["own over shuffled"].collections
    assert set(own.get_paths()[0].vertices[:, 1].round(6).tolist()) == {0.0, 0.4}, "of a single seed, its own interval"
    assert not axes["reward"].collections


def test_a_phase_without_a_paired_difference_shows_the_error_of_its_mean():
    (cl, *_) = phases()
    for row in cl.rows:
        row["val_ndcg_se"] = 0.01
    (noise,) = panels(training([cl]))[0]["ndcg"].collections
    assert set(noise.get_paths()[0].vertices[:, 1].round(6).tolist()) == {0.08, 0.12}


def test_training_marks_the_batch_that_selection_kept(tmp_path):
    """The batch is in the manifest of the curve."""
    paths = [tmp_path / f"{seed}.jsonl" for seed in range(3)]
    for path, kept in zip(paths, (2, 4, None), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in phases()[1].rows))
        if kept is not None:
            Path(f"{path}.manifest.json").write_text(json.dumps({"notes": {"best_batch": kept}}))
    entries = [{"key": "rlso", "title": "RLSO", "path": str(path)} for path in paths]
    run = {"method": "m", "models": "x", "seed": 0, "title": "M", "group": "profiles", "metrics_path": "absent"}
    found = comparison.REGISTRY.load("training").draw(
        Comparison.model_validate({"phases": entries, "runs": [run], "reference": "m"})
    )
    (block,) = panels(found)
    assert block["ndcg"].get_title(loc="left") == "RLSO\nvalidation NDCG\nkept: batches 2, 4"
    lines = [line for line in block["ndcg"].lines if line.get_marker() == "o" and line.get_color() == "black"]
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]
    assert dots == [(2, pytest.approx(0.12)), (4, pytest.approx(0.14))]
    for axis in block.values():
        assert {2, 4} <= {line.get_xdata()[0] for line in axis.lines if list(line.get_ydata()) == [0, 1]}


def test_training_marks_a_run_that_collapsed():
    (cl, *seeds) = phases()
    seeds[0].rows[-1]["collapsed"] = "entropy 0.01"
    large = panels(training([cl, *seeds]))[1]["ndcg"]
    crosses = [(line.get_xdata()[0], line.get_ydata()[0]) for line in large.lines if line.get_marker() == "x"]
    assert crosses == [(4, pytest.approx(0.14))]
    assert "collapsed" in [text.get_text() for text in large.texts]


def test_variants_are_in_the_panel_of_their_value_beside_fixed_methods():
    bars = {name: Bar(name, name, "profiles", mean, 0.0, 0.1) for name, mean in (("a", 0.02), ("b", 0.05))}
    figure = variants({"rebel": [bars["a"]], "rloo": [*bars.values()]}, {"CL": 0.03}, "NDCG@10")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    dots = [[line for line in axis.lines if line.get_marker() == "o"] for axis in (left, right)]
    assert [[float(np.ravel(dot.get_xdata())[0]) for dot in panel] for panel in dots] == [[0.02], [0.02, 0.05]]
    assert all(any(set(np.ravel(line.get_xdata())) == {0.03} for line in axis.lines) for axis in (left, right))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CL"]


def test_rows_with_one_label_stay_two_rows():
    same = [Bar(key, "Same", "profiles", mean, 0.0, 0.1) for key, mean in (("a", 0.02), ("b", 0.05))]
    (axis,) = draw_means({"NDCG@10": same}).axes
    drawn = sorted((patch.get_y() + 0.33, patch.get_width()) for patch in axis.patches)
    assert np.array(drawn) == pytest.approx(np.array([(0, 0.02), (1, 0.05)]))
    (axis,) = intervals({"add": same}, "change").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["Same", "Same"]
    drawn = tradeoff(same, {"Faithful": same}, "NDCG@10")
    heights = {float(line.get_ydata()[0]) for line in drawn.axes[0].lines if len(line.get_ydata()) == 1}
    assert heights == {0.02, 0.05} and len(drawn.legends[0].get_texts()) == 2
    pairs = [Pair(key, "Same", "baselines", value, 0.02, 0.01, 0.03) for key, value in (("a", 0.1), ("b", 0.2))]
    assert len(draw_published({"NDCG@10": pairs}).axes[0].get_yticks()) == 2
    curves = [Curve(key, "Same", np.arange(3), np.arange(3) / 9) for key in ("a", "a", "b")]
    panels = [axis for axis in learning_curves(curves, "NDCG@10").axes if axis.get_visible()]
    assert [len(axis.lines) for axis in panels] == [4, 2], "a line and a dot for each seed"
    rows = [{"batch": at, "loss": at / 9} for at in range(3)]
    drawn = training([Training(key, "Same", rows) for key in ("a", "b")])
    seen = [axis for axis in drawn.axes if axis.get_visible()]
    assert len(seen) == 2 and not any(axis.collections for axis in seen), "two phases, no band of seeds"


def test_lines_of_a_group_are_distinguishable():
    lines = rank_distributions(ranks() * 3, 100).axes[0].lines
    looks = {(line.get_color(), str(line.get_linestyle()), str(line._dash_pattern)) for line in lines[:-2]}
    assert len(looks) == len(lines) - 2


@pytest.mark.parametrize("name", ["bars", "gains", "ranks", "curves", "published", "contrasts", "training"])
def test_no_text_leaves_the_figure(name):
    figure = DRAW[name]()
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    page = figure.bbox.padded(1.5)
    texts = [text for text in figure.texts if text.get_text()]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for axes in (axes for axes in figure.axes if axes.get_visible()):
        texts.append(axes.title)
        # ticks beyond the limits exist, but are not drawn
        for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            texts += [label for label in axis.get_ticklabels() if low <= label.get_position()[place] <= high]
    drawn = [text for text in texts if text.get_text() and text.get_visible()]
    assert len(drawn) > 5
    for text in drawn:
        box = text.get_window_extent(renderer)
        assert page.x0 <= box.x0, text
        assert box.x1 <= page.x1, text
        assert page.y0 <= box.y0, text
        assert box.y1 <= page.y1, text


ONE = np.array([1, 2, 3])
TITLED = {
    "bars": lambda text: draw_means({text: [Bar("k", text, "profiles", 0.1, 0.0, 0.2)]}),
    "published": lambda text: draw_published({text: [Pair("k", text, "profiles", 0.1, 0.1, 0.0, 0.2)]}),
    "gains": lambda text: draw_gains([Gain(text, "profiles", ONE / 3, ONE / 3)], text, text),
    "contrasts": lambda text: draw_contrasts({text: [Difference("k", text, 0.1, 0.0, 0.2, 1, True)]}),
    "ranks": lambda text: rank_distributions([Ranks(text, "profiles", ONE)], 10),
    "curves": lambda text: learning_curves([Curve("k", text, ONE, ONE / 9)], text),
    "training": lambda text: training([Training("k", text, [{"batch": 0, "val_ndcg": 0.1}])]),
    "study": lambda text: study([StudyLine(text, "x", [1.0], [0.1], [0.0], [0.2])], text, text, False),
    "weights": lambda text: along_weights([WeightLine(text, [0], [0.1], [0.1], [0.0], [0.2], [True])], text, text),
}


@pytest.mark.parametrize("name", TITLED)
def test_no_title_is_a_formula(tmp_path, name):
    """Matplotlib would parse text between dollar signs as mathematics, and fail on text that is not."""
    figure = TITLED[name](r"$\frac{$")
    save(figure, tmp_path / "figure.png")
    drawn = [one._preprocess_math(one.get_text()) for one in figure.findobj(mpl.text.Text)]
    assert [text for text, formula in drawn if r"$\frac{$" in text and not formula]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$x^2$ costs $5", "$x^2$ costs $5"),
        (r"\$1 and $2$", r"\$1 and $2$"),
        ("\x1b[31mred\x00", r"\x1b[31mred\x00"),
        ("\ud800", r"\ud800"),
        ("W" * 100_000, "W" * 199 + "…"),
        ("a\n" * 10_000, "a\na\na\na\na"),
    ],
)
def test_titles_are_drawn_verbatim(tmp_path, text, shown):
    figure = TITLED["ranks"](text)
    save(figure, tmp_path / "figure.png")
    first = figure.legends[0].get_texts()[0]
    assert first._preprocess_math(first.get_text()) == (shown, False)
    save(TITLED["contrasts"](text), tmp_path / "figure.png")


def test_a_title_that_begins_with_an_underscore_is_in_the_legend():
    """Matplotlib leaves lines with such labels out of the legend."""
    texts = TITLED["study"]("_hidden").legends[0].get_texts()
    assert [text.get_text().strip() for text in texts] == ["_hidden"]


def test_the_script_draws_from_what_a_comparison_writes(tmp_path):
    rng = np.random.default_rng(0)
    entries, rows, frames = [], [], []
    for method, models in (("ref", "e+d1"), ("ref", "e+d2"), ("good", "SASRec"), ("gone", "x")):
        path = tmp_path / f"{method}-{models}.parquet"
        group = "profiles" if method == "ref" else "baselines"
        entries.append(
            {
                "method": method,
                "models": models,
                "seed": 0,
                "title": method,
                "group": group,
                "metrics_path": str(path),
            }
        )
        mean = "" if method == "gone" else "0.1"
        rows += [f"{group},{method},{models},{metric},{mean},{mean},{mean}" for metric in ("ndcg@10", "recall@10")]
        if method == "gone":
            continue
        rank = rng.integers(1, 20, 30).astype(np.int32)
        sessions = np.arange(30, dtype=np.int32)
        pl.DataFrame({"session": sessions, "rank": rank, "ndcg@10": 1.0 / rank}).write_parquet(path)
        frames.append(
            pl.DataFrame({"session": sessions}).with_columns(
                pl.lit(method).alias("method"),
                pl.lit(models).alias("models"),
                pl.Series("difference", rng.normal(size=30)),
                pl.Series("rank_gain", rng.normal(size=30)),
            )
        )
    rows = [f"{row},{0.2 if ',good,' in row and 'ndcg' in row else ''}" for row in rows]
    (tmp_path / "long.csv").write_text("group,method,models,metric,mean,low,high,published\n" + "\n".join(rows) + "\n")
    pl.concat(frames).write_parquet(tmp_path / "gains.parquet")
    pl.DataFrame({"item": pl.Series(range(20), dtype=pl.Int32)}).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "curve.jsonl").write_text('{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "val_ndcg@10": 0.1}\n')
    head = "contrast,title,method,models,against,against_models,beyond,beyond_against,metric"
    head += ",difference,difference_low,difference_high"
    lines = [f"c,,ref,{models},good,SASRec,{pair},{metric},0.1,0.0,0.2,0.04"
            for models, pair in zip(("e+d1", "e+d2"), (",", "good,ref"), strict=True)
            for metric in ("ndcg@10", "log-rank")]  # fmt: skip
    lines.append("d,T,gone,x,good,SASRec,,,ndcg@10,,,,")
    (tmp_path / "contrasts.csv").write_text("\n".join([f"{head},p_permutation_holm", *lines]) + "\n")
    outs = ("means", "gains", "ranks", "curves", "published", "contrasts")
    seen = []
    for turn in "12":  # another hash seed must not change any byte
        spec = {
            "table_in": str(tmp_path / "long.csv"),
            "gains_in": str(tmp_path / "gains.parquet"),
            "items_in": str(tmp_path / "items.parquet"),
            "contrasts_in": str(tmp_path / "contrasts.csv"),
            "runs": entries,
            "curves": [
                {"key": "good", "title": "good", "path": str(tmp_path / "curve.jsonl")},
                {"key": "no", "title": "no", "path": "absent"},
            ],
            "reference": "ref",
            "figures_out": [str(tmp_path / turn / f"{out}{suffix}") for out in outs for suffix in MAGIC],
        }
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "plot.py"), "--spec", json.dumps(spec)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": turn},
        )
        assert done.returncode == 0, done.stderr
        seen.append([(tmp_path / turn / f"{out}{suffix}").read_bytes() for out in outs for suffix in MAGIC])
    assert seen[0] == seen[1]


def test_tradeoff_and_intervals_draw_what_they_are_given(tmp_path):
    accuracy = [
        Bar("langptune-0", "LangPTune-0", "profiles", 0.0, 0.0, 0.0),
        Bar("langptune", "LangPTune", "profiles", 0.02, 0.01, 0.03),
    ]
    faithful = [Bar("langptune", "LangPTune", "profiles", 0.6, 0.5, 0.7)]  # the other method's profiles make no claims
    figure = tradeoff(accuracy, {"Faithful": faithful, "Simulation": accuracy}, "NDCG@10")
    left, right = figure.axes
    assert left.get_title(loc="left") == "Faithful" and len(left.lines) == 3 and len(right.lines) == 6
    assert left.get_ylim()[0] < 0  # an interval at 0 must not be hidden by the axis
    many = tradeoff(accuracy, dict.fromkeys("abcde", accuracy), "NDCG@10")
    assert [axis.axison for axis in many.axes] == [True] * 5 + [False], "two rows of three"
    assert [axis.get_ylabel() for axis in many.axes[::3]] == ["NDCG@10"] * 2
    assert len({axis.get_ylim() for axis in many.axes[:5]}) == 1
    save(figure, tmp_path / "tradeoff.png")
    panels = {"add": accuracy, "negate": [Bar("langptune", "LangPTune", "profiles", -0.1, -0.2, 0.1)]}
    figure = intervals(panels, "change")
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()  # so that effects can be compared across edits
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["LangPTune-0", "LangPTune"]
    assert figure.axes[0].yaxis_inverted()
    assert intervals({"add": []}, "change").texts[0].get_text() == "Nothing could be edited."


def test_weights_are_a_line_per_method_with_its_own_marked():
    low, high = [0.3, 0.1], [0.5, 0.3]
    lines = [
        WeightLine("LangPTune-0", [0, 1], [0.01, 0.02], [0.4, 0.2], low, high, [False, True]),
        WeightLine("<b>$x$", [0, 0.25], [0.02, 0.03], [0.4, 0.2], low, high, [True, False]),
    ]
    figure = along_weights(lines, "NDCG@10", "AUC")
    (axis,) = figure.axes
    drawn = [line for line in axis.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] != line.get_ydata()[1]]
    assert [line.get_xdata().tolist() for line in drawn[:2]] == [[0.4, 0.2]] * 2
    marks = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == line.get_color() for line in marks] == [False, True, True, False]
    assert sorted(text.get_text() for text in axis.texts) == ["0", "0", "0.25", "1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["LangPTune-0", r"<b>\$x\$"]
    assert along_weights([], "NDCG@10", "AUC").texts[0].get_text().startswith("No method has a weight")
