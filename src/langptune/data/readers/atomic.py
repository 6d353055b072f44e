"""Reads RecBole's atomic files: tab-separated, a typed header (``user_id:token``), NAME.inter, NAME.item, NAME.user."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from langptune.config.datasets import DatasetEntry
from langptune.data.reader_output import Raw
from langptune.data.readers import cells, checks
from langptune.data.readers.times import times
from langptune.data.readers.titles import articles_first
from langptune.errors import UserError


def read_atomic(folder: Path, entry: DatasetEntry, scratch: Path | None) -> Raw:
    """Read NAME.inter, NAME.item and, if it exists, NAME.user in ``folder``; ``scratch`` is not used.

    Raises:
        UserError: a file or column is missing, a cell is not a number, or an item is unknown.
    """
    inter = _one(folder, ".inter")
    item_file = _one(folder, ".item")
    if "title" not in entry.columns:
        raise UserError(f"{item_file}: datasets.yaml: 'columns' must say which column is the title")
    table = _atomic(inter, ["user_id", "item_id", "rating", "timestamp"])
    notes: list[str] = []
    interactions = pl.DataFrame(
        {
            "row": pl.int_range(len(table), dtype=pl.Int64, eager=True),
            "user_id": checks.ids(table, "user_id"),
            "item_id": checks.ids(table, "item_id"),
            "rating": checks.number(table, "rating", pl.Float32),
            "timestamp": times(table, "timestamp", notes),
        }
    )
    checks.ratings_inside(interactions["rating"], entry.rating_range, table)

    item_table = _atomic(item_file, list(dict.fromkeys(["item_id", *entry.columns.values()])))
    fields = {field: checks.text(item_table, column) for field, column in entry.columns.items()}
    items = pl.DataFrame({"item_id": checks.ids(item_table, "item_id"), **fields})

    checks.items_known(interactions, items, table, item_table)
    files = [inter, item_file]
    users = None
    if user_file := _one(folder, ".user", needed=False):
        user_table = _atomic(user_file, ["user_id"], every=True)
        users = user_table.frame
        checks.unique(checks.ids(user_table, "user_id"), user_table, "user")
        files.append(user_file)

    def arranged(items: pl.DataFrame) -> pl.DataFrame:
        for name in entry.lists:
            items = items.with_columns(pl.col(name).str.strip_chars().str.replace_all(r"\s+", ", "))
        return articles_first(items, entry)

    return Raw(interactions, items.lazy(), users, files, arrange_items=arranged, notes=notes)


def _one(folder: Path, suffix: str, needed: bool = True) -> Path | None:
    """The file with this suffix; hidden files are ignored."""
    found = sorted(p for p in folder.iterdir() if p.suffix == suffix and not p.name.startswith(".") and p.is_file())
    if len(found) > 1 or (needed and not found):
        names = f": {', '.join(path.name for path in found[:5])}" if found else ""
        raise UserError(f"{folder}: expected one *{suffix} file, found {len(found)}{names}")
    return found[0] if found else None


def _atomic(path: Path, columns: list[str], every: bool = False) -> cells.Table:
    """Columns (or every column) as text, without the type suffixes of the header; quotes have no special meaning."""
    return cells.delimited(cells.content(path), path, "\t", columns=columns, quoted=False, typed=True, every=every)
