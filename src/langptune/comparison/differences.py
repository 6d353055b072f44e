"""Differences to a reference with intervals, for tables in which nothing is tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from langptune.comparison import bootstrap
from langptune.comparison.grid import own_reference
from langptune.comparison.significance import detectable

COLUMNS = ("difference", "difference_low", "difference_high", "detectable")


class Keyed(Protocol):
    """A row of a table: a method with its models."""

    method: str
    models: str

    @property
    def key(self) -> str:
        """``method/models``."""


def bases(rows: Sequence[Keyed], reference: str) -> dict[str, str]:
    """Key of each row -> key of the row that it is compared with: the reference's of the same models.

    Without the reference no row has a difference: each is its own.
    """
    references = {row.models: row.key for row in rows if row.method == reference}
    return {row.key: references[own_reference(row.models, list(references))] if references else row.key for row in rows}


def against(
    values: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray], key: str, base: str, confidence: float
) -> dict[str, list[float | None]]:
    """The ``COLUMNS`` on the difference to the reference, by metric; nulls for the reference itself.

    Args:
        values: key -> float64 ``[S, R, M]`` (sessions, seeds, metrics).
        draws: the bootstrap replicates of their means, float64 ``[B, M]``.
    """
    if key == base:
        return {name: [None] * values[key].shape[2] for name in COLUMNS}
    differences = values[key].mean(axis=1) - values[base].mean(axis=1)
    low, high = bootstrap.interval(draws[key] - draws[base], confidence)
    smallest = [detectable(column, 1 - confidence) for column in differences.T]
    return dict(zip(COLUMNS, (differences.mean(axis=0).tolist(), low.tolist(), high.tolist(), smallest), strict=True))
