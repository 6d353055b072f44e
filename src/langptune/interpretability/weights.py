"""Steering along the weights of popularity: what each weight does to edits, beside the accuracy on validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from langptune.errors import UserError
from langptune.interpretability.steering import EDITS, UP
from langptune.interpretability.summary import interval_of, resampled
from langptune.reading import read_json

METRIC = "ndcg@10"
"""The metric of the grid of weights that is shown beside the steering."""

COLUMNS = {
    "method": pl.String,
    "models": pl.String,
    "seeds": pl.Int64,
    "weight": pl.Float64,
    "chosen_by": pl.Int64,
    "validation_text": pl.String,
    f"validation_{METRIC}": pl.Float64,
    "edit": pl.String,
    **dict.fromkeys(("auc_change", "low", "high", "obeyed", "obeyed_low", "obeyed_high"), pl.Float64),
}
"""Columns of ``steering_weights.csv`` (docs/interpretability.md)."""


@dataclass(frozen=True)
class Validation:
    """The metric of each weight of a grid, on validation sessions.

    text: what these sessions were ranked by, ``profiles`` or ``history``.
    values: weight -> metric.
    """

    text: str
    values: dict[float, float]


def read_validation(path: str) -> Validation:
    """The grid in the file of a chosen weight.

    Raises:
        UserError: the file cannot be read or contains no grid.
    """
    try:
        found = read_json(path)
        return Validation(str(found["text"]), {float(row["weight"]): float(row[METRIC]) for row in found["grid"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no grid of weights in it ({type(error).__name__}: {error}); delete it and rerun the rule that "
            "makes it"
        ) from None


def by_weight(steering: pl.DataFrame, sessions: Sequence[int]) -> dict[float, np.ndarray]:
    """The effects of one run's edits at each weight, averaged over the edits of a session.

    Args:
        steering: columns session, edit, weight and auc_change.
        sessions: the measured sessions, in order.

    Returns:
        Weight (ascending) -> float ``[S, E, 2]``: for each of ``EDITS`` the change of the AUC, positive as meant, and
        the share of edits that moved as meant. NaN where a session has no such edit.
    """
    row, column = ({key: at for at, key in enumerate(keys)} for keys in (sessions, EDITS))
    sign = pl.when(pl.col("edit").is_in(sorted(UP))).then(1.0).otherwise(-1.0)
    means = (
        steering.with_columns(moved=sign * pl.col("auc_change"))
        .group_by("weight", "edit", "session")
        .agg(pl.col("moved").mean(), obeyed=(pl.col("moved") > 0).mean())
    )
    out = {}
    for weight in sorted(means["weight"].unique()):
        table = np.full((len(row), len(EDITS), 2), np.nan)
        for _, edit, session, *effect in means.filter(pl.col("weight") == weight).iter_rows():
            table[row[session], column[edit]] = effect
        out[weight] = table
    return out


def summarise(
    name: str,
    runs: Sequence[dict[float, np.ndarray]],
    chosen: Sequence[float],
    validations: Sequence[Validation],
    resamples: int,
    confidence: float,
    seed: int,
) -> list[dict[str, object]]:
    """One row per weight and edit of a method: accuracy on validation, mean effect and share obeyed, with intervals.

    Args:
        name: the method's name in the bootstrap, as in the table of measures.
        runs: ``by_weight`` of each seed; weights that a seed lacks are left out.
        chosen: the weight of each seed's scores.
        validations: the grid of each seed; empty if the weight was not chosen on validation.
    """
    weights = sorted(set(runs[0]).intersection(*runs[1:]))
    if not weights:
        return []
    table = np.stack([np.stack([run[weight] for weight in weights], axis=1) for run in runs], axis=1)
    means, draws = resampled({name: table.reshape(*table.shape[:2], -1)}, resamples, seed)[name]
    shape = (len(weights), len(EDITS), 2)
    means, draws = means.reshape(shape), draws.reshape(-1, *shape)
    out = []
    for at, weight in enumerate(weights):
        known = [validation.values.get(weight) for validation in validations]
        accuracy = [value for value in known if value is not None]
        for turn, edit in enumerate(EDITS):
            (low, high), (obeyed_low, obeyed_high) = (
                interval_of(draws[:, at, turn, kind], confidence) for kind in (0, 1)
            )
            out.append(
                {
                    "weight": weight,
                    "chosen_by": sum(one == weight for one in chosen),
                    "validation_text": ", ".join(sorted({validation.text for validation in validations})),
                    f"validation_{METRIC}": float(np.mean(accuracy))
                    if accuracy and len(accuracy) == len(runs)
                    else None,
                    "edit": edit,
                    "auc_change": float(means[at, turn, 0]),
                    "low": low,
                    "high": high,
                    "obeyed": float(means[at, turn, 1]),
                    "obeyed_low": obeyed_low,
                    "obeyed_high": obeyed_high,
                }
            )
    return out
