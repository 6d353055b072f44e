"""Summary of verdicts with intervals, and of the judge's quality: position bias, consistency, agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from langptune.comparison.bootstrap import interval, replicates
from langptune.errors import UserError

OUTCOMES = ("win", "loss", "tie", "unparsed")


def summary(verdicts: pl.DataFrame, resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    """Judges on one method against one reference.

    Args:
        verdicts: rows of ``judge.ask.VERDICTS`` with a column ``judge`` (its name) and, where the method has several
            seeds, ``run_seed``; every seed of a judge over the same sessions.
        resamples, seed: of the bootstrap over sessions and seeds.
        confidence: of the interval.

    Returns:
        ``judges``: name -> ``sessions``; ``seeds``; ``win_share``, ``loss_share``, ``tie_share``, ``unparsed_share`` of
        sessions, which add up to 1; ``preference``, (wins + ties / 2) over the sessions with an outcome, 0.5 where
        nothing is preferred, with ``preference_low`` and ``preference_high`` (all three None without any outcome);
        ``order_consistency``, the share of sessions with an outcome on which both orders agree; ``inconsistent``, how
        many do not; ``first_share``, of single verdicts that prefer a side, those for the first (0.5: no bias); and
        ``unparsed_answers``, the share of answers without a verdict.
        ``agreement``: Krippendorff's alpha (nominal) of the judges' outcomes; None with one judge, or where undefined.

    Raises:
        UserError: no verdicts, or seeds over different sessions.
    """
    if verdicts.is_empty():
        raise UserError("no verdicts to summarise; judge some sessions first")
    if "run_seed" not in verdicts.columns:
        verdicts = verdicts.with_columns(run_seed=pl.lit(0))
    tables = {
        str(name): table.sort("session", "run_seed", "swapped")
        for (name,), table in verdicts.group_by("judge", maintain_order=True)
    }
    summaries = {name: _one(name, table, resamples, confidence, seed) for name, table in tables.items()}
    return {"judges": summaries, "agreement": agreement(tables)}


def _one(name: str, table: pl.DataFrame, resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    cells = table.filter(~pl.col("swapped")).sort("session", "run_seed")
    sessions, seeds = cells["session"].n_unique(), cells["run_seed"].n_unique()
    if len(cells) != sessions * seeds or len(table) != 2 * len(cells):
        raise UserError(
            f"judge '{name}': {len(table)} verdicts of {sessions} sessions and {seeds} seeds; some are missing"
        )
    outcomes = cells["outcome"].to_numpy()
    shares = {key: float(np.mean(outcomes == key)) for key in OUTCOMES}
    parsed = outcomes != "unparsed"
    points = np.select([outcomes == "win", outcomes == "tie"], [1.0, 0.5], 0.0)
    values = np.stack([points, parsed.astype(float)], axis=-1).reshape(sessions, seeds, 2)
    means = values.mean(axis=(0, 1))
    preference = low = high = None
    if means[1]:
        # A ratio of two means over the same resample; undefined in a resample without any outcome.
        drawn = replicates({name: values}, resamples, seed)[name]
        drawn = drawn[drawn[:, 1] > 0]
        preference = float(means[0] / means[1])
        low, high = (float(value) for value in interval(drawn[:, 0] / drawn[:, 1], confidence))
    both = table.select("session", "run_seed", "swapped", "verdict").pivot(
        "swapped", index=["session", "run_seed"], values="verdict"
    )
    opposite = pl.col("false").replace({"first": "second", "second": "first"})
    both = both.filter((pl.col("false") != "unparsed") & (pl.col("true") != "unparsed"))
    agree = both.select((opposite == pl.col("true")).alias("agree"))["agree"]
    sided = table.filter(pl.col("verdict").is_in(["first", "second"]))["verdict"]
    return {
        "sessions": sessions,
        "seeds": seeds,
        **{f"{key}_share": value for key, value in shares.items()},
        "preference": preference,
        "preference_low": low,
        "preference_high": high,
        "order_consistency": float(agree.mean()) if len(agree) else None,
        "inconsistent": int((~agree).sum()),
        "first_share": float((sided == "first").mean()) if len(sided) else None,
        "unparsed_answers": float((table["verdict"] == "unparsed").mean()),
    }


def agreement(tables: Mapping[str, pl.DataFrame]) -> float | None:
    """Krippendorff's alpha (nominal) of several judges' outcomes; unparsed sessions are missing values."""
    import krippendorff

    codes = {"win": 0.0, "loss": 1.0, "tie": 2.0, "unparsed": None}
    columns = [
        table.filter(~pl.col("swapped")).select(
            "session", "run_seed", pl.col("outcome").replace_strict(codes, return_dtype=pl.Float64).alias(name)
        )
        for name, table in tables.items()
    ]
    joined = columns[0]
    for column in columns[1:]:
        joined = joined.join(column, on=["session", "run_seed"], how="full", coalesce=True)
    ratings = joined.drop("session", "run_seed").to_numpy().astype(float).T
    pairable = ratings[:, (~np.isnan(ratings)).sum(axis=0) > 1]
    # With fewer than two distinct outcomes, chance agreement is certain and alpha is undefined.
    if len(np.unique(pairable[~np.isnan(pairable)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=ratings, level_of_measurement="nominal"))
