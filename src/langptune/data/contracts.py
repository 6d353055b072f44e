"""Contracts of the Parquet files between stages: columns, invariants, and atomic, checked I/O (docs/data.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from langptune.errors import UserError
from langptune.files import whole

ITEMS = {
    "item": pl.Int32,
    "item_id": pl.String,
    "title": pl.String,
    "text": pl.String,
    "first_seen": pl.Int64,
}
SESSIONS = {
    "session": pl.Int32,
    "user_id": pl.String,
    "split": pl.String,
    "history": pl.List(pl.Int32),
    "ratings": pl.List(pl.Float32),
    "reviews": pl.List(pl.String),
    "seen": pl.List(pl.Int32),
    "target": pl.Int32,
    "target_time": pl.Int64,
}
AFTER_CUT = "after_cut"
"""Int32 column of ``sessions`` under protocols with cut-off times: how many of the last ``seen`` items are not older
than the cut-off of the session's split."""
PROFILES = {
    "session": pl.Int32,
    "sample": pl.Int32,
    "profile": pl.String,
    "prompt_tokens": pl.Int32,
    "tokens": pl.Int32,
    "finished": pl.Boolean,
    "logprob": pl.Float64,
}
RANKS = {
    "session": pl.Int32,
    "target": pl.Int32,
    "rank": pl.Int32,
    "top": pl.List(pl.Int32),
    "top_scores": pl.List(pl.Float32),
}
EVALUATION = {"session": pl.Int32, "split": pl.String}
USERS = {"user_id": pl.String}

CONTRACTS = {
    "items": ITEMS,
    "sessions": SESSIONS,
    "profiles": PROFILES,
    "ranks": RANKS,
    "evaluation": EVALUATION,
    "users": USERS,
}
SPLITS = ("train", "val", "test")
REMADE = "delete it and rerun the rule that makes it"
FOREIGN = "get or write it again"


def read(path: Path | str, kind: str, columns: list[str] | None = None, optional: tuple[str, ...] = ()) -> pl.DataFrame:
    """Read and check a table.

    Args:
        kind: a key of ``CONTRACTS``.
        columns: read only these (invariants that need other columns are not checked).
        optional: further columns that are read where the table has them.

    Raises:
        UserError: the file is missing or truncated, has wrong columns, or violates an invariant.
    """
    if columns is not None and optional:
        with _named(path, REMADE):
            there = scan_parquet(path).collect_schema()
            columns = [*columns, *(name for name in optional if name in there)]
    frame = read_parquet(path, columns)
    check(frame, kind, str(path), partial=columns is not None)
    return frame


def write(frame: pl.DataFrame, path: Path | str, kind: str) -> None:
    """Check a table and write it atomically (to a temporary file that is then renamed)."""
    check(frame, kind, str(path))
    write_parquet(frame, path)


def read_parquet(path: Path | str, columns: list[str] | None = None, hint: str = REMADE) -> pl.DataFrame:
    """Read a table without a contract. All Parquet files are read here or in ``scan_parquet``.

    Args:
        columns: read only these.
        hint: what to do if the file cannot be read.

    Raises:
        UserError: the file is missing or truncated.
    """
    with _named(path, hint):
        return pl.read_parquet(path, columns=columns, glob=False, hive_partitioning=False)


def scan_parquet(path: Path | str | list[Path]) -> pl.LazyFrame:
    """A lazy table, or the concatenated tables of several files.

    Raises:
        UserError: as ``read_parquet``.
    """
    with _named(path if isinstance(path, str | Path) else path[0], REMADE):
        return pl.scan_parquet(path, glob=False, hive_partitioning=False)


def collected(table: pl.LazyFrame, path: Path | str) -> pl.DataFrame:
    """Compute a lazy table of one file; raises as ``read_parquet``."""
    with _named(path, REMADE):
        return table.collect()


def parquet_schema(path: Path | str) -> dict[str, pl.DataType]:
    """Name -> type of each column of an external Parquet file.

    Raises:
        UserError: the file is missing or not a Parquet file.
    """
    with _named(path, FOREIGN):
        return dict(pl.read_parquet_schema(path))


def parquet_rows(path: Path | str) -> int:
    """The number of rows that an external Parquet file declares; raises as ``parquet_schema``."""
    with _named(path, FOREIGN):
        return int(pl.scan_parquet(path, glob=False, hive_partitioning=False).select(pl.len()).collect().item())


def parquet_text(path: Path | str, columns: list[str], enough: int) -> int:
    """Total size in bytes of the texts in columns of an external Parquet file; raises as ``parquet_schema``.

    Equal texts are in memory once while they are counted; polars would make a copy for each cell.

    Args:
        columns: columns of type String.
        enough: counting stops above this number.
    """
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow.parquet import ParquetFile

    total = 0
    try:
        with _named(path, FOREIGN), ParquetFile(path, read_dictionary=columns) as file:
            for batch in file.iter_batches(batch_size=1 << 16, columns=columns, use_threads=False) if columns else ():
                for cells in batch.columns:
                    lengths = compute.binary_length(cells.dictionary).cast(pa.int64())
                    total += compute.sum(lengths.take(cells.indices)).as_py() or 0
                if total > enough:
                    break
    except pa.ArrowException as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0][:200]}); {FOREIGN}") from None
    return total


def read_csv(path: Path | str, **options: Any) -> pl.DataFrame:
    """Read a CSV file that a rule wrote (external files: ``langptune.data.readers.cells``).

    Args:
        options: passed to ``polars.read_csv``.

    Raises:
        UserError: as ``read_parquet``.
    """
    with _named(path, REMADE):
        return pl.read_csv(path, glob=False, **options)


@contextmanager
def _named(path: Path | str, hint: str) -> Iterator[None]:
    """Turn errors of polars into one line that names the file. Callers pass ``glob=False``: paths are not patterns."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; run the rule that makes it")
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); {hint}") from None


def write_parquet(frame: pl.DataFrame, path: Path | str) -> None:
    """Write a table without a contract (per-session metrics, gains) in the same format."""
    with whole(path) as part:
        frame.write_parquet(part, compression="zstd", compression_level=3)


# Without pandera: its schemas need the same expressions, and its errors show the values of a row (a whole history) but
# not the file or the row's number, so each would be rewritten. It takes 1.6 times as long and four more packages.
def check(frame: pl.DataFrame, kind: str, where: str, partial: bool = False) -> None:
    """Raise a ``UserError`` that names ``where``, the column and the first invalid row; extra columns are allowed."""
    for column, dtype in CONTRACTS[kind].items():
        if column not in frame.columns:
            if partial:
                continue
            raise UserError(f"{where}: column '{column}' is missing; found {', '.join(frame.columns)}")
        if frame.schema[column] != dtype:
            raise UserError(f"{where}: column '{column}' has type {frame.schema[column]}, expected {dtype}")
        nullable = column in ("reviews", "logprob", "first_seen")
        if not nullable and (nulls := frame[column].null_count()):
            raise UserError(f"{where}: column '{column}' has {nulls} empty cells")
    if partial:
        return
    key = {"items": ["item"], "profiles": ["session", "sample"], "users": ["user_id"]}.get(kind, ["session"])
    if frame.select(key).is_duplicated().any():
        raise UserError(f"{where}: {' and '.join(key)} must be unique, but some rows repeat")
    rules: dict[str, list[tuple[str, pl.Expr]]] = {
        "items": [("items must be numbered 0..N-1 in order", pl.col("item") == pl.int_range(pl.len()))],
        "sessions": [
            (f"split must be one of {', '.join(SPLITS)}", pl.col("split").is_in(SPLITS)),
            ("history must not be empty", pl.col("history").list.len() > 0),
            ("history and ratings must have equal length", _len("history") == _len("ratings")),
            (
                "history and reviews must have equal length",
                pl.col("reviews").is_null() | (_len("history") == _len("reviews")),
            ),
            ("the target must not be among the seen items", ~pl.col("seen").list.contains(pl.col("target"))),
            (
                "seen must hold the whole history",
                pl.col("history").list.set_difference("seen").list.len() == 0,
            ),
        ],
        "profiles": [("tokens must not be negative", pl.col("tokens") >= 0)],
        "ranks": [
            ("rank must be at least 1", pl.col("rank") >= 1),
            ("top and top_scores must have equal length", _len("top") == _len("top_scores")),
        ],
        "evaluation": [(f"split must be one of {', '.join(SPLITS)}", pl.col("split").is_in(SPLITS))],
        "users": [],
    }
    for message, holds in rules[kind]:
        bad = frame.with_row_index("row").filter(~holds)
        if len(bad):
            raise UserError(f"{where}: {message}; {len(bad)} rows break this, first row {bad['row'][0]}")


def _len(column: str) -> pl.Expr:
    return pl.col(column).list.len()
