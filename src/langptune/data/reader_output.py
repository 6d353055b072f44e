"""The output of a reader: raw interactions, items and users (``Raw``), and its report of bad rows (``Problems``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from langptune.data import texts
from langptune.errors import UserError

INTERACTIONS = {
    "row": pl.Int64,
    "user_id": pl.String,
    "item_id": pl.String,
    "rating": pl.Float32,
    "timestamp": pl.Int64,
}


@dataclass
class Raw:
    """The data that a reader returns, before any protocol.

    interactions: columns ``INTERACTIONS``; ``row`` numbers them in the order of the files.
    items: item_id str, title str, and further str fields for templates; lazy, because texts are read only for items
        that remain after filtering.
    users: user_id str and further str fields, or None.
    files: the files read.
    reviews: ``row`` and ``review`` str, lazy; None if there are none.
    finish_items: converts the fields of remaining items to text.
    arrange_items: applied to the items after their texts are cleaned: years, lists and articles.
    drops: reason -> number of rows left out, for known traits of real data.
    funnel: the remaining numbers after each step of reading.
    notes: lines for the log: what was repaired or left out, with file and line.
    cleaned: cleaned texts in the last call for items, reviews and users: kind -> reason -> count.
    """

    interactions: pl.DataFrame
    items: pl.LazyFrame
    users: pl.DataFrame | None
    files: list[Path]
    reviews: pl.LazyFrame | None = None
    finish_items: Callable[[pl.DataFrame], pl.DataFrame] = lambda items: items
    arrange_items: Callable[[pl.DataFrame], pl.DataFrame] = lambda items: items
    drops: dict[str, int] = field(default_factory=dict)
    funnel: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cleaned: dict[str, dict[str, int]] = field(default_factory=dict)

    def items_of(self, ids: pl.Series | None = None) -> pl.DataFrame:
        """The items with these ids (None: all), each once, in the order of the files, with cleaned texts.

        Args:
            ids: str item ids.
        """
        chosen = self.items if ids is None else self.items.filter(pl.col("item_id").is_in(ids.implode()))
        items, self.cleaned["items"] = texts.clean_items(self.finish_items(chosen.collect()))
        return self.arrange_items(items)

    def reviews_of(self, rows: pl.Series) -> pl.DataFrame:
        """``row`` and cleaned ``review`` of these rows of ``interactions``; rows without a text are missing."""
        assert self.reviews is not None
        found = self.reviews.filter(pl.col("row").is_in(rows.implode())).collect()
        found, self.cleaned["reviews"] = texts.clean_reviews(found)
        return found

    def users_with_fields(self) -> pl.DataFrame | None:
        """The users with cleaned fields; None if there are none."""
        if self.users is None:
            return None
        users, self.cleaned["users"] = texts.clean_users(self.users)
        return users


class Problems:
    """Bad rows of one file: each reason with its first line and its count."""

    def __init__(self, path: Path, limit: float):
        """``limit`` is the share of left-out rows above which reading stops."""
        self.path = path
        self.rows = 0
        self._limit = limit
        self._reasons: dict[tuple[bool, str], tuple[int, int, str]] = {}

    def add(self, reason: str, line: int, example: str = "", count: int = 1, repaired: bool = False) -> None:
        """Add rows with the same fault.

        Args:
            reason: the fault without the value, so that equal faults are counted together.
            line: line of the first of these rows, from 1.
            example: the value in that line.
            repaired: the rows are kept, with a repaired value.
        """
        first, before, shown = self._reasons.get((repaired, reason), (line, 0, example))
        self._reasons[repaired, reason] = (min(first, line), before + count, shown if first <= line else example)

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> number of rows left out."""
        return {reason: count for (repaired, reason), (_, count, _) in self._reasons.items() if not repaired}

    def lines(self) -> list[str]:
        """One line per reason, worst first."""
        found = sorted(self._reasons.items(), key=lambda entry: (entry[0][0], -entry[1][1]))
        return [
            f"{self.path}: line {line}: {reason}{f' ({example[:60]})' if example else ''}: "
            f"{count} such row{'s' * (count != 1)} {'repaired' if repaired else 'left out'}"
            for (repaired, reason), (line, count, example) in found
        ]

    def check(self, final: bool = True) -> None:
        """Check that not too many rows were left out.

        Args:
            final: False during reading: too few rows are then not checked.

        Raises:
            UserError: too many were; the message names the share, and the first line of the most frequent reason.
        """
        bad = sum(self.left_out.values())
        if bad > self._limit * self.rows and (final or self.rows >= 100_000):
            raise UserError(
                f"{self.path}: {bad} of {self.rows} rows cannot be used, more than the {self._limit:.2%} of 'max_bad' "
                f"in datasets.yaml; most frequent: {self.lines()[0].removeprefix(f'{self.path}: ')}"
            )
        if final and not self.rows:
            raise UserError(f"{self.path}: the file is empty")
