"""Reads the user's own data: tables of interactions and items as CSV, TSV or Parquet, with a mapping of columns."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from langptune.config.datasets import DatasetEntry
from langptune.data.reader_output import Raw
from langptune.data.readers import cells, checks
from langptune.data.readers.times import times
from langptune.data.readers.titles import articles_first
from langptune.errors import UserError


def read_tables(folder: Path, entry: DatasetEntry, scratch: Path | None) -> Raw:
    """Read the two files that ``tables`` names in ``folder``; ``columns`` lists the item fields.

    Raises:
        UserError: a file is invalid; the message names file, line, column and value.
    """
    names = entry.tables
    if names is None:
        raise UserError(
            "datasets.yaml: reader 'csv' needs 'tables': the file names and the columns of user, item, time"
        )
    if "title" not in entry.columns:
        raise UserError("datasets.yaml: reader 'csv': 'columns' must say which column of the items is the title")
    inter, item_file = folder / names.interactions, folder / names.items
    wanted = [names.user, names.item, names.timestamp, *(c for c in (names.rating, names.review) if c)]
    table = cells.read_file(inter, list(dict.fromkeys(wanted)))
    notes = list(table.notes)
    rating = pl.Series("rating", [1.0] * len(table), dtype=pl.Float32)
    if names.rating:
        rating = checks.number(table, names.rating, pl.Float32)
    interactions = pl.DataFrame(
        {
            "row": pl.int_range(len(table), dtype=pl.Int64, eager=True),
            "user_id": checks.ids(table, names.user),
            "item_id": checks.ids(table, names.item),
            "rating": rating,
            "timestamp": times(table, names.timestamp, notes),
        }
    )
    if names.rating:
        checks.ratings_inside(interactions["rating"], entry.rating_range, table)

    item_table = cells.read_file(item_file, list(dict.fromkeys([names.item, *entry.columns.values()])))
    notes += item_table.notes
    checks.filled(item_table, entry.columns["title"])
    fields = {field: checks.text(item_table, column) for field, column in entry.columns.items()}
    items = pl.DataFrame({"item_id": checks.ids(item_table, names.item), **fields})
    checks.items_known(interactions, items, table, item_table)
    reviews = None
    if names.review:
        reviews = pl.DataFrame({"row": interactions["row"], "review": checks.text(table, names.review)}).lazy()

    def arranged(items: pl.DataFrame) -> pl.DataFrame:
        for name in entry.lists:
            items = items.with_columns(pl.col(name).str.strip_chars().str.replace_all(r"\s*[|;]\s*|\s{2,}", ", "))
        return articles_first(items, entry)

    files = [inter, item_file]
    return Raw(interactions, items.lazy(), None, files, reviews=reviews, arrange_items=arranged, notes=notes)
