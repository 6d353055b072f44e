"""Measures of all methods side by side: means with intervals over sessions and seeds, and against the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from langptune.comparison.bootstrap import interval, replicates
from langptune.interpretability.steering import EDITS, UP


@dataclass(frozen=True)
class Measure:
    """One measure of a profile.

    better: +1 where more is better, -1 where less is, 0 where neither is.
    block: the table it stands in.
    digits: after the point.
    meaning: one line under the table.
    """

    key: str
    title: str
    better: int
    block: str
    digits: int
    meaning: str


MEASURES = (
    Measure("words", "words", 0, "Wording", 1, "length of a profile in words"),
    Measure("reading_ease", "reading ease", 1, "Wording", 1, "Flesch's reading ease; 60 to 70 is plain English"),
    Measure("grade", "grade", -1, "Wording", 1, "Flesch and Kincaid's grade: years of US school to read it with ease"),
    Measure("repetition", "repeated", -1, "Wording", 3, "share of runs of three words that stood there before"),
    Measure("copied", "copied", -1, "Wording", 3, "share of the words that stand in a run copied from a history title"),
    Measure("sameness", "sameness", -1, "Wording", 3, "mean TF-IDF cosine to the other users' profiles"),
    Measure(
        "nats_per_token",
        "drift",
        -1,
        "Wording",
        3,
        "mean negative log-likelihood per token, in nats, under the untrained encoder and the same prompt",
    ),
    Measure("claims", "claims", 0, "Truth", 2, "claims per profile: genres, eras, titles, persons, themes"),
    Measure("supported", "faithful", 1, "Truth", 3, "share of a profile's claims that the shown history supports"),
    Measure(
        "advantage",
        "own against strangers",
        1,
        "Truth",
        3,
        "the same, less the share that strangers' histories support; 0 is what a stranger's profile earns",
    ),
    Measure(
        "told", "simulation", 1, "Truth", 3, "share of sessions whose next item a reader of the profile alone tells"
    ),
    *(
        Measure(
            f"steer_{edit}",
            edit,
            1,
            "Steering",
            3,
            f"change of the AUC of a taste's items after '{edit}', counted {'up' if edit in UP else 'down'}wards: "
            "positive is as meant",
        )
        for edit in EDITS
    ),
    *(
        Measure(f"obeyed_{edit}", f"{edit} obeyed", 1, "Steering", 2, f"share of '{edit}' edits that moved as meant")
        for edit in EDITS
    ),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over sessions and seeds, and its difference from the reference's; NaN where there is nothing to average.

    values: sessions that had a value, over all seeds.
    """

    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    values: int

    @property
    def differs(self) -> int:
        """+1 or -1 where the interval of the difference leaves out 0."""
        if np.isnan(self.difference_low):
            return 0
        return int(self.difference_low > 0) - int(self.difference_high < 0)


def per_session(
    measures: pl.DataFrame, simulation: pl.DataFrame, steering: pl.DataFrame
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """All measures of one run: the sessions in ascending order, and key -> float ``[S]``, NaN where undefined."""
    table = measures.join(simulation.select("session", "told"), on="session", how="left")
    table = table.with_columns(advantage=pl.col("supported") - pl.col("strangers"))
    for edit in EDITS:
        sign = 1 if edit in UP else -1
        moved = sign * pl.col("auc_change")
        own = steering.filter(pl.col("edit") == edit).group_by("session")
        told = own.agg(moved.mean().alias(f"steer_{edit}"), (moved > 0).mean().alias(f"obeyed_{edit}"))
        table = table.join(told, on="session", how="left")
    table = table.sort("session")
    values = {measure.key: table[measure.key].cast(pl.Float64).fill_null(np.nan).to_numpy() for measure in MEASURES}
    return table["session"].to_numpy(), values


def estimate(
    values: Mapping[str, np.ndarray], references: Mapping[str, str], resamples: int, confidence: float, seed: int
) -> dict[str, Estimate]:
    """Means with intervals of one measure.

    A session without a value (no claim was made, nothing could be edited) takes no part: the mean is the ratio of two
    sums, and so is every replicate of the bootstrap (``comparison.bootstrap``).

    Args:
        values: method -> float ``[S, R]``, the same sessions for all, NaN where undefined.
        references: method -> the method that its difference is from.
    """
    tables = {
        name: np.stack([np.nan_to_num(table), (~np.isnan(table)).astype(float)], axis=-1)
        for name, table in values.items()
    }
    draws = {name: _ratio(sums) for name, sums in replicates(tables, resamples, seed).items()}
    means = {name: float(_ratio(table.mean(axis=(0, 1))[None])[0]) for name, table in tables.items()}
    out = {}
    for name, table in tables.items():
        low, high = _interval(draws[name], confidence)
        other = [float("nan")] * 3
        reference = references.get(name, name)
        if name != reference:
            other = [means[name] - means[reference], *_interval(draws[name] - draws[reference], confidence)]
        out[name] = Estimate(means[name], low, high, *other, int(table[..., 1].sum()))
    return out


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Mean of what is defined, from ``[B, 2]`` sums of values and of their number."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)


def _interval(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    kept = draws[~np.isnan(draws)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = interval(kept, confidence)
    return float(low), float(high)
