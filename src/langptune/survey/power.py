"""Sample size of a next study, by simulation from the variances of this one.

The model: an answer is 1, 0.5 or 0 (the trained profile, equal, the reference), and is the sum of a mean, a respondent
effect, a question effect and a residual. The three variances are estimated by moments from the two-way table (negative
estimates become zero). A study of n respondents and q questions is simulated through its analysis of variance: with
normal effects the mean is normal and the three sums of squares are scaled chi-squares, all independent, so they are
drawn directly without filling a table.

The test: the mean differs from 0.5 by more than the normal quantile times the standard error of the crossed bootstrap
in the analysis, which the same sums of squares give in closed form: the test is whether the interval excludes 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from langptune.randomness import numbered

SIMULATIONS = 4_000
"""Simulated studies for each size: at a power of 0.8 the error is 0.013 (95%)."""
MOST = 10_000
"""The largest number of respondents that is considered."""
SMALLEST = 0.1
"""The planned effect if none was observed: 60% against 50%."""
NONE = 0.005
"""An observed effect below this (half a percentage point) counts as none."""


@dataclass(frozen=True)
class Variances:
    """Variance components of an answer: between respondents, between questions, and residual."""

    respondent: float
    question: float
    rest: float


def variances(score: np.ndarray) -> Variances:
    """Moment estimates; negative ones become zero.

    Args:
        score: float ``[respondents, questions]``, at least two of each.
    """
    n, q = score.shape
    rows, columns, mean = score.mean(axis=1), score.mean(axis=0), score.mean()
    rest = ((score - rows[:, None] - columns + mean) ** 2).sum() / ((n - 1) * (q - 1))
    by_row = q * ((rows - mean) ** 2).sum() / (n - 1)
    by_column = n * ((columns - mean) ** 2).sum() / (q - 1)
    return Variances(max(0.0, (by_row - rest) / q), max(0.0, (by_column - rest) / n), float(rest))


def power(effect: float, components: Variances, n: int, q: int, level: float, seed: int) -> float:
    """Share of simulated studies that detect a preference in the right direction.

    Args:
        effect: distance of the true mean from 0.5, positive.
        components: variance components of an answer.
        n: number of respondents.
        q: number of questions.
        level: two-sided level of the test.
        seed: seed of the draws; every n uses the same uniform numbers, so that power grows smoothly.
    """
    u = numbered(seed, 4).random((4, SIMULATIONS))
    by_row = components.respondent + components.rest / q
    by_column = components.question + components.rest / n
    mean = effect + stats.norm.ppf(u[0]) * np.sqrt(
        components.respondent / n + components.question / q + components.rest / (n * q)
    )
    # Sums of squares of row means, column means and residuals, divided by the number of cells as in the bootstrap.
    rows = by_row * stats.chi2.ppf(u[1], n - 1) / n
    columns = by_column * stats.chi2.ppf(u[2], q - 1) / q
    rest = components.rest * stats.chi2.ppf(u[3], (n - 1) * (q - 1)) / (n * q)
    error = np.sqrt(rows / n + columns / q + rest / (n * q))
    return float((mean > stats.norm.ppf(1 - level / 2) * error).mean())


def needed(effect: float, components: Variances, q: int, level: float, target: float, seed: int) -> int | None:
    """The smallest number of respondents with at least the target power; None if ``MOST`` are not enough."""
    if power(effect, components, MOST, q, level, seed) < target:
        return None
    low, high = 1, 2
    while power(effect, components, high, q, level, seed) < target:
        low, high = high, min(MOST, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        if power(effect, components, middle, q, level, seed) < target:
            low = middle
        else:
            high = middle
    return high


def plan(score: np.ndarray, level: float, target: float, seed: int) -> dict[str, Any]:
    """Sizes of a next study, for the observed effect and for ``SMALLEST``.

    If no effect was observed (less than ``NONE``), only ``SMALLEST`` is planned for: no number of respondents detects
    an effect of zero. If even ``MOST`` respondents are too few for the same number of questions, the questions are
    doubled, up to 16 times as many.

    Args:
        score: float ``[respondents, questions]``: 1 trained, 0.5 equal, 0 reference.
        level: two-sided level of the test.
        target: target power.
        seed: seed of the draws.

    Returns:
        ``effect``, ``variances``, ``level``, ``power``, ``sizes`` (each ``effect``, ``questions``, ``respondents``,
        null where none suffices) and a ``note``; only the note where nothing can be estimated.
    """
    n, q = score.shape
    if n < 2 or q < 2:
        return {"note": "variances need at least two respondents and two questions", "sizes": []}
    components, effect = variances(score), abs(float(score.mean()) - 0.5)
    if components.respondent + components.question + components.rest == 0:
        return {"note": "all answers are the same: there is no variance to plan with", "sizes": []}
    note = ""
    effects = [effect, SMALLEST]
    if effect < NONE:
        note = f"no effect observed; planned for {SMALLEST:g}, that is {50 + 100 * SMALLEST:g}% against 50%"
        effects = [SMALLEST]
    sizes = []
    for wanted in effects:
        for more in (1, 2, 4, 8, 16):
            found = needed(wanted, components, more * q, level, target, seed)
            if found is not None or more == 16:
                sizes.append({"effect": wanted, "questions": more * q, "respondents": found})
                break
    return {
        "effect": effect,
        "variances": {"respondent": components.respondent, "question": components.question, "rest": components.rest},
        "level": level,
        "power": target,
        "sizes": sizes,
        "note": note,
    }
