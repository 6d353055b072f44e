"""The numbers of a comparison: means with intervals and each method against the reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from langptune.comparison import bootstrap, significance
from langptune.comparison.grid import GROUPS, Grid, PublishedValue, Row, own_reference
from langptune.comparison.significance import Paired
from langptune.config.base import nearest
from langptune.errors import UserError


@dataclass(frozen=True)
class Against:
    """A method against the reference on one metric: effect, interval, p after Holm within the metric."""

    effect: Paired
    low: float
    high: float
    p_holm: float
    p_ttest_holm: float
    p_wilcoxon_holm: float


@dataclass(frozen=True)
class Line:
    """One line of the table.

    means, low, high: float64 ``[M]``; NaN where the row is missing.
    reference: the row that this one is tested against (``grid.own_reference``); of a reference's row, the row itself.
    against: per metric; empty for the reference, for a missing row, and where the reference is missing.
    """

    row: Row
    reference: Row
    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    against: tuple[Against, ...]


@dataclass(frozen=True)
class Results:
    """A comparison, its lines in table order: by group, then by the main metric, missing rows last.

    references: the rows of the reference method, one for each of its models, in the grid's order.
    published: (row's key, index of the metric) -> published number; only what is known.
    """

    grid: Grid
    lines: tuple[Line, ...]
    references: tuple[Row, ...]
    main_metric: str
    resamples: int
    confidence: float
    published: dict[tuple[str, int], float]

    @property
    def main(self) -> int:
        """Index of the main metric."""
        return self.grid.column(self.main_metric)

    @property
    def published_metrics(self) -> set[int]:
        """Indices of the metrics by which some row has a published number: each has a column for it."""
        return {metric for _, metric in self.published}

    @property
    def missing_runs(self) -> int:
        """Runs that should be there and are not."""
        return sum(len(line.row.expected) - len(line.row.seeds) for line in self.lines)

    def mark(self, line: Line, metric: int) -> int:
        """+1 or -1 where a line is significantly better or worse than the reference after Holm, else 0."""
        if not line.against or not line.against[metric].p_holm < 1 - self.confidence:
            return 0
        return int(np.sign(line.against[metric].effect.difference))


def compare(
    grid: Grid,
    reference: str,
    main_metric: str,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    published: Iterable[PublishedValue] = (),
) -> Results:
    """Intervals for every row and tests of every row against the reference of the same models.

    Args:
        grid: the runs.
        reference: a method; where it is run with several models, ``grid.own_reference`` chooses the run for each row.
        main_metric: sorts the lines.
        resamples: of the bootstrap.
        confidence: of the intervals; 1 - confidence is the level of the marks.
        seed: of all draws.
        published: numbers to stand beside rows of the grid; they take part in no test.

    Raises:
        UserError: a reference or main metric that the grid does not have, or a published number by such a metric.
    """
    main = grid.column(main_metric)
    candidates = [row for row in grid.rows if row.method == reference]
    if not candidates:
        raise UserError(
            f"reference '{reference}' is not among the compared methods"
            + nearest(reference, [row.method for row in grid.rows])
        )
    by_models = {row.models: row for row in candidates}
    bases = {row.key: by_models[own_reference(row.models, list(by_models))] for row in grid.rows}
    ran = [row for row in grid.rows if not row.missing]
    draws = bootstrap.replicates({row.key: row.values for row in ran}, resamples, seed)
    against = _against(grid, ran, bases, draws, confidence, seed)
    lines = []
    for row in grid.rows:
        if row.missing:
            low = high = means = np.full(len(grid.metrics), np.nan)
        else:
            means = row.values.mean(axis=(0, 1))
            low, high = bootstrap.interval(draws[row.key], confidence)
        lines.append(Line(row, bases[row.key], means, low, high, against.get(row.key, ())))
    order = {group: at for at, group in enumerate(dict.fromkeys([*GROUPS, *(row.group for row in grid.rows)]))}
    lines.sort(key=lambda line: (order[line.row.group], -np.nan_to_num(line.means[main], nan=-np.inf)))
    beside = {(f"{told.method}/{told.models}", grid.column(told.metric)): told.value for told in published}
    return Results(grid, tuple(lines), tuple(candidates), main_metric, resamples, confidence, beside)


def _against(
    grid: Grid, ran: list[Row], bases: dict[str, Row], draws: dict[str, np.ndarray], confidence: float, seed: int
) -> dict[str, tuple[Against, ...]]:
    pairs = [(row, base) for row in ran if (base := bases[row.key]).key != row.key and not base.missing]
    if not pairs:
        return {}
    by_metric: list[list[Against]] = []
    for metric in range(len(grid.metrics)):
        effects = [
            significance.paired(row.session_means(metric), base.session_means(metric), seed) for row, base in pairs
        ]
        corrected = [
            significance.holm([getattr(effect, test) for effect in effects])
            for test in ("p_permutation", "p_ttest", "p_wilcoxon")
        ]
        ends = [
            bootstrap.interval(draws[row.key][:, metric] - draws[base.key][:, metric], confidence)
            for row, base in pairs
        ]
        by_metric.append(
            [
                Against(effect, float(low), float(high), *p)
                for effect, (low, high), *p in zip(effects, ends, *corrected, strict=True)
            ]
        )
    return {row.key: cells for (row, _), cells in zip(pairs, zip(*by_metric, strict=True), strict=True)}


def gains(results: Results) -> pl.DataFrame:
    """Per session and row (missing rows left out), in the order of the table.

    Columns: ``session``, ``method``, ``models``; ``value``, the main metric averaged over seeds;
    ``difference``, the same minus that of the row's reference; ``rank_gain``, mean over seeds of log2 of the rank,
    reference minus method (+1: the method's target stands twice as high). The last two are null where the row's
    reference is missing.
    """
    main = results.main
    frames = []
    for line in results.lines:
        row, base = line.row, line.reference
        if row.missing:
            continue
        value = row.session_means(main)
        frame = pl.DataFrame({"session": results.grid.sessions, "value": value}).select(
            "session", pl.lit(row.method).alias("method"), pl.lit(row.models).alias("models"), "value"
        )
        if base.missing:
            empty = pl.lit(None, dtype=pl.Float64)
            frames.append(frame.with_columns(empty.alias("difference"), empty.alias("rank_gain")))
        else:
            climbed = np.log2(base.ranks).mean(axis=1) - np.log2(row.ranks).mean(axis=1)
            frames.append(
                frame.with_columns(
                    pl.Series("difference", value - base.session_means(main)), pl.Series("rank_gain", climbed)
                )
            )
    return pl.concat(frames)
