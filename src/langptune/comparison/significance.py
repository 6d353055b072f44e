"""Paired tests of a method against the reference, over the sessions that both have ranked.

The unit is the session: a method with several seeds enters with its mean over seeds, because seeds of one
session are not independent observations.

The main test is the sign-flip permutation test of the mean difference. It tests the number in the table (the mean), it
is valid for any distribution of differences, and it remains valid if nearly all differences are zero. The reported
alternatives each lack one of these: the paired t-test has the same hypothesis but is too liberal if few sessions differ
(four wins and no loss among 300 sessions give p = 0.045, where four coin tosses give 0.125); Wilcoxon's signed-rank
test ranks the differences by size and so tests another quantity than the mean, which may even have the opposite sign.
For a comparison of these tests on ranking metrics see Smucker, Allan, Carterette, "A comparison of statistical
significance tests for information retrieval evaluation", CIKM 2007, and Urbano, Lima, Hanjalic, "Statistical
significance testing in information retrieval: an empirical analysis of type I, type II and type III errors", SIGIR
2019.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats

from langptune.randomness import numbered

PERMUTATIONS = 9_999
"""Number of sampled sign patterns if there are too many to enumerate; the smallest p is 1 / (PERMUTATIONS + 1)."""
EXACT_UP_TO = 13
"""Up to this number of differing sessions, all 2^n sign patterns are enumerated."""
NORMAL_FROM = 5_000
"""From this number of differing sessions on, the flipped sum is approximated as normal, with its exact variance."""
_BITS = 8_000_000


@dataclass(frozen=True)
class Paired:
    """A method against the reference on one metric.

    difference: mean over sessions of method minus reference.
    d_z: Cohen's d for paired samples, difference / standard deviation of differences; NaN if that is 0.
    wins, ties, losses: number of sessions on which the method is better, equal, worse; they sum to ``n``. If lower
        values of the metric are better, a win is a negative difference.
    p_permutation (main), p_ttest, p_wilcoxon: two-sided, not corrected; 1 if no session differs.
    detectable: the smallest difference that such a sample would probably have shown (the function ``detectable``).
    """

    n: int
    difference: float
    d_z: float
    wins: int
    ties: int
    losses: int
    p_permutation: float
    p_ttest: float
    p_wilcoxon: float
    detectable: float | None


def paired(method: np.ndarray, reference: np.ndarray, seed: int = 0, better: int = 1, level: float = 0.05) -> Paired:
    """Effect sizes and tests of two methods on the same sessions.

    Args:
        method: float64 ``[S]``, a metric per session, averaged over seeds.
        reference: float64 ``[S]``, the same sessions in the same order.
        seed: seed of the sampled sign patterns.
        better: +1 if a higher value is better, -1 if a lower one is.
        level: level of the test for which ``detectable`` is computed.
    """
    differences = np.asarray(method, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    # Rounding errors of means over seeds must not count as wins if two methods agree.
    differences[np.abs(differences) < 1e-12] = 0.0
    n = len(differences)
    spread = differences.std(ddof=1) if n > 1 else 0.0
    wins, losses = int((better * differences > 0).sum()), int((better * differences < 0).sum())
    p_ttest = p_wilcoxon = 1.0
    if wins + losses:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # equal differences (p = 0) and small samples are expected here
            p_ttest = float(stats.ttest_1samp(differences, 0.0).pvalue) if n > 1 else float("nan")
            p_wilcoxon = wilcoxon(differences)
    return Paired(
        n=n,
        difference=float(differences.mean()),
        d_z=float(differences.mean() / spread) if spread > 0 else float("nan"),
        wins=wins,
        ties=n - wins - losses,
        losses=losses,
        p_permutation=sign_flip(differences, seed),
        p_ttest=p_ttest,
        p_wilcoxon=p_wilcoxon,
        detectable=detectable(differences, level),
    )


def detectable(differences: np.ndarray, level: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest mean difference that a two-sided test at ``level`` finds in a share ``power`` of such samples.

    ``(z(1 - level / 2) + z(power)) * standard deviation / sqrt(S)``, with the sample's own standard deviation
    (Cohen, "Statistical power analysis for the behavioral sciences", 1988). A smaller difference without significance
    does not show that two methods are alike: the sample is too small to tell.

    Args:
        differences: float64 ``[S]``, paired.

    Returns:
        None for fewer than two sessions, where all differences are equal, and where too few sessions differ: no pattern
        of the signs of n differences has a p below ``2 ** (1 - n)``, so up to five of them never reach 5%.
    """
    differing = int((np.abs(differences) >= 1e-12).sum())
    if 2.0 ** (1 - differing) >= level or np.ptp(differences) < 1e-12:
        return None
    factor = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
    return float(factor * np.std(differences, ddof=1) / np.sqrt(len(differences)))


def wilcoxon(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, zeros left out, as ``scipy.stats.wilcoxon`` gives it.

    For up to ``EXACT_UP_TO`` sessions with ties or zeros SciPy lists all sign patterns as well, but ranks every pattern
    anew, in a loop over 8192 of them. Sign flips leave the ranks as they are.

    Args:
        differences: float64 ``[S]``, not all zero.
    """
    sizes = np.abs(differences[differences != 0])
    if len(differences) > EXACT_UP_TO or len(np.unique(sizes)) == len(differences):
        return float(stats.wilcoxon(differences).pvalue)
    ranks = stats.rankdata(sizes) * np.sign(differences[differences != 0])
    if len(ranks) == 1:  # SciPy's permutation test takes no single observation
        return 1.0
    found = stats.permutation_test(
        (ranks,),
        lambda signed, axis: np.where(signed > 0, signed, 0).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
    )
    return float(found.pvalue)


def sign_flip(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test of mean zero.

    Under the null each difference is as likely as its negative, so p is the share of all sign patterns whose
    absolute sum reaches the observed one. Zeros have no sign and are dropped. Up to ``EXACT_UP_TO`` differing sessions
    the share is exact; beyond, it is ``(1 + hits) / (1 + draws)`` over sampled patterns, which is valid for any number
    of draws (Phipson and Smyth, 2010); from ``NORMAL_FROM`` on, it is the normal limit.

    Args:
        differences: float64 ``[S]``.
        seed: seed of the sampled patterns.
    """
    size = np.abs(differences[differences != 0])
    n, observed, total = len(size), abs(float(differences.sum())), float(size.sum())
    if n == 0:
        return 1.0
    if n >= NORMAL_FROM:
        return float(2.0 * stats.norm.sf(observed / np.sqrt((size**2).sum())))
    # Equal sums must compare as equal, independent of the order of summation.
    reached = observed - 1e-9 * total
    if n <= EXACT_UP_TO:
        plus = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs(2.0 * (plus @ size) - total) >= reached).mean())
    rng = numbered(seed, 2)
    hits, done, step = 0, 0, max(1, _BITS // n)
    while done < PERMUTATIONS:
        rows = min(step, PERMUTATIONS - done)
        plus = np.unpackbits(rng.integers(0, 256, size=(rows, -(-n // 8)), dtype=np.uint8), axis=1, count=n)
        hits += int((np.abs(2.0 * (plus.astype(np.float64) @ size) - total) >= reached).sum())
        done += rows
    return (1 + hits) / (1 + PERMUTATIONS)


def holm(p: list[float]) -> list[float]:
    """Holm's step-down correction of one family (S. Holm, 1979); NaN stays NaN and is not counted.

    As ``multipletests`` of statsmodels, which collects garbage first: 50 ms for each of the fifty families of a table.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]  # NaN is sorted last
    out = np.full(len(values), np.nan)
    out[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1.0)
    return out.tolist()
