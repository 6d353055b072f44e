"""Reads JSON-lines files of any size in chunks: polars parses them, and invalid chunks are parsed line by line."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import polars as pl

from langptune.data import bounded
from langptune.data.reader_output import Problems
from langptune.errors import UserError

T = TypeVar("T")
_HALVES = re.compile("[\ud800-\udfff]")
CHUNK = 1 << 24
"""Bytes of text that are parsed at once: large enough to amortise overhead, small compared with memory."""


def records(path: Path, schema: dict[str, Any], problems: Problems, whole: bool = False) -> Iterator[pl.DataFrame]:
    """The objects of a file, one per line, as tables of ``line`` (Int64, 1-based) and the columns of ``schema``.

    Missing keys become null. A value of another type in a String column becomes its JSON text. Numbers written as text
    are repaired and counted; lines that are not a JSON object, or have an invalid number, are left out and counted.

    Args:
        path: a ``.jsonl`` or ``.jsonl.gz`` file.
        schema: key -> String, Int64 or Float64.
        problems: collects what was repaired or left out, and the number of rows.
        whole: also return ``json`` (Binary), the original lines.

    Raises:
        UserError: a gzip stream is damaged or truncated; its unpacked size or a line exceeds its limit (``bounded``);
            the file cannot be opened; too many rows are bad.
    """
    # Parsing runs in another thread than the caller's work on the tables.
    return _ahead(_records(path, schema, problems, whole))


def _records(path: Path, schema: dict[str, Any], problems: Problems, whole: bool) -> Iterator[pl.DataFrame]:
    line = 1
    for text, lines in _chunks(path):
        frame = _parsed(text, schema)
        if frame is None or len(frame) != lines:
            frame = _one_by_one(text, schema, line, problems)
        else:
            problems.rows += lines
            frame = frame.with_columns(pl.int_range(line, line + len(frame), dtype=pl.Int64).alias("line"))
        if whole:
            written = pl.Series("json", text.removesuffix(b"\n").split(b"\n"), dtype=pl.Binary)
            frame = frame.with_columns(written.gather(frame["line"] - line))
        line += lines
        problems.check(final=False)
        yield frame


def _parsed(text: bytes, schema: dict[str, Any]) -> pl.DataFrame | None:
    try:
        return pl.read_ndjson(io.BytesIO(text), schema=schema)
    except pl.exceptions.PolarsError:
        return None


def _one_by_one(text: bytes, schema: dict[str, Any], first: int, problems: Problems) -> pl.DataFrame:
    rows = []
    for number, raw in enumerate(text.removesuffix(b"\n").split(b"\n"), start=first):
        if not raw.strip():
            continue
        problems.rows += 1
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError) as error:
            problems.add("not valid JSON", number, str(error))
            continue
        if not isinstance(found, dict):
            problems.add("not a JSON object", number, raw[:40].decode(errors="replace"))
            continue
        row: dict[str, Any] = {"line": number}
        for key, dtype in schema.items():
            value = found.get(key)
            if value is not None:
                try:
                    row[key] = _as(value, dtype)
                except (ValueError, TypeError, OverflowError):
                    problems.add(f"{key} is not a {'whole ' * (dtype == pl.Int64)}number", number, repr(value))
                    break
                if dtype != pl.String and isinstance(value, str):
                    problems.add(f"{key} is text", number, repr(value), repaired=True)
        else:
            rows.append(row)
    return pl.DataFrame(rows, schema={**schema, "line": pl.Int64})


def _as(value: Any, dtype: Any) -> Any:
    """Convert a JSON value to a column's type; a ``ValueError`` if it cannot be converted."""
    if dtype == pl.String:
        return storable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if dtype == pl.Float64:
        return number
    if number != int(number):
        raise ValueError
    whole = int(value) if isinstance(value, int | str) else int(number)
    if not -(2**63) <= whole < 2**63:
        raise ValueError
    return whole


def storable(text: str) -> str:
    """Replace lone surrogates, which JSON can contain and UTF-8 cannot, as polars does."""
    return _HALVES.sub("\x00", text)


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Complete lines, about ``CHUNK`` bytes at a time, and their number."""
    read = size = 0
    try:
        packed = path.stat().st_size
        bound = bounded.most(packed) if path.suffix == ".gz" else None
        with _open(path) as stream:
            while text := stream.read(CHUNK):
                rest = stream.readline(bounded.LINE + 1)
                if len(rest) > bounded.LINE:
                    raise bounded.too_long(path, read + text.count(b"\n") + 1)
                text += rest
                size += len(text)
                if bound is not None and size > bound:
                    raise bounded.too_large(path, packed, bound)
                lines = text.count(b"\n") + (not text.endswith(b"\n"))
                read += lines
                yield text, lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: the gzip file is damaged or cut off, somewhere after line {read} ({error}); get it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _ahead(parts: Iterator[T]) -> Iterator[T]:
    """The same parts; the next one is computed while one is used."""
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(next, parts, None)
        while (part := upcoming.result()) is not None:
            upcoming = executor.submit(next, parts, None)
            yield part
