"""RecBole's atomic files: tab-separated, a typed header (``user_id:token``), NAME.inter, NAME.item, NAME.user."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from langptune.config.base import nearest
from langptune.config.datasets import DatasetEntry
from langptune.data.raw import Raw
from langptune.data.readers import checks
from langptune.data.readers.titles import articles_first
from langptune.errors import UserError


def read_atomic(folder: Path, entry: DatasetEntry, scratch: Path | None) -> Raw:
    """NAME.inter, NAME.item and, where it exists, NAME.user in ``folder``; nothing is spilled to ``scratch``.

    Raises:
        UserError: naming file, line and value: a missing file or column, a cell that is not a number, an unknown item.
    """
    inter = _one(folder, "*.inter")
    table = _tsv(inter, ["user_id", "item_id", "rating", "timestamp"])
    interactions = table.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
        "user_id",
        "item_id",
        checks.number(table, "rating", pl.Float32, inter),
        checks.number(table, "timestamp", pl.Int64, inter),
    )
    checks.ratings_inside(interactions, entry.rating_range, inter)

    item_file = _one(folder, "*.item")
    raw_items = _tsv(item_file, ["item_id", *entry.columns.values()])
    items = raw_items.select(
        "item_id", *[pl.col(column).fill_null("").alias(field) for field, column in entry.columns.items()]
    )
    if "title" not in items.columns:
        raise UserError(f"{item_file}: datasets.yaml: 'columns' must say which column is the title")
    for name in entry.lists:
        items = items.with_columns(pl.col(name).str.strip_chars().str.replace_all(r"\s+", ", "))
    items = articles_first(items, entry)

    checks.ids_agree(interactions, items, inter, item_file)
    files = [inter, item_file]
    users = None
    if user_files := sorted(folder.glob("*.user")):
        users = _tsv(user_files[0], ["user_id"]).fill_null("")
        files.append(user_files[0])
    return Raw(interactions, items.lazy(), users, files)


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise UserError(f"{folder}: expected one {pattern} file, found {len(found)}")
    return found[0]


def _tsv(path: Path, columns: list[str]) -> pl.DataFrame:
    """All columns of an atomic file as strings, type suffixes taken off the header."""
    try:
        _check_cells(path)
        # No quoting: a quote in a title is a quote. Every cell is read as text, so that a bad number can be
        # reported with its line.
        table = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False).fill_null("")
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: the file is empty") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a tab-separated atomic file: {str(error)[:200]}") from None
    table = table.rename(lambda name: name.split(":")[0].strip())
    if missing := [column for column in columns if column not in table.columns]:
        raise UserError(f"{path}: column '{missing[0]}' is missing{nearest(missing[0], table.columns)}")
    if not len(table):
        raise UserError(f"{path}: no rows below the header")
    checks.filled(table, columns[:1], path)
    return table


def _check_cells(path: Path) -> None:
    """Every line must have as many cells as the header: polars would fill a short one (a title with a newline)."""
    with path.open("rb") as lines:
        wanted = next(lines, b"").count(b"\t")
        for number, line in enumerate(lines, start=2):
            cells = line.count(b"\t") + 1
            if cells != wanted + 1 and line.strip():
                raise UserError(
                    f"{path}: line {number}: {cells} cells, the header has {wanted + 1}; "
                    "a tab or a line break inside a cell?"
                )
