"""Trials on validation: points of a grid, and points drawn at random with the same budget for all methods."""

from __future__ import annotations

import math

import numpy as np
import pytest

from langptune.baselines import nmf, recbole
from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.config.ranges import Range
from langptune.errors import UserError
from tests.conftest import ROOT

CONFIG = {"datasets": ["ml-100k"], "methods": ["pop", "ease", "bpr", "nmf"], "comparison": {"reference": "pop"}}
SHRINK = {"low": 0.0, "high": 600.0}
NEIGHBOURS = {"low": 5, "high": 800, "scale": "log"}


def knn(**tune) -> recbole.Keys:
    return recbole.Keys.model_validate({"model": "ItemKNN", "settings": {"k": 100}, "tune": tune})


def test_without_a_budget_every_point_of_the_grid_is_tried():
    assert nmf.Keys(components=3, tune={"components": [8, 16]}).points() == [{"components": 8}, {"components": 16}]
    points = knn(k=[20, 50], shrink=[0.0, 10.0]).points()
    assert points == [{"k": k, "shrink": shrink} for k in (20, 50) for shrink in (0.0, 10.0)]
    assert nmf.Keys().points() == nmf.Keys().points(8) == [], "nothing to tune"


def test_random_trials_begin_with_the_own_settings_and_stay_within_the_ranges():
    method = knn(k=NEIGHBOURS, shrink=SHRINK)
    points = method.points(40, seed=3)
    assert len(points) == 40 and points[0] == method.own() == {"k": 100}
    assert all(points[a] != points[b] for a in range(40) for b in range(a))
    for point in points[1:]:
        assert type(point["k"]) is int and 5 <= point["k"] <= 800 and 0.0 <= point["shrink"] <= 600.0


def test_the_draw_depends_on_its_seed_alone_and_more_trials_begin_with_the_same_points():
    method = knn(k=NEIGHBOURS, shrink=SHRINK)
    assert method.points(8, 0) == method.points(20, 0)[:8] != method.points(8, 1)


def test_lists_with_fewer_points_are_tried_in_full():
    points = nmf.Keys(components=3, tune={"components": [8, 16]}).points(8)
    assert points[0] == {"components": 3} and sorted(point["components"] for point in points) == [3, 8, 16]
    assert len(nmf.Keys(components=8, tune={"components": [8, 16]}).points(8)) == 2, "the own value is in the list"


@pytest.mark.parametrize(("scale", "middle"), [("linear", 400.0), ("log", math.sqrt(800))])
def test_ranges_are_drawn_evenly_on_their_scale(scale, middle):
    shares = (np.arange(2000) + 0.5) / 2000
    for low, high in ((1, 800), (1.0, 800.0)):
        drawn = np.array([Range(low=low, high=high, scale=scale).at(share) for share in shares])
        assert 0.48 < (drawn < middle).mean() < 0.52
        assert drawn.min() >= 1 and drawn.max() <= 800 and (np.diff(drawn) >= 0).all()
    few = [Range(low=1, high=3, scale=scale).at(share) for share in (0.0, *shares, 1.0)]
    assert set(few) == {1, 2, 3}, "both bounds are drawn"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_trials_cover_all_of_a_range_and_all_of_a_list(seed):
    points = knn(k=NEIGHBOURS, shrink=SHRINK, normalize=[True, False]).points(5, seed)[1:]
    quarters = {math.floor(point["shrink"] / 150) for point in points}
    orders = {math.floor(4 * math.log(point["k"] / 5) / math.log(801 / 5)) for point in points}
    assert quarters == orders == {0, 1, 2, 3}
    assert sorted(point["normalize"] for point in points) == [False, False, True, True]


def test_the_librarys_default_is_not_tried_twice():
    points = knn(k=[100, 20], shrink=[0.0, 10.0]).points(8)
    assert points[0] == {"k": 100} and len(points) == 4, "its shrink is 0 by default"
    assert {"k": 100, "shrink": 0.0} not in points


def test_one_number_is_the_budget_of_all_methods():
    workflow = load(CONFIG | {"trials": 4}, ROOT)
    assert [len(workflow.points(name)) for name in CONFIG["methods"]] == [0, 4, 4, 4]
    assert [len(load(CONFIG, ROOT).points(name)) for name in CONFIG["methods"]] == [0, 8, 8, 8]


def test_the_shipped_budget_is_equal():
    workflow = load(read_yaml(ROOT / "config/baselines.yaml"), ROOT)
    budgets = {len(workflow.points(name)) for name, method in workflow.methods.items() if getattr(method, "tune", None)}
    listed = {len(workflow.points(name)) for name in workflow.config.methods}
    assert listed == {0, 5} and 5 in budgets


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"overrides": {"nmf": {"tune": {"components": NEIGHBOURS}}}}, "'components' is a range.*set `trials`"),
        ({"trials": 0}, "'trials'.*greater than or equal to 1"),
        ({"trials": 3, "tune": False}, "trials: 3, but `tune: false`"),
        ({"overrides": {"nmf": {"tune": {"components": {"low": 9, "high": 9}}}}}, "low must be less than high"),
        (
            {"overrides": {"ease": {"tune": {"reg_weight": {"low": 0.0, "high": 9.0, "scale": "log"}}}}},
            "begins above 0",
        ),
        (
            {"methods": ["pop", "als"], "overrides": {"als": {"tune": {"factors": [8, 8.5]}}}},
            "method 'als': tune: 'factors': .*factors",
        ),
        (
            {"trials": 3, "overrides": {"nmf": {"tune": {"components": {"low": 0.5, "high": 9}}}}},
            "method 'nmf': tune: 'components': .*components",
        ),
    ],
)
def test_bad_budgets_and_ranges_are_one_line(change, line):
    with pytest.raises(UserError, match=line):
        load(CONFIG | change, ROOT)


def test_unknown_settings_among_ranges_are_one_line():
    with pytest.raises(UserError, match="unknown setting 'shrinkage'; did you mean 'shrink'"):
        knn(shrinkage=SHRINK).check_names()


@pytest.mark.parametrize("values", [{"low": 5.0, "high": 1000.0}, [20, 50.5]])
def test_fractions_of_a_whole_number_are_one_line(values):
    with pytest.raises(UserError, match="setting 'k' is a whole number; write 5"):
        knn(k=values).check_names()
    knn(shrink=[0.0, 2.5], k=[20]).check_names()


def test_tuned_values_include_the_librarys_defaults():
    method = knn(k=[20], shrink=[5.0])
    assert method.tuned(method.own()) == {"k": 100, "shrink": 0.0}
    assert method.tuned(method.points()[0]) == {"k": 20, "shrink": 5.0}
