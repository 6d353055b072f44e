"""Summarises the measures of all methods: means with intervals over sessions and seeds, tests against the reference.

The tests are those of the comparison (``comparison.significance``): a sign-flip permutation test paired by session, and
Holm's correction. The family is a block of the table with all its measures and methods, because a reader looks for
significant results in the whole block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from langptune.comparison import significance
from langptune.comparison.bootstrap import interval, replicates
from langptune.interpretability.steering import EDITS, UP


@dataclass(frozen=True)
class Measure:
    """One measure of a profile.

    better: +1 if higher is better, -1 if lower is, 0 if neither.
    block: the table that contains it.
    digits: number of decimals.
    meaning: its line under the table.
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
    Measure(
        "repetition", "repeated", -1, "Wording", 3, "share of runs of three words that occur earlier in the profile"
    ),
    Measure("copied", "copied", -1, "Wording", 3, "share of the words inside a run copied from a history title"),
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
        "the same, less the share that strangers' histories support; 0 is expected for a stranger's profile",
    ),
    Measure(
        "chosen", "simulation", 1, "Truth", 3, "share of sessions whose next item a reader of the profile alone chooses"
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
    """A mean over sessions and seeds, and its difference from the reference; NaN if there is nothing to average.

    values: number of sessions with a value, over all seeds.
    pairs: number of sessions in which both the method and its reference have a value, in at least one seed each.
    paired: mean over these sessions of method minus reference.
    p: p-value of the sign-flip permutation test of ``paired``; NaN for a reference, and without pairs.
    p_holm: p after Holm's correction over all tests of the measure's block.
    """

    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    values: int
    pairs: int
    paired: float
    p: float
    p_holm: float

    def mark(self, confidence: float) -> int:
        """+1 or -1 if the method is significantly above or below the reference after Holm's correction, else 0."""
        return int(np.sign(self.paired)) if self.p_holm < 1 - confidence else 0


def per_session(
    measures: pl.DataFrame, simulation: pl.DataFrame, steering: pl.DataFrame
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """All measures of one run: the sessions in ascending order, and key -> float ``[S]``, NaN if undefined."""
    table = measures.join(simulation.select("session", "chosen"), on="session", how="left")
    table = table.with_columns(advantage=pl.col("supported") - pl.col("strangers"))
    for edit in EDITS:
        sign = 1 if edit in UP else -1
        moved = sign * pl.col("auc_change")
        own = steering.filter(pl.col("edit") == edit).group_by("session")
        means = own.agg(moved.mean().alias(f"steer_{edit}"), (moved > 0).mean().alias(f"obeyed_{edit}"))
        table = table.join(means, on="session", how="left")
    table = table.sort("session")
    values = {measure.key: table[measure.key].cast(pl.Float64).fill_null(np.nan).to_numpy() for measure in MEASURES}
    return table["session"].to_numpy(), values


def estimates(
    measures: Sequence[Measure],
    values: Mapping[str, Mapping[str, np.ndarray]],
    references: Mapping[str, str],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, Estimate]]:
    """Means with intervals and tests of all measures: measure's key -> method -> estimate.

    A session without a value (no claim was made, nothing could be edited) is excluded from a mean, which is the ratio
    of two sums, as is every replicate of the bootstrap (``comparison.bootstrap``). A test uses the sessions in which
    both methods have a value, each with its mean over seeds.

    Args:
        values: measure's key -> method -> float ``[S, R]``, the same sessions for all, NaN if undefined.
        references: method -> its reference.
        seed: seed of the resamples and the sign flips.
    """
    out = {one.key: _estimates(values[one.key], references, resamples, confidence, seed) for one in measures}
    for block in dict.fromkeys(one.block for one in measures):
        family = [(one.key, name) for one in measures if one.block == block for name in out[one.key]]
        corrected = significance.holm([out[key][name].p for key, name in family])
        for (key, name), p in zip(family, corrected, strict=True):
            out[key][name] = replace(out[key][name], p_holm=p)
    return out


def _estimates(
    values: Mapping[str, np.ndarray], references: Mapping[str, str], resamples: int, confidence: float, seed: int
) -> dict[str, Estimate]:
    """The estimates of one measure, with uncorrected p-values."""
    found = resampled({name: table[..., None] for name, table in values.items()}, resamples, seed)
    means = {name: float(mean[0]) for name, (mean, _) in found.items()}
    draws = {name: drawn[:, 0] for name, (_, drawn) in found.items()}
    out = {}
    for name, table in values.items():
        low, high = interval_of(draws[name], confidence)
        other, paired = [float("nan")] * 3, (0, float("nan"), float("nan"))
        reference = references.get(name, name)
        if name != reference:
            other = [means[name] - means[reference], *interval_of(draws[name] - draws[reference], confidence)]
            paired = _paired(values[name], values[reference], seed)
        out[name] = Estimate(means[name], low, high, *other, int((~np.isnan(table)).sum()), *paired, float("nan"))
    return out


def _paired(method: np.ndarray, reference: np.ndarray, seed: int) -> tuple[int, float, float]:
    """Number of sessions with values of both, their mean difference, and its p-value; the tables are ``[S, R]``."""
    both = ~(np.isnan(method).all(axis=1) | np.isnan(reference).all(axis=1))
    if not both.any():
        return 0, float("nan"), float("nan")
    found = significance.paired(np.nanmean(method[both], axis=1), np.nanmean(reference[both], axis=1), seed)
    return found.n, found.difference, found.p_permutation


def resampled(values: Mapping[str, np.ndarray], resamples: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Means over sessions and seeds, and their bootstrap replicates; undefined values are left out of both.

    Args:
        values: name -> float ``[S, R, K]``, NaN if undefined; R and K may differ.

    Returns:
        name -> means float ``[K]`` and replicates float ``[B, K]``; replicate b of all names is over the same sessions.
    """
    tables = {name: np.stack([np.nan_to_num(table), ~np.isnan(table)], axis=-1) for name, table in values.items()}
    flat = {name: table.reshape(*table.shape[:2], -1) for name, table in tables.items()}
    return {
        name: (
            _ratio(tables[name].mean(axis=(0, 1))),
            _ratio(sums.reshape(len(sums), *tables[name].shape[2:])),
        )
        for name, sums in replicates(flat, resamples, seed).items()
    }


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Mean of the defined values, from ``[..., 2]`` sums of values and of their counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def interval_of(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """The interval of replicates ``[B]`` without the undefined ones; NaN if there are none."""
    kept = draws[~np.isnan(draws)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = interval(kept, confidence)
    return float(low), float(high)
