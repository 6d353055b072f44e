"""How many respondents a next study needs, by simulation from the variances of this one.

The model: an answer is 1, one half or 0 (the trained profile, equal, the reference), and is the sum of a mean, an
effect of the respondent, an effect of the question and a rest. The three variances are estimated by moments from the
two-way table (what falls below zero is taken as zero). A study of n respondents and q questions is simulated by its
analysis of variance: with normal effects the mean is normal and the three sums of squares are scaled chi-squares, all
independent, so that they are drawn directly and no table need be filled.

The test: the mean differs from one half by more than the normal quantile times the standard error that the crossed
bootstrap of the analysis has, which the same sums of squares give in closed form. So it is the test "the interval
leaves out one half".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from langptune.randomness import numbered

SIMULATIONS = 4_000
"""Studies for each size: power is known to within 0.013 (95%) at 0.8."""
MOST = 10_000
"""Respondents beyond which no number is given."""
SMALLEST = 0.1
"""The effect planned for where none was observed: 60% against 50%."""
NONE = 0.005
"""An observed effect below this (half a percentage point) counts as none."""


@dataclass(frozen=True)
class Variances:
    """Of one answer: between respondents, between questions, and the rest."""

    respondent: float
    question: float
    rest: float


def variances(score: np.ndarray) -> Variances:
    """Moment estimates, cut at zero.

    Args:
        score: float ``[respondents, questions]``, at least two of each.
    """
    n, q = score.shape
    rows, columns, mean = score.mean(axis=1), score.mean(axis=0), score.mean()
    rest = ((score - rows[:, None] - columns + mean) ** 2).sum() / ((n - 1) * (q - 1))
    by_row = q * ((rows - mean) ** 2).sum() / (n - 1)
    by_column = n * ((columns - mean) ** 2).sum() / (q - 1)
    return Variances(max(0.0, (by_row - rest) / q), max(0.0, (by_column - rest) / n), float(rest))


def power(effect: float, told: Variances, n: int, q: int, level: float, seed: int) -> float:
    """Share of simulated studies that tell a preference from one half, in the right direction.

    Args:
        effect: distance of the true mean from one half, positive.
        told: the variances.
        n: respondents.
        q: questions.
        level: two-sided level of the test.
        seed: of the draws; the same uniform numbers serve every n, so that power grows smoothly.
    """
    u = numbered(seed, 4).random((4, SIMULATIONS))
    by_row = told.respondent + told.rest / q
    by_column = told.question + told.rest / n
    mean = effect + stats.norm.ppf(u[0]) * np.sqrt(told.respondent / n + told.question / q + told.rest / (n * q))
    # Sums of squares of row means, of column means, of the rest; over their number of cells, as resampling has them.
    rows = by_row * stats.chi2.ppf(u[1], n - 1) / n
    columns = by_column * stats.chi2.ppf(u[2], q - 1) / q
    rest = told.rest * stats.chi2.ppf(u[3], (n - 1) * (q - 1)) / (n * q)
    error = np.sqrt(rows / n + columns / q + rest / (n * q))
    return float((mean > stats.norm.ppf(1 - level / 2) * error).mean())


def needed(effect: float, told: Variances, q: int, level: float, target: float, seed: int) -> int | None:
    """The fewest respondents with at least the target power; None where ``MOST`` are not enough."""
    if power(effect, told, MOST, q, level, seed) < target:
        return None
    low, high = 1, 2
    while power(effect, told, high, q, level, seed) < target:
        low, high = high, min(MOST, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        if power(effect, told, middle, q, level, seed) < target:
            low = middle
        else:
            high = middle
    return high


def plan(score: np.ndarray, level: float, target: float, seed: int) -> dict[str, Any]:
    """Sizes of a next study, for the observed effect and for ``SMALLEST``.

    Where no effect was observed (less than ``NONE``), its size is that for ``SMALLEST``: no number of respondents tells
    nothing from nothing. Where even ``MOST`` respondents are too few for as many questions, questions are doubled, up
    to 16 times as many.

    Args:
        score: float ``[respondents, questions]``: 1 trained, 0.5 equal, 0 reference.
        level: two-sided.
        target: power.
        seed: of the draws.

    Returns:
        ``effect``, ``variances``, ``level``, ``power``, ``sizes`` (each ``effect``, ``questions``, ``respondents``,
        null where none suffices) and a ``note``; only the note where nothing can be estimated.
    """
    n, q = score.shape
    if n < 2 or q < 2:
        return {"note": "variances need at least two respondents and two questions", "sizes": []}
    told, effect = variances(score), abs(float(score.mean()) - 0.5)
    if told.respondent + told.question + told.rest == 0:
        return {"note": "all answers are the same: there is no variance to plan with", "sizes": []}
    note = ""
    effects = [effect, SMALLEST]
    if effect < NONE:
        note = f"no effect observed; planned for {SMALLEST:g}, that is {50 + 100 * SMALLEST:g}% against 50%"
        effects = [SMALLEST]
    sizes = []
    for wanted in effects:
        for more in (1, 2, 4, 8, 16):
            found = needed(wanted, told, more * q, level, target, seed)
            if found is not None or more == 16:
                sizes.append({"effect": wanted, "questions": more * q, "respondents": found})
                break
    return {
        "effect": effect,
        "variances": {"respondent": told.respondent, "question": told.question, "rest": told.rest},
        "level": level,
        "power": target,
        "sizes": sizes,
        "note": note,
    }
