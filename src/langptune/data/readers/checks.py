"""Checks of readers: numbers, ratings, ids. Every error names the line."""

from __future__ import annotations

import polars as pl

from langptune.data.readers.cells import Table
from langptune.errors import UserError

LONGEST_ID = 256
"""Limit on an id in characters."""
_SOUND = r"^[^\p{C}\p{Z}]+(?: [^\p{C}\p{Z}]+)*$"
ID_RULE = (
    f"an id is at most {LONGEST_ID} characters long, without blanks at its ends, blanks in a row, or characters that "
    "cannot be seen"
)


def sound_id(column: str) -> pl.Expr:
    """Whether each id of users and items is valid (``ID_RULE``); the same for every reader.

    Ids that look the same must be the same: ``ann`` and ``ann `` would otherwise be two users.
    """
    return pl.col(column).str.contains(_SOUND) & (pl.col(column).str.len_bytes() <= LONGEST_ID * 4)


def ids(table: Table, column: str) -> pl.Series:
    """A column of ids, as text.

    Raises:
        UserError: an id is empty or violates ``ID_RULE``, or the column is neither text nor whole numbers; the message
            names file, line and value.
    """
    values = table.frame[column]
    if not (values.dtype.is_integer() or values.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise UserError(
            f"{table.path}: column '{column}' has type {values.dtype}; save ids as text or as whole numbers"
        )
    values = values.cast(pl.String)
    filled(table, column)
    bad = values.to_frame().select(~sound_id(column)).to_series() | (values.str.len_chars() > LONGEST_ID)
    if bad.any():
        row = int(bad.arg_max())
        raise UserError(
            f"{table.at(row)}: {column} is {values[row][:60]!r}; {ID_RULE}: change it ({bad.sum()} such rows)"
        )
    return values


def unique(ids: pl.Series, table: Table, what: str) -> None:
    """Raise a ``UserError`` that names the line of a duplicate id."""
    again = ~ids.is_first_distinct()
    if again.any():
        row = int(again.arg_max())
        raise UserError(f"{table.at(row)}: {what} '{ids[row]}' occurs a second time; keep one row")


def text(table: Table, column: str) -> pl.Series:
    """A column of text; missing values are empty.

    Raises:
        UserError: the column has lists or another type that is not text.
    """
    values = table.frame[column]
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        raise UserError(f"{table.path}: column '{column}' has type {values.dtype}; save it as text")
    return values.cast(pl.String).fill_null("")


def number(table: Table, column: str, dtype: type[pl.DataType]) -> pl.Series:
    """A column as numbers. Not for times, which ``langptune.data.readers.times`` reads exactly.

    Raises:
        UserError: a cell is not a number; the message names file, line and cell.
    """
    cells = text(table, column)
    values = cells.str.strip_chars().cast(pl.Float64, strict=False)
    bad = values.is_null() | values.is_nan() | values.is_infinite()
    if bad.any():
        row = int(bad.arg_max())
        raise UserError(
            f"{table.at(row)}: {column} is '{(cells[row] or '')[:40]}', not a number ({bad.sum()} such rows)"
        )
    return values.cast(dtype)


def ratings_inside(ratings: pl.Series, bounds: tuple[float, float], table: Table) -> None:
    """Raise a ``UserError`` that names the first row with a rating outside ``bounds``."""
    low, high = bounds
    bad = ~ratings.is_between(low, high)
    if bad.any():
        row = int(bad.arg_max())
        raise UserError(
            f"{table.at(row)}: rating {ratings[row]:g} lies outside {low:g}..{high:g} "
            f"({bad.sum()} such rows); correct the file or 'rating_range' in datasets.yaml"
        )


def items_known(interactions: pl.DataFrame, items: pl.DataFrame, table: Table, item_table: Table) -> None:
    """Raise a ``UserError`` if an item occurs twice in the items, or an interaction has an unknown item."""
    unique(items["item_id"], item_table, "item")
    unknown = interactions.join(items, on="item_id", how="anti").sort("row")
    if len(unknown):
        raise UserError(
            f"{table.at(unknown['row'][0])}: item '{unknown['item_id'][0]}' is not in "
            f"{item_table.path.name} ({len(unknown)} such rows); add the item or remove the rows"
        )


def filled(table: Table, column: str) -> None:
    """Raise a ``UserError`` that names the first row with an empty cell in a column."""
    cells = text(table, column)
    empty = cells.str.strip_chars() == ""
    if empty.any():
        row = int(empty.arg_max())
        raise UserError(f"{table.at(row)}: '{column}' is empty ({empty.sum()} such rows)")
