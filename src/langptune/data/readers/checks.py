"""What every reader of small tables checks: numbers, ratings, ids. All cells come as text, so that a bad one can be
named with its line."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from langptune.errors import UserError


def number(table: pl.DataFrame, column: str, dtype: type[pl.DataType], path: Path, first: int = 2) -> pl.Series:
    """A column of text as numbers.

    Args:
        first: the line of the first row, for errors.

    Raises:
        UserError: naming file, line and the cell that is no number.
    """
    values = table[column].str.strip_chars().cast(pl.Float64, strict=False)
    bad = values.is_null() | values.is_nan() | values.is_infinite()
    if bad.any():
        row = int(bad.arg_max())
        raise UserError(
            f"{path}: line {row + first}: {column} is '{(table[column][row] or '')[:40]}', not a number "
            f"({bad.sum()} such rows)"
        )
    # Through float64, which holds a time in seconds exactly; float32 would merge neighbouring seconds.
    return values.cast(dtype)


def ratings_inside(interactions: pl.DataFrame, bounds: tuple[float, float], path: Path, first: int = 2) -> None:
    """Raise a ``UserError`` naming the first row whose rating lies outside ``bounds``."""
    low, high = bounds
    bad = interactions.filter(~pl.col("rating").is_between(low, high) | pl.col("rating").is_nan())
    if len(bad):
        raise UserError(
            f"{path}: line {bad['row'][0] + first}: rating {bad['rating'][0]:g} lies outside {low:g}..{high:g} "
            f"({len(bad)} such rows); mend the file or 'rating_range' in datasets.yaml"
        )


def ids_agree(interactions: pl.DataFrame, items: pl.DataFrame, path: Path, item_path: Path, first: int = 2) -> None:
    """Raise a ``UserError`` where an item stands twice in the items, or an interaction is with an unknown one."""
    if (repeated := items.filter(pl.col("item_id").is_duplicated())).height:
        raise UserError(f"{item_path}: item '{repeated['item_id'][0]}' stands twice; keep one row")
    unknown = interactions.join(items, on="item_id", how="anti").sort("row")
    if len(unknown):
        raise UserError(
            f"{path}: line {unknown['row'][0] + first}: item '{unknown['item_id'][0]}' is not in "
            f"{item_path.name} ({len(unknown)} such rows); add the item or remove the rows"
        )


def filled(table: pl.DataFrame, columns: list[str], path: Path, first: int = 2) -> None:
    """Raise a ``UserError`` naming the first row in which one of the columns is empty."""
    for column in columns:
        empty = table.with_row_index("line", offset=first).filter(
            pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "")
        )
        if len(empty):
            raise UserError(f"{path}: line {empty['line'][0]}: '{column}' is empty ({len(empty)} such rows)")


def year_apart(items: pl.DataFrame) -> pl.DataFrame:
    """``Toy Story (1995)`` as title and year; no year: empty."""
    title = pl.col("title").str.strip_chars()
    return items.with_columns(
        title.str.replace(r"\s*\((\d{4})\)\s*$", "").alias("title"),
        title.str.extract(r"\((\d{4})\)\s*$", 1).fill_null("").alias("year"),
    )
