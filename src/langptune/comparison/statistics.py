"""The numbers of a comparison: means with intervals, each method against the reference, and the named contrasts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from langptune.comparison import bootstrap, significance
from langptune.comparison.grid import (
    GROUPS,
    ContrastEntry,
    Grid,
    PublishedValue,
    Row,
    beside,
    contrasted,
    own_reference,
    shared_values,
)
from langptune.comparison.significance import Paired
from langptune.config.base import nearest
from langptune.errors import UserError
from langptune.metrics import direction


@dataclass(frozen=True)
class Against:
    """One row against another on one metric: effect, interval, p after Holm within the metric."""

    effect: Paired
    low: float
    high: float
    p_holm: float
    p_ttest_holm: float
    p_wilcoxon_holm: float


@dataclass(frozen=True)
class Line:
    """One line of the table.

    means, low, high: float64 ``[M]``; NaN if the row is missing.
    reference: the row that this one is tested against (``grid.own_reference``); the row itself if it is a reference.
    against: tests per metric; empty for a reference, a missing row, and if the reference is missing.
    """

    row: Row
    reference: Row
    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    against: tuple[Against, ...]


@dataclass(frozen=True)
class Contrast:
    """One named pair of rows, or pair of such pairs.

    name, title: from the config; the title may be empty.
    seeds: number of seeds that the rows share; 0 if a row is missing or there is no common seed.
    means, against_means: means of the two sides, float64 ``[M]`` over those seeds; NaN if there are none. With
        ``beyond`` the two sides are the differences ``of`` minus ``against``, and the first of ``beyond`` minus the
        second.
    tests: tests of the first side minus the second, per metric; empty if there are none.
    beyond: two rows or none.
    """

    name: str
    title: str
    of: Row
    against: Row
    seeds: int
    means: np.ndarray
    against_means: np.ndarray
    tests: tuple[Against, ...]
    beyond: tuple[Row, ...] = ()

    @property
    def expected(self) -> int:
        """The number of seeds that the rows should share."""
        several = [set(row.expected) for row in (self.of, self.against, *self.beyond) if not row.one_for_all]
        return len(set.intersection(*several)) if several else 1


@dataclass(frozen=True)
class Results:
    """A comparison, its lines in table order: by group, then by the main metric, missing rows last.

    references: the rows of the reference method, one for each of its models, in the grid's order.
    published: (row's key, index of the metric) -> published number, if known.
    contrasts: in the order of the config, and for each its pairs of models in the grid's order.
    """

    grid: Grid
    lines: tuple[Line, ...]
    references: tuple[Row, ...]
    main_metric: str
    resamples: int
    confidence: float
    published: dict[tuple[str, int], float]
    contrasts: tuple[Contrast, ...] = ()

    @property
    def main(self) -> int:
        """Index of the main metric."""
        return self.grid.column(self.main_metric)

    @property
    def published_metrics(self) -> set[int]:
        """Indices of the metrics with a column of published numbers."""
        return {metric for _, metric in self.published}

    @property
    def missing_runs(self) -> int:
        """The number of expected runs that are missing."""
        return sum(len(line.row.expected) - len(line.row.seeds) for line in self.lines)

    def mark(self, tested: Line | Contrast, metric: int) -> int:
        """+1 or -1 if a line is significantly better or worse than the reference after Holm's correction, else 0.

        For a contrast, its first method is compared with its second.
        """
        cells = tested.against if isinstance(tested, Line) else tested.tests
        if not cells or not cells[metric].p_holm < 1 - self.confidence:
            return 0
        return int(np.sign(cells[metric].effect.difference)) * direction(self.grid.metrics[metric])


def compare(
    grid: Grid,
    reference: str,
    main_metric: str,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    published: Iterable[PublishedValue] = (),
    contrasts: Iterable[ContrastEntry] = (),
) -> Results:
    """Intervals for every row, tests of every row against the reference of the same models, and the contrasts.

    Args:
        grid: the runs.
        reference: a method; if it has runs with several models, ``grid.own_reference`` chooses the run for each row.
        main_metric: sorts the lines.
        resamples: resamples of the bootstrap.
        confidence: level of the intervals; 1 - confidence is the level of the marks.
        seed: seed of all draws.
        published: numbers to show beside rows of the grid; they are not tested.
        contrasts: pairs of methods to test against each other, as a separate family.

    Raises:
        UserError: the grid lacks the reference, the main metric, the method of a contrast, or the metric of a published
            number.
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
    better = direction(main_metric)
    lines.sort(key=lambda line: (order[line.row.group], -np.nan_to_num(better * line.means[main], nan=-np.inf)))
    beside = {(f"{one.method}/{one.models}", grid.column(one.metric)): one.value for one in published}
    tested = _contrasts(grid, contrasts, resamples, confidence, seed)
    return Results(grid, tuple(lines), tuple(candidates), main_metric, resamples, confidence, beside, tested)


def _against(
    grid: Grid, ran: list[Row], bases: dict[str, Row], draws: dict[str, np.ndarray], confidence: float, seed: int
) -> dict[str, tuple[Against, ...]]:
    pairs = [(row, base) for row in ran if (base := bases[row.key]).key != row.key and not base.missing]
    values = [(row.values.mean(axis=1), base.values.mean(axis=1)) for row, base in pairs]
    differences = [draws[row.key] - draws[base.key] for row, base in pairs]
    tests = _tests(grid.metrics, values, differences, confidence, seed)
    return {row.key: cells for (row, _), cells in zip(pairs, tests, strict=True)}


def _contrasts(
    grid: Grid, entries: Iterable[ContrastEntry], resamples: int, confidence: float, seed: int
) -> tuple[Contrast, ...]:
    """All contrasts, tested if both sides have run; per metric they are one family of Holm's correction."""
    pairs = [
        (entry, rows, beside(grid.rows, entry.beyond, rows))
        for entry in entries
        for rows in contrasted(grid.rows, entry.of, entry.against)
    ]
    values = [_sides(shared_values([*rows, *beyond])) for _, rows, beyond in pairs]
    names = [" - ".join(row.key for row in (*rows, *beyond)) for _, rows, beyond in pairs]
    tested = {at for at, (left, _) in enumerate(values) if left.shape[1]}
    # The difference is resampled as one table, so that a resample draws the same seeds of both sides.
    draws = bootstrap.replicates({names[at]: values[at][0] - values[at][1] for at in sorted(tested)}, resamples, seed)
    means = [(values[at][0].mean(axis=1), values[at][1].mean(axis=1)) for at in sorted(tested)]
    tests = _tests(grid.metrics, means, [draws[names[at]] for at in sorted(tested)], confidence, seed)
    found = dict(zip(sorted(tested), tests, strict=True))
    nothing = np.full(len(grid.metrics), np.nan)
    return tuple(
        Contrast(
            entry.name,
            entry.title,
            *rows,
            values[at][0].shape[1],
            *((side.mean(axis=(0, 1)) for side in values[at]) if at in tested else (nothing, nothing)),
            found.get(at, ()),
            beyond,
        )
        for at, (entry, rows, beyond) in enumerate(pairs)
    )


def _sides(values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The two compared sides, float64 ``[S, R, M]`` each: two rows, or the differences of two pairs of rows."""
    if len(values) == 2:
        return values[0], values[1]
    return values[0] - values[1], values[2] - values[3]


def _tests(
    metrics: Sequence[str],
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    differences: Sequence[np.ndarray],
    confidence: float,
    seed: int,
) -> list[tuple[Against, ...]]:
    """Tests of each pair by metric, with Holm's correction over the pairs within each metric.

    Args:
        metrics: M names.
        pairs: the two sides of each pair, float64 ``[S, M]``, averaged over seeds.
        differences: bootstrap replicates of each pair's difference, float64 ``[B, M]``.
    """
    by_metric: list[list[Against]] = []
    for metric, name in enumerate(metrics):
        effects = [
            significance.paired(left[:, metric], right[:, metric], seed, direction(name), 1 - confidence)
            for left, right in pairs
        ]
        corrected = [
            significance.holm([getattr(effect, test) for effect in effects])
            for test in ("p_permutation", "p_ttest", "p_wilcoxon")
        ]
        ends = [bootstrap.interval(draws[:, metric], confidence) for draws in differences]
        by_metric.append(
            [
                Against(effect, float(low), float(high), *p)
                for effect, (low, high), *p in zip(effects, ends, *corrected, strict=True)
            ]
        )
    return list(zip(*by_metric, strict=True))


def gains(results: Results) -> pl.DataFrame:
    """Gains per session and row (without missing rows), in the order of the table.

    Columns: ``session``, ``method``, ``models``; ``value``, the main metric averaged over seeds;
    ``difference``, the same minus that of the row's reference; ``rank_gain``, mean over seeds of log2 of the rank,
    reference minus method (+1: half the rank of the reference). The last two are null if the row's reference is
    missing.
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
