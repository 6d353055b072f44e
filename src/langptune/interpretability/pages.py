"""Sections of the page of `make interpret`, in Markdown: cells, what is kept of a reference, weights, and judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from langptune import metrics
from langptune.interpretability.frontier import Kept
from langptune.interpretability.steering import EDITS
from langptune.interpretability.summary import Estimate
from langptune.interpretability.weights import METRIC
from langptune.markup import markdown, table_row

MARKS = {1: " ▲", -1: " ▼", 0: ""}
"""Significantly above, significantly below the reference, and neither."""


def cell(one: Estimate, digits: int, confidence: float) -> str:
    """A mean with its interval, and its mark against the reference."""
    if np.isnan(one.mean):
        return "–"
    return f"{one.mean:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]{MARKS[one.mark(confidence)]}"


def frontier_section(
    names: Mapping[str, str],
    meaning: str,
    shares: Mapping[str, Mapping[str, Kept]],
    obeyed: Mapping[str, Mapping[str, Estimate]],
    confidence: float,
) -> list[str]:
    """The shares of accuracy and steerability that each method keeps, and the shares of edits that are obeyed.

    Args:
        names: row -> its title.
        meaning: what the shares are of; it may contain titles.
        shares: head of a column -> row -> share.
        obeyed: head of a column -> row -> estimate.
    """
    heads = [*shares, *obeyed]
    parts = [
        "## Accuracy and steerability kept",
        "",
        f"{markdown(meaning)} [{100 * confidence:g}% bootstrap interval of the ratio, paired by session]. –: the "
        "reference's own interval is not above 0. Obeyed: share of the edits that moved as meant.",
        "",
        table_row(["method", *heads]),
        "|---|" + "---:|" * len(heads),
    ]
    for name, title in names.items():
        cells = [_share(own[name]) for own in shares.values()] + [_mean(own[name]) for own in obeyed.values()]
        parts.append(table_row([markdown(title), *cells]))
    return [*parts, ""]


def weight_section(
    names: Mapping[str, str],
    weighed: Mapping[str, Sequence[Mapping[str, Any]]],
    chosen: Mapping[str, Sequence[float]],
    steered: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Accuracy and steering without popularity, beside those at a method's own weight.

    Args:
        names: row -> its title.
        weighed: row -> ``weights.summarise``.
        chosen: row -> the weight of each seed.
        steered: edit -> row -> change of the AUC at the method's own weight.
    """
    heads = ["weight", f"{metrics.title(METRIC)}, validation", "ranked by", *EDITS]
    parts = [
        "## Popularity",
        "",
        "Left of the arrow, the text alone (weight 0); right of it, the method's weight. "
        f"{metrics.title(METRIC)} is that of the validation sessions on which the weight was chosen, ranked by the "
        "texts of the next column; the changes of the AUC are those of the test profiles. All weights, with intervals: "
        "steering_weights.csv.",
        "",
        table_row(["method", *heads]),
        "|---|" + "---:|" * len(heads),
    ]
    for name, title in names.items():
        alone = {line["edit"]: line["auc_change"] for line in weighed[name] if line["weight"] == 0}
        accuracy = {line["weight"]: line[f"validation_{METRIC}"] for line in weighed[name]}
        used = [accuracy.get(weight) for weight in chosen[name]]
        mean = None if None in used else float(np.mean(used))
        cells = [
            ", ".join(f"{weight:g}" for weight in dict.fromkeys(chosen[name])),
            f"{_number(accuracy.get(0.0), 4)} → {_number(mean, 4)}",
            next((line["validation_text"] for line in weighed[name]), "") or "–",
            *(f"{_number(alone.get(edit), 3)} → {_number(steered[edit][name], 3)}" for edit in EDITS),
        ]
        parts.append(table_row([markdown(title), *cells]))
    return [*parts, ""]


def judge_section(reference: str, judged: Sequence[Mapping[str, Any]], confidence: float) -> list[str]:
    """The judges' comparisons of each method with the reference.

    Args:
        reference: its title, in Markdown.
        judged: a mapping per method and judge, ``judge.summary.summary`` with the titles ``method`` and ``judge``.
    """
    heads = ["sessions", "preference", "orders agree", "position", "answers without verdict", "agreement (alpha)"]
    parts = [
        "## Judges",
        "",
        f"Each judge compared a method's profiles with those of {reference}, in both orders. Preference: wins "
        f"and half of the ties, of the sessions with a verdict; 0.5 is indifference [{100 * confidence:g}% interval]. "
        "Orders that disagree are ties. Position: of the verdicts for a side, those for the first one; 0.5 is no bias.",
        "",
        table_row(["method", "judge", *heads]),
        "|---|---|" + "---:|" * len(heads),
    ]
    number = lambda value, digits=2: "–" if value is None else f"{value:.{digits}f}"  # noqa: E731
    for line in judged:
        low, high = number(line["preference_low"]), number(line["preference_high"])
        cells = [
            str(line["sessions"]),
            f"{number(line['preference'])} [{low}, {high}]" if line["preference"] is not None else "–",
            number(line["order_consistency"]),
            number(line["first_share"]),
            number(line["unparsed_answers"]),
            number(line["agreement"]),
        ]
        parts.append(table_row([markdown(line["method"]), markdown(line["judge"]), *cells]))
    return [*parts, ""]


def _share(one: Kept) -> str:
    return "–" if np.isnan(one.share) else f"{100 * one.share:.0f}% [{100 * one.low:.0f}%, {100 * one.high:.0f}%]"


def _mean(one: Estimate) -> str:
    return "–" if np.isnan(one.mean) else f"{one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.{digits}f}"
