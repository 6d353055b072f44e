"""The runs of a comparison, aligned by session: the input of all intervals, tests and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

from langptune.config.base import Strict, nearest
from langptune.data import contracts
from langptune.errors import UserError
from langptune.ranking.scoring import read_weight

GROUPS = ("profiles", "text controls", "baselines", "fusions", "bounds")
"""Blocks of a table from top to bottom (the groups of ``config/methods.yaml``)."""


class RunEntry(Strict):
    """One run of the grid and the text of its table row."""

    method: str
    models: str
    seed: int
    title: str
    group: str
    note: str = ""
    trials: Annotated[int, Field(ge=0)] = Field(0, description="validation trials spent on tuning")
    weight: float | None = Field(
        None,
        description="of popularity in its scores, or of the second method in a fusion; null: it has none",
        strict=False,
    )
    weight_path: str | None = Field(None, description="the file of the weight that was chosen on validation")
    metrics_path: str = Field(description="metrics.parquet; may be absent only where missing runs are allowed")


class PublishedValue(Strict):
    """A published number beside one row: a mean by one metric, without seeds or interval."""

    method: str
    models: str
    metric: str
    value: float


class ContrastEntry(Strict):
    """A pair of methods that is tested against each other (``comparison.contrasts`` of a config)."""

    name: str
    title: str = Field("", description="the question it answers; empty: the two methods' titles say enough")
    of: str = Field(description="method")
    against: str = Field(description="method that `of` is set against")
    beyond: list[str] = Field([], description="two methods whose difference is taken off that of the pair")


@dataclass(frozen=True)
class Row:
    """One row of a table: a method with its models, over all its seeds.

    seeds: seeds that have run; expected: seeds that should have run.
    values: float64 ``[S, R, M]``, sessions x seeds that have run x metrics.
    ranks: int ``[S, R]``, 1-based.
    weights: weight of each seed that has run: of popularity, or of the second method in a fusion; empty for others.
    """

    method: str
    models: str
    title: str
    group: str
    note: str
    trials: int
    seeds: tuple[int, ...]
    expected: tuple[int, ...]
    values: np.ndarray
    ranks: np.ndarray
    weights: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """``method/models``: unique in a grid."""
        return f"{self.method}/{self.models}"

    @property
    def missing(self) -> bool:
        """Whether no seed of this row has run."""
        return not self.seeds

    @property
    def one_for_all(self) -> bool:
        """Whether it has a single expected seed, whose values are compared with every seed of another row."""
        return len(self.expected) == 1

    def session_means(self, metric: int) -> np.ndarray:
        """float64 ``[S]``: a metric's value per session, averaged over seeds."""
        return self.values[:, :, metric].mean(axis=1)


@dataclass(frozen=True)
class Grid:
    """All rows over the same sessions (ascending), in the order in which the runs were listed."""

    sessions: np.ndarray
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]

    def column(self, metric: str) -> int:
        """Index of a metric along the last axis of ``Row.values``."""
        if metric not in self.metrics:
            raise UserError(f"metric '{metric}' is not among the compared ones: {', '.join(self.metrics)}")
        return self.metrics.index(metric)


def own_reference(models: str, references: Sequence[str]) -> str:
    """The models of the reference run that a row is tested against: the row's own models.

    A row without such a run (a baseline, or a text method, which has only a decoder) is tested against the run that
    shares most of its models; of several such runs, the first.

    Args:
        models: models of the row, ``encoder+decoder`` or one name.
        references: models of every run of the reference, in the grid's order; at least one.
    """
    own = set(models.split("+"))
    return max(references, key=lambda other: (other == models, len(own & set(other.split("+")))))


def contrasted(rows: Sequence[Row], of: str, against: str) -> list[tuple[Row, Row]]:
    """The pairs of rows of a contrast of two methods, matched by models (``own_reference``).

    There are as many pairs as rows of the method with more rows, so that a baseline, which has one row, is compared
    with every pair of encoder and decoder.

    Raises:
        UserError: a method has no rows.
    """
    sides = []
    for method in (of, against):
        sides.append({row.models: row for row in rows if row.method == method})
        if not sides[-1]:
            names = list(dict.fromkeys(row.method for row in rows))
            raise UserError(f"contrast: method '{method}' is not among the compared methods{nearest(method, names)}")
    left, right = sides
    if len(left) >= len(right):
        return [(row, right[own_reference(models, list(right))]) for models, row in left.items()]
    return [(left[own_reference(models, list(left))], row) for models, row in right.items()]


def beside(rows: Sequence[Row], methods: Sequence[str], pair: tuple[Row, Row]) -> tuple[Row, ...]:
    """The rows of further methods with the models of a pair: those of its row with more models.

    Raises:
        UserError: a method has no rows.
    """
    models = max((row.models for row in pair), key=lambda name: len(name.split("+")))
    out = []
    for method in methods:
        own = {row.models: row for row in rows if row.method == method}
        if not own:
            names = list(dict.fromkeys(row.method for row in rows))
            raise UserError(f"contrast: method '{method}' is not among the compared methods{nearest(method, names)}")
        out.append(own[own_reference(models, list(own))])
    return tuple(out)


def shared_values(rows: Sequence[Row]) -> list[np.ndarray]:
    """The values of rows, seed by seed: float64 ``[S, R, M]`` each, over the R seeds that all have run.

    A row with a single expected seed is repeated for every seed of the others. R is 0 if they share none.
    """
    if any(row.missing for row in rows):
        return [row.values[:, :0] for row in rows]
    several = [row.seeds for row in rows if not row.one_for_all]
    if not several:
        return [row.values for row in rows]
    shared = [seed for seed in several[0] if all(seed in seeds for seeds in several)]
    out = []
    for row in rows:
        part = row.values if row.one_for_all else row.values[:, [row.seeds.index(seed) for seed in shared]]
        out.append(np.broadcast_to(part, (len(part), len(shared), part.shape[2])))
    return out


def collect(entries: list[RunEntry], metrics: list[str], allow_missing: bool = False) -> Grid:
    """Read the runs and align them by session.

    Args:
        entries: the grid's runs, in the order of the config.
        metrics: columns to read from each run.
        allow_missing: keep rows without values for missing files; otherwise these are errors.

    Raises:
        UserError: a file is missing, lacks a metric or has invalid values; two runs have different sessions; or there
            is no run at all.
    """
    absent = [entry for entry in entries if not Path(entry.metrics_path).exists()]
    if absent and not allow_missing:
        raise UserError(
            f"{len(absent)} of {len(entries)} runs have no metrics, the first is {absent[0].metrics_path}; "
            "run them, or allow missing runs to compare the others"
        )
    if len(absent) == len(entries):
        raise UserError(f"none of the {len(entries)} runs has metrics; there is nothing to compare")
    if len(set(metrics)) != len(metrics):
        raise UserError(f"metrics: duplicate entry in {', '.join(metrics)}; keep one")

    sessions, first = None, ""
    cells: dict[tuple[str, str], list[tuple[RunEntry, pl.DataFrame | None]]] = {}
    for entry in entries:
        cell = cells.setdefault((entry.method, entry.models), [])
        if any(other.seed == entry.seed for other, _ in cell):
            raise UserError(f"runs: duplicate run {entry.method}/{entry.models} with seed {entry.seed}; keep one")
        if not Path(entry.metrics_path).exists():
            cell.append((entry, None))
            continue
        frame = _read(entry.metrics_path, metrics)
        here = frame["session"].to_numpy()
        if sessions is None:
            sessions, first = here, entry.metrics_path
        elif not np.array_equal(sessions, here):
            odd = np.setxor1d(sessions, here)
            raise UserError(
                f"{entry.metrics_path} and {first} are not over the same sessions: {len(odd)} are in one of them "
                f"only (first: session {odd[0]}); rerun the evaluation of both"
            )
        cell.append((entry, frame))
    return Grid(sessions, tuple(metrics), tuple(_row(cell, metrics, len(sessions)) for cell in cells.values()))


def _row(cell: list[tuple[RunEntry, pl.DataFrame | None]], metrics: list[str], n_sessions: int) -> Row:
    head = cell[0][0]
    ran = [(entry, frame) for entry, frame in cell if frame is not None]
    values = np.empty((n_sessions, len(ran), len(metrics)))
    ranks = np.empty((n_sessions, len(ran)), dtype=np.int64)
    for at, (_, frame) in enumerate(ran):
        values[:, at, :] = frame.select(metrics).to_numpy()
        ranks[:, at] = frame["rank"].to_numpy()
    return Row(
        head.method,
        head.models,
        head.title,
        head.group,
        head.note,
        head.trials,
        seeds=tuple(entry.seed for entry, _ in ran),
        expected=tuple(entry.seed for entry, _ in cell),
        values=values,
        ranks=ranks,
        weights=tuple(weight for entry, _ in ran if (weight := _weight(entry)) is not None),
    )


def _weight(entry: RunEntry) -> float | None:
    return entry.weight if entry.weight_path is None else read_weight(0.0, entry.weight_path)


def _read(path: str, metrics: list[str]) -> pl.DataFrame:
    columns = ["session", "rank", *metrics]
    frame = contracts.read_parquet(path)
    lacking = [column for column in columns if column not in frame.columns]
    if lacking:
        raise UserError(f"{path}: column '{lacking[0]}' is missing; found {', '.join(frame.columns)}")
    frame = frame.select(columns).sort("session")
    if frame.is_empty():
        raise UserError(f"{path}: contains no session")
    if frame["session"].is_duplicated().any():
        raise UserError(f"{path}: duplicate sessions; rerun the evaluation")
    for column in columns:
        values = frame[column]
        if values.null_count() or not np.isfinite(values.to_numpy()).all():
            raise UserError(f"{path}: column '{column}' has empty or non-finite cells; rerun the evaluation")
    return frame
