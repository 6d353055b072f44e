"""A mean with its interval, as several figures draw it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A row's mean with its interval on one metric.

    key: what makes a row: method and models. Two rows with one label stay two rows.
    label: what the figure calls it.
    """

    key: str
    label: str
    group: str
    mean: float
    low: float
    high: float
