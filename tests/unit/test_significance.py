"""Bootstrap intervals and significance tests: against simulation, theory, and other libraries."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from langptune.comparison import bootstrap, significance


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
    # sums of thirds are inexact, so every pattern's absolute sum must be compared with a tolerance
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
    """With ties and zeros, where SciPy ranks each sign pattern again, and without."""
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
