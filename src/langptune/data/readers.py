"""Readers: raw files of one format to interactions, items and users. One function per format, in ``READERS``.

A reader returns ``Raw``; everything after it is shared. To add a format, write one function here and name it in
``config/datasets.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from langptune.config.base import nearest
from langptune.config.datasets import DatasetEntry
from langptune.errors import UserError
from langptune.provenance import ROOT, file_hash, installed

_ARTICLE = re.compile(
    r"^(?P<rest>.+), (?P<article>The|A|An|Les?|La|L'|El|Los|Las|Il|Die|Der|Das|Une?)(?P<tail> \(.*\))?$"
)


@dataclass
class Raw:
    """What a reader found, before any protocol.

    interactions: user_id str, item_id str, rating float32, timestamp int64 (as in the file), one row each.
    items: item_id str, title str, and further str fields for templates.
    users: user_id str and further str fields, or None.
    files: the files read.
    drops: reason -> number of rows left out, each a known trait of real data.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame | None
    files: list[Path]
    drops: dict[str, int] = field(default_factory=dict)


def read(entry: DatasetEntry, name: str) -> Raw:
    """The raw data of a registry entry, with hashes, counts, duplicates, ratings and references checked.

    Raises:
        UserError: naming the file and, where there is one, the line.
    """
    if entry.reader not in READERS:
        raise UserError(f"datasets.yaml: {name}: unknown reader '{entry.reader}'{nearest(entry.reader, list(READERS))}")
    folder = source_folder(entry, name)
    for file, wanted in entry.sha256.items():
        path = folder / file
        if not path.is_file():
            raise UserError(f"{path}: missing; dataset '{name}' needs it")
        if (found := file_hash(path)) != wanted:
            raise UserError(
                f"{path}: SHA-256 is {found[:12]}..., datasets.yaml expects {wanted[:12]}...; "
                "restore the original file, or change 'sha256' if you mean to use another"
            )
    raw = READERS[entry.reader](folder, entry)
    if entry.expect is not None:
        found_counts = {
            "interactions": len(raw.interactions),
            "users": raw.interactions["user_id"].n_unique(),
            "items": len(raw.items),
        }
        for key, wanted_count in entry.expect.model_dump().items():
            if found_counts[key] != wanted_count:
                raise UserError(
                    f"{folder}: dataset '{name}' has {found_counts[key]} {key}, expected {wanted_count}; "
                    "the files are incomplete or not the original ones"
                )
    raw.interactions = _without_duplicates(raw)
    return raw


def source_folder(entry: DatasetEntry, name: str) -> Path:
    """The folder that holds the raw files; a ``UserError`` says what to install or where it should be."""
    source = entry.source
    if source.package is not None:
        base = installed(source.package)
        if base is None:
            raise UserError(f"dataset '{name}': package '{source.package}' is not installed; run `make env`")
        folder = base / source.path
    else:
        folder = ROOT / str(source.folder) / source.path
    if not folder.is_dir():
        raise UserError(f"dataset '{name}': folder {folder} does not exist; check 'source' in datasets.yaml")
    return folder


def read_atomic(folder: Path, entry: DatasetEntry) -> Raw:
    """RecBole's atomic files: tab-separated, a typed header (``user_id:token``), NAME.inter, NAME.item, NAME.user."""
    inter = _one(folder, "*.inter")
    table = _tsv(inter, ["user_id", "item_id", "rating", "timestamp"])
    interactions = table.select(
        "user_id",
        "item_id",
        _number(table, "rating", pl.Float32, inter),
        # Through float64, which holds a time in seconds exactly; float32 would merge neighbouring seconds.
        _number(table, "timestamp", pl.Float64, inter).cast(pl.Int64),
    )
    low, high = entry.rating_range
    bad = interactions.with_row_index("line", offset=2).filter(
        ~pl.col("rating").is_between(low, high) | pl.col("rating").is_nan()
    )
    if len(bad):
        raise UserError(
            f"{inter}: line {bad['line'][0]}: rating {bad['rating'][0]} lies outside {low:g}..{high:g} "
            f"({len(bad)} such rows); mend the file or 'rating_range' in datasets.yaml"
        )

    item_file = _one(folder, "*.item")
    raw_items = _tsv(item_file, ["item_id", *entry.columns.values()])
    items = raw_items.select(
        "item_id", *[pl.col(column).fill_null("").alias(field) for field, column in entry.columns.items()]
    )
    if "title" not in items.columns:
        raise UserError(f"{item_file}: datasets.yaml: 'columns' must say which column is the title")
    if (repeated := items.filter(pl.col("item_id").is_duplicated())).height:
        raise UserError(f"{item_file}: item '{repeated['item_id'][0]}' stands twice; keep one row")
    for name in entry.lists:
        items = items.with_columns(pl.col(name).str.strip_chars().str.replace_all(r"\s+", ", "))
    if entry.move_articles:
        items = items.with_columns(pl.col("title").map_elements(move_article, return_dtype=pl.String))

    files = [inter, item_file]
    users = None
    if user_files := sorted(folder.glob("*.user")):
        users = _tsv(user_files[0], ["user_id"]).fill_null("")
        files.append(user_files[0])
    unknown = interactions.with_row_index("line", offset=2).join(items, on="item_id", how="anti")
    if len(unknown):
        raise UserError(
            f"{inter}: line {unknown['line'].min()}: item '{unknown.sort('line')['item_id'][0]}' is not in "
            f"{item_file.name} ({len(unknown)} such rows); add the item or remove the rows"
        )
    return Raw(interactions, items, users, files)


READERS: dict[str, Callable[[Path, DatasetEntry], Raw]] = {"recbole-atomic": read_atomic}


def move_article(title: str) -> str:
    """``Usual Suspects, The`` to ``The Usual Suspects``; a trailing parenthesis stays last."""
    match = _ARTICLE.match(title)
    if not match:
        return title
    space = "" if match["article"].endswith("'") else " "
    return f"{match['article']}{space}{match['rest']}{match['tail'] or ''}"


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
    empty = table.with_row_index("line", offset=2).filter(pl.col(columns[0]) == "")
    if len(empty):
        raise UserError(f"{path}: line {empty['line'][0]}: '{columns[0]}' is empty")
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


def _number(table: pl.DataFrame, column: str, dtype: type[pl.DataType], path: Path) -> pl.Series:
    values = table[column].str.strip_chars().cast(pl.Float64, strict=False)
    bad = values.is_null() | values.is_nan() | values.is_infinite()
    if bad.any():
        row = int(bad.arg_max())
        raise UserError(
            f"{path}: line {row + 2}: {column} is '{table[column][row][:40]}', not a number ({bad.sum()} such rows)"
        )
    return values.cast(dtype)


def _without_duplicates(raw: Raw) -> pl.DataFrame:
    """One row per (user, item): the first in time. Identical rows and later repeats are counted apart."""
    table = raw.interactions
    # Sorted by all columns, so that the row kept does not depend on the order in the file.
    unique = table.unique().sort("user_id", "item_id", "timestamp", "rating")
    first = unique.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    raw.drops["identical rows"] = len(table) - len(unique)
    raw.drops["later interactions of a user with the same item"] = len(unique) - len(first)
    return first
