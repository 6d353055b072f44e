"""Analysis of the responses: shares with intervals, agreement, consistency, position bias, size of a next study.

**Shares** are ratios of two sums over the crossed table of respondents and questions: answers of a kind, over answers
that count. ``comparison.bootstrap.replicates`` resamples both together, with respondents as its sessions and questions
as its seeds; each resample draws new respondents and questions. A cell that does not count has zero in both sums, which
gives, for example, the share among answers other than "equal". The intervals generalise to other respondents *and*
other users; with few of either they are approximate, and with a single one they do not generalise to others of its kind
(the same limits as with few seeds, see there).

**Agreement** is Krippendorff's alpha over questions, with respondents as raters. Its interval resamples questions
only: a respondent who is drawn twice would agree perfectly with themselves.

**Independent answers**, one per respondent (the repeated pair), have Wilson's interval.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import krippendorff
import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from langptune.comparison import bootstrap
from langptune.randomness import numbered
from langptune.survey.power import plan
from langptune.survey.responses import REASONS, Excluded
from langptune.survey.schema import CLAIMS, EASE, PREFERENCES, Answer, Codebook, Pair, Response


@dataclass(frozen=True)
class Number:
    """One result: ``value`` with its interval; null if it cannot be computed, and ``note`` says why.

    n: number of observations; ``unit`` says of what. interval: the method of ``low`` and ``high``.
    """

    key: str
    label: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    interval: str
    note: str = ""


def analyse(
    codebook: Codebook,
    responses: list[Response],
    excluded: list[Excluded],
    resamples: int,
    confidence: float,
    seed: int,
    power: float = 0.8,
) -> dict[str, Any]:
    """Everything that is reported, as plain data (JSON).

    Args:
        responses: the valid responses.
        excluded: the excluded files; counted and named.
        resamples: resamples of each bootstrap.
        confidence: level of the intervals; 1 - confidence is the level of the planned test.
        seed: seed of all draws.
        power: target power of a next study.
    """
    asked = codebook.asked()
    table = _table(asked, responses)
    counts = Counter(left.reason for left in excluded)
    out: dict[str, Any] = {
        "schema": "langptune-survey-analysis/1",
        "survey": codebook.survey,
        "title": codebook.title,
        "reference": codebook.reference.title,
        "trained": codebook.trained.title,
        "respondents": len(responses),
        "questions": len(asked),
        "sessions": codebook.sessions,
        "identical": codebook.identical,
        "files": len(responses) + len(excluded),
        "excluded": {reason: counts[reason] for reason in REASONS},
        "excluded_files": [asdict(left) for left in excluded],
        "comments": sum(bool(response.comment.strip()) for response in responses),
        "median_seconds_per_question": None,
        "resamples": resamples,
        "confidence": confidence,
        "seed": seed,
        "numbers": [],
        "tests": {},
        "power": None,
    }
    if not responses:
        return out
    shown = len(codebook.pairs)
    out["median_seconds_per_question"] = float(np.median([response.seconds / shown for response in responses]))
    numbers = _shares(table, resamples, confidence, seed)
    numbers += _agreement(table, resamples, confidence, seed)
    numbers.append(_consistency(codebook, responses, confidence))
    out["numbers"] = [asdict(number) for number in numbers]
    out["tests"] = {
        "respondents": _sign_test(table["step"].mean(axis=1)),
        "questions": _sign_test(table["step"].mean(axis=0)),
    }
    out["power"] = plan(_score(table["step"]), 1 - confidence, power, seed)
    return out


def _table(asked: list[Pair], responses: list[Response]) -> dict[str, np.ndarray]:
    """``[respondents, questions]`` of integers.

    step: -2 (the reference, much) .. 2 (the trained one, much); easier: -1, 0, 1 likewise; place: -2 (A, much) .. 2 (B,
    much); unsupported_reference, unsupported_trained: an index of ``CLAIMS``.
    """
    names = ("step", "easier", "place", "unsupported_reference", "unsupported_trained")
    out = {name: np.zeros((len(responses), len(asked)), dtype=int) for name in names}
    for row, response in enumerate(responses):
        answers = {answer.question: answer for answer in response.answers}
        for column, pair in enumerate(asked):
            answer = answers[pair.question]
            left, right = pair.roles[answer.left], pair.roles[answer.right]
            cell = (row, column)
            out["step"][cell] = _step(pair, answer)
            out["easier"][cell] = (EASE.index(answer.easier) - 1) * _sign(pair, answer)
            out["place"][cell] = PREFERENCES.index(answer.preference) - 2
            out[f"unsupported_{left}"][cell] = CLAIMS.index(answer.unsupported_left)
            out[f"unsupported_{right}"][cell] = CLAIMS.index(answer.unsupported_right)
    return out


def _sign(pair: Pair, answer: Answer) -> int:
    """1 if the trained profile is on the right, -1 if it is on the left."""
    return 1 if pair.roles[answer.right] == "trained" else -1


def _step(pair: Pair, answer: Answer) -> int:
    return (PREFERENCES.index(answer.preference) - 2) * _sign(pair, answer)


def _score(step: np.ndarray) -> np.ndarray:
    """1 where the trained profile is preferred, 0 where the reference is, 0.5 where neither is."""
    return (np.sign(step) + 1) / 2


def _shares(table: dict[str, np.ndarray], resamples: int, confidence: float, seed: int) -> list[Number]:
    step, easier, place = table["step"], table["easier"], table["place"]
    everything = np.ones(step.shape)
    shares: list[tuple[str, str, np.ndarray, np.ndarray]] = [
        ("prefer_trained", "prefer the trained profile", step > 0, everything),
        ("prefer_equal", "about equal", step == 0, everything),
        ("prefer_reference", "prefer the reference", step < 0, everything),
        ("score", "preference for the trained profile, equal as one half", _score(step), everything),
        ("prefer_trained_decided", "prefer the trained profile, of those not equal", step > 0, step != 0),
        ("prefer_trained_much", "prefer the trained profile much", step == 2, everything),
        ("prefer_reference_much", "prefer the reference much", step == -2, everything),
        ("easier_trained", "trained profile easier to read", easier > 0, everything),
        ("easier_equal", "equally easy to read", easier == 0, everything),
        ("easier_reference", "reference easier to read", easier < 0, everything),
    ]
    for role in ("reference", "trained"):
        claims = table[f"unsupported_{role}"]
        shares += [
            (f"unsupported_{role}", f"{role}: claims something unsupported", claims == 0, everything),
            (f"unsupported_{role}_unsure", f"{role}: cannot tell", claims == 2, everything),
        ]
    difference = (table["unsupported_trained"] == 0).astype(float) - (table["unsupported_reference"] == 0)
    shares += [
        ("unsupported_difference", "unsupported claims, trained minus reference", difference, everything),
        ("chose_a", "position: chose A, of those not equal", place < 0, place != 0),
    ]
    stack = np.stack([part for _, _, top, bottom in shares for part in (top * bottom, bottom)], axis=-1).astype(float)
    draws = bootstrap.replicates({"answers": stack}, resamples, seed)["answers"]
    sums = stack.sum(axis=(0, 1))
    how = "bootstrap over respondents and questions"
    respondents, questions = step.shape
    note = "" if respondents > 1 else "one respondent: the interval says nothing about others"
    if questions == 1:
        note = f"{note}; one question: the interval says nothing about other users".removeprefix("; ")
    out = []
    for at, (key, label, _, _) in enumerate(shares):
        top, bottom = draws[:, 2 * at], draws[:, 2 * at + 1]
        n = int(sums[2 * at + 1])
        if n == 0:
            out.append(Number(key, label, None, None, None, 0, "answers", how, "nobody decided"))
            continue
        low, high = bootstrap.interval(top[bottom > 0] / bottom[bottom > 0], confidence)
        out.append(Number(key, label, sums[2 * at] / n, float(low), float(high), n, "answers", how, note))
    return out


def _agreement(table: dict[str, np.ndarray], resamples: int, confidence: float, seed: int) -> list[Number]:
    claims = np.concatenate([table["unsupported_reference"], table["unsupported_trained"]], axis=1)
    questions = table["step"].shape[1]
    kinds = [
        ("alpha_preference", "agreement on preference, five steps", table["step"] + 2, 5, "ordinal"),
        ("alpha_easier", "agreement on ease of reading", table["easier"] + 1, 3, "nominal"),
        ("alpha_unsupported", "agreement on unsupported claims", claims, 3, "nominal"),
    ]
    out = []
    for at, (key, label, values, levels, level) in enumerate(kinds):
        counts = np.stack([(values == value).sum(axis=0) for value in range(levels)], axis=1)
        how = "bootstrap over questions"
        name = (key, f"{label} (Krippendorff's alpha, {level})")
        if len(values) < 2:
            out.append(Number(*name, None, None, None, len(values), "respondents", how, "needs two respondents"))
            continue
        value = alpha(counts, level)
        if value is None:
            out.append(Number(*name, None, None, None, len(values), "respondents", how, "all answers are the same"))
            continue
        rng = numbered(seed, 3, at)
        # Both profiles of a question are resampled together: they were judged side by side.
        drawn = rng.integers(questions, size=(resamples, questions))
        if len(counts) > questions:
            drawn = np.concatenate([drawn, drawn + questions], axis=1)
        draws = [one for rows in drawn if (one := alpha(counts[rows], level)) is not None]
        low, high = bootstrap.interval(np.array(draws), confidence) if questions > 1 and draws else (None, None)
        note = "" if low is not None else "too few questions for an interval"
        ends = [None if end is None else float(end) for end in (low, high)]
        out.append(Number(*name, value, *ends, len(values), "respondents", how, note))
    return out


def alpha(counts: np.ndarray, level: str) -> float | None:
    """Krippendorff's alpha; None if all answers are the same, where it is undefined.

    Args:
        counts: int ``[units, values]``, how many raters gave a unit each value.
        level: ``nominal`` or ``ordinal``.
    """
    if (counts.sum(axis=0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement=level))


def _consistency(codebook: Codebook, responses: list[Response], confidence: float) -> Number:
    """How often the answers to a pair and to its repeat (sides swapped) agree: trained, equal or reference."""
    known = {pair.question: pair for pair in codebook.pairs}
    repeats = [pair for pair in codebook.pairs if pair.repeats is not None]
    same = []
    for response in responses:
        answers = {answer.question: answer for answer in response.answers}
        for pair in repeats:
            first = known[str(pair.repeats)]
            signs = [np.sign(_step(one, answers[one.question])) for one in (first, pair)]
            same.append(signs[0] == signs[1])
    name = ("consistency", "repeated pair: same direction again")
    if not same:
        return Number(*name, None, None, None, 0, "repeats", "Wilson", "no pair was repeated")
    low, high = proportion_confint(sum(same), len(same), alpha=1 - confidence, method="wilson")
    note = "" if len(repeats) == 1 else "several repeats a respondent: the interval is somewhat too narrow"
    return Number(*name, sum(same) / len(same), float(low), float(high), len(same), "repeats", "Wilson", note)


def _sign_test(means: np.ndarray) -> dict[str, Any]:
    """The numbers that favour the trained profile, neither, or the reference, and the exact two-sided sign test."""
    for_trained, for_reference = int((means > 0).sum()), int((means < 0).sum())
    decided = for_trained + for_reference
    p = float(stats.binomtest(for_trained, decided).pvalue) if decided else 1.0
    return {"trained": for_trained, "neither": len(means) - decided, "reference": for_reference, "p": p}
