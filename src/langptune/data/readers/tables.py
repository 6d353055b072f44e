"""One's own data: a table of interactions and a table of items, as CSV, TSV or Parquet, with a mapping of columns."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from langptune.config.base import nearest
from langptune.config.datasets import DatasetEntry
from langptune.data.raw import Raw
from langptune.data.readers import checks
from langptune.data.readers.titles import articles_first
from langptune.errors import UserError


def read_tables(folder: Path, entry: DatasetEntry, scratch: Path | None) -> Raw:
    """The two files that ``tables`` names in ``folder``; item fields are those of ``columns``.

    Raises:
        UserError: naming file, line, column and value.
    """
    told = entry.tables
    if told is None:
        raise UserError(
            "datasets.yaml: reader 'csv' needs 'tables': the file names and the columns of user, item, time"
        )
    if "title" not in entry.columns:
        raise UserError("datasets.yaml: reader 'csv': 'columns' must say which column of the items is the title")
    inter, item_file = folder / told.interactions, folder / told.items
    wanted = [told.user, told.item, told.timestamp, *(c for c in (told.rating, told.review) if c)]
    table = _table(inter, wanted)
    checks.filled(table, [told.user, told.item, told.timestamp], inter)
    rating = pl.Series("rating", [1.0] * len(table), dtype=pl.Float32)
    if told.rating:
        rating = checks.number(table, told.rating, pl.Float32, inter).alias("rating")
    interactions = pl.DataFrame(
        {
            "row": pl.int_range(len(table), dtype=pl.Int64, eager=True),
            "user_id": table[told.user],
            "item_id": table[told.item],
            "rating": rating,
            "timestamp": _times(table, told.timestamp, inter),
        }
    )
    if told.rating:
        checks.ratings_inside(interactions, entry.rating_range, inter)

    raw_items = _table(item_file, [told.item, *entry.columns.values()])
    checks.filled(raw_items, [told.item, entry.columns["title"]], item_file)
    items = raw_items.select(
        pl.col(told.item).alias("item_id"),
        *[pl.col(column).fill_null("").alias(field) for field, column in entry.columns.items()],
    )
    for name in entry.lists:
        items = items.with_columns(pl.col(name).str.strip_chars().str.replace_all(r"\s*[|;]\s*|\s{2,}", ", "))
    items = articles_first(items, entry)
    checks.ids_agree(interactions, items, inter, item_file)
    reviews = None
    if told.review:
        reviews = pl.DataFrame({"row": interactions["row"], "review": table[told.review].fill_null("")}).lazy()
    return Raw(interactions, items.lazy(), None, [inter, item_file], reviews=reviews)


def _table(path: Path, columns: list[str]) -> pl.DataFrame:
    """A file with all cells as text."""
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir() if p.is_file())
        raise UserError(f"{path}: missing{nearest(path.name, there)}")
    try:
        if path.suffix == ".parquet":
            table = pl.read_parquet(path).cast(pl.String)
        else:
            table = pl.read_csv(path, separator="\t" if path.suffix == ".tsv" else ",", infer_schema=False)
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: the file is empty") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix.lstrip('.') or 'csv'}: {str(error)[:200]}") from None
    for column in columns:
        if column not in table.columns:
            raise UserError(f"{path}: column '{column}' is missing{nearest(column, table.columns)}")
    if not len(table):
        raise UserError(f"{path}: no rows below the header")
    return table


def _times(table: pl.DataFrame, column: str, path: Path) -> pl.Series:
    """Integers as they are; ISO dates and times as microseconds since 1970, UTC."""
    text = table[column].str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == 0:
        return checks.number(table, column, pl.Int64, path)
    try:
        found = text.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
    except pl.exceptions.PolarsError:
        found = pl.Series([None] * len(text), dtype=pl.Datetime("us", "UTC"))
    if found.null_count():
        row = int(found.is_null().arg_max())
        raise UserError(
            f"{path}: line {row + 2}: {column} is '{text[row][:40]}', neither a whole number nor an ISO date "
            f"({found.null_count()} such rows)"
        )
    return found.dt.epoch("us")
