"""What a reader hands over, and how it tells of rows that it could not read."""

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
    """What a reader found, before any protocol.

    interactions: columns ``INTERACTIONS``; ``row`` numbers them in the order of the files.
    items: item_id str, title str, and further str fields for templates; lazy, because text is read for what survives
        filtering alone.
    users: user_id str and further str fields, or None.
    files: the files read.
    reviews: ``row`` and ``review`` str, lazy; None where there are none.
    finish_items: applied to the items that survive, where their fields are not text yet.
    arrange_items: applied to the items after their texts are cleaned: years, lists and articles.
    drops: reason -> number of rows left out, each a known trait of real data.
    funnel: what was left after each step of reading.
    notes: lines for the log: what was repaired or left out, with file and line.
    cleaned: which texts were cleaned in the last call for items, reviews and users: kind -> reason -> count.
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
        """The items with these ids (all where None), each once, in the order of the files, their texts cleaned.

        Args:
            ids: str item ids.
        """
        chosen = self.items if ids is None else self.items.filter(pl.col("item_id").is_in(ids.implode()))
        items, self.cleaned["items"] = texts.clean_items(self.finish_items(chosen.collect()))
        return self.arrange_items(items)

    def reviews_of(self, rows: pl.Series) -> pl.DataFrame:
        """``row`` and ``review`` of these rows of ``interactions``, cleaned; rows without a text are missing."""
        assert self.reviews is not None
        found = self.reviews.filter(pl.col("row").is_in(rows.implode())).collect()
        found, self.cleaned["reviews"] = texts.clean_reviews(found)
        return found

    def users_with_fields(self) -> pl.DataFrame | None:
        """The users with their fields cleaned; None where there are none."""
        if self.users is None:
            return None
        users, self.cleaned["users"] = texts.clean_users(self.users)
        return users


class Problems:
    """Rows of one file that could not be taken as they are: each reason with its first line and its count."""

    def __init__(self, path: Path, limit: float):
        """``limit`` is the share of left-out rows above which reading stops."""
        self.path = path
        self.rows = 0
        self._limit = limit
        self._reasons: dict[tuple[bool, str], tuple[int, int, str]] = {}

    def add(self, reason: str, line: int, example: str = "", count: int = 1, repaired: bool = False) -> None:
        """Rows with one fault.

        Args:
            reason: without the value, so that equal faults are counted together.
            line: 1-based, of the first of these rows.
            example: the value found there.
            repaired: the rows are kept, with the value mended.
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
        """Stop where too many rows were left out.

        Args:
            final: False while reading goes on: then only once there are enough rows to judge.

        Raises:
            UserError: naming the file, the share, and the first line of the most frequent reason.
        """
        bad = sum(self.left_out.values())
        if bad > self._limit * self.rows and (final or self.rows >= 100_000):
            raise UserError(
                f"{self.path}: {bad} of {self.rows} rows cannot be used, more than the {self._limit:.2%} of 'max_bad' "
                f"in datasets.yaml; most frequent: {self.lines()[0].removeprefix(f'{self.path}: ')}"
            )
        if final and not self.rows:
            raise UserError(f"{self.path}: the file is empty")
