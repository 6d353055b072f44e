"""Reads files of rows and cells: CSV, TSV, ``::`` between cells, Parquet. All such files are opened here.

A file is read completely or refused: each row must have as many cells as the header, and errors name its line. Parsers
of tables fill short rows, let a stray quote swallow the following rows, and treat brackets in a path as a pattern.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from langptune.config.base import nearest
from langptune.data import bounded, contracts
from langptune.errors import UserError

CHUNK = 1 << 22
"""Bytes whose cells are counted at once; the positions of cells take up to a hundred times as much."""
COLUMNS = 10_000
"""Limit on the columns of a file."""
_CELL = 8
"""Minimum size of a Parquet cell in memory, in bytes."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NEWLINE, _RETURN, _QUOTE, _UNIT = 10, 13, 34, b"\x1f"


@dataclass(frozen=True)
class Table:
    """The requested columns of a file.

    path: the file's name in errors.
    frame: the columns; strings from text files, typed from Parquet files.
    lines: int ``[rows]``, the line (Parquet: row) where each row begins, from 1.
    unit: "line" or "row".
    notes: lines for the log.
    """

    path: Path
    frame: pl.DataFrame
    lines: pl.Series
    unit: str = "line"
    notes: list[str] = field(default_factory=list)

    def at(self, row: int) -> str:
        """The location of a row of ``frame`` in errors."""
        return f"{self.path}: {self.unit} {self.lines[row]}"

    def __len__(self) -> int:
        return len(self.frame)


def read_file(path: Path, columns: list[str]) -> Table:
    """Read columns of a ``.csv``, ``.tsv`` (either also ``.gz``) or ``.parquet`` file.

    Raises:
        UserError: the file is missing, of another kind, or invalid (``delimited``).
    """
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir() if p.is_file()) if path.parent.is_dir() else []
        raise UserError(f"{path}: missing{nearest(path.name, there)}")
    # The suffix before .gz gives the format.
    kind = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    if kind == ".parquet" and path.suffix.lower() != ".gz":
        return _parquet(path, columns)
    if kind not in SEPARATORS:
        raise UserError(
            f"{path}: the name ends in neither .csv, .tsv (or either with .gz) nor .parquet; rename the file to "
            "match its format, and change 'tables' in datasets.yaml"
        )
    return delimited(content(path), path, SEPARATORS[kind], columns=columns, quoted=kind == ".csv")


def content(path: Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in .gz; a ``UserError`` if that fails."""
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                return bounded.whole(stream, path.stat().st_size, path)
        if path.stat().st_size > bounded.LARGEST:
            raise UserError(f"{path}: larger than {bounded.LARGEST:,} bytes; save it as Parquet, or in parts")
        data = path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the gzip file is damaged or cut off ({error}); get it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if data.startswith(b"\x1f\x8b"):
        raise UserError(f"{path}: the content is a gzip file; unpack it, or end its name in .gz")
    return data


def delimited(
    data: bytes,
    path: Path,
    separator: str,
    *,
    columns: list[str],
    quoted: bool,
    header: bool = True,
    typed: bool = False,
    every: bool = False,
) -> Table:
    """Parse columns of a text with one row per line, all cells as strings; empty cells are "".

    Args:
        separator: one character, or ``::``.
        columns: names in the header, in any order; without a header, the names of all columns in order.
        quoted: cells may be quoted, as in CSV. False: quotes have no special meaning.
        typed: names in the header end in a type (``user_id:token``), which is removed.
        every: return all columns of the header; they must include ``columns``.

    Raises:
        UserError: a row has too many or too few cells, a quote within a cell, an unclosed quote, or bytes that are not
            UTF-8; a column is missing or occurs twice; or there are no rows.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: the text is UTF-16; save the file as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    for byte, what in ((b"\0", "a NUL byte"), *([(_UNIT, "a control character (0x1f)")] * (separator == "::"))):
        if (place := data.find(byte)) >= 0:
            raise UserError(f"{path}: line {_line(data, place)}: {what}; the file is damaged or not a text")
    if separator == "::":
        data, shown, separator = data.replace(b"::", _UNIT), "::", _UNIT.decode()
    else:
        shown = {"\t": "tab"}.get(separator, separator)
    names = _header(data, path, separator, quoted, typed) if header else columns
    columns = list(dict.fromkeys([*columns, *names])) if every else columns
    if len(names) > COLUMNS:
        raise UserError(f"{path}: {len(names)} columns, more than {COLUMNS}; is the separator right?")
    places = {name: at for at, name in enumerate(names)}
    often = Counter(names)
    for name in columns:
        if often[name] != 1:
            problem = f"is missing{nearest(name, names)}" if name not in places else "occurs twice in the header"
            raise UserError(f"{path}: column '{name}' {problem}")
    data, lines, spans = _rows(data, path, separator, quoted, shown, len(names), header)
    if len(lines) <= header:
        raise UserError(f"{path}: no rows below the header" if header else f"{path}: the file is empty")
    wanted = [places[name] for name in columns]
    try:
        frame = pl.read_csv(
            data,
            separator=separator,
            quote_char='"' if quoted else None,
            has_header=False,
            skip_rows=0,
            new_columns=[f"{place}" for place in range(len(names))],
            columns=wanted,
            infer_schema=False,
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        try:
            data.decode()
        except UnicodeDecodeError as bad:
            raise UserError(
                f"{path}: line {_line(data, bad.start)}: the byte 0x{data[bad.start]:02x} is not UTF-8; save the file "
                "as UTF-8"
            ) from None
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0][:200]}") from None
    frame = frame.select(pl.col(f"{place}").alias(name) for place, name in zip(wanted, columns, strict=True))
    if len(frame) != len(lines):
        raise UserError(f"{path}: {len(frame)} rows were read of {len(lines)}; save the file again, as UTF-8 text")
    frame = frame.slice(int(header)).with_columns(pl.all().fill_null(""))
    return Table(path, frame, pl.Series("line", lines[int(header) :], dtype=pl.Int64), notes=spans)


def _header(data: bytes, path: Path, separator: str, quoted: bool, typed: bool) -> list[str]:
    if not data.strip():
        raise UserError(f"{path}: the file is empty")
    # The first non-blank line; names with line breaks are not supported.
    first = next(line for line in io.BytesIO(data) if line.strip(b"\r\n")).rstrip(b"\r\n").decode(errors="replace")
    if len(first) > bounded.LINE:
        raise bounded.too_long(path, 1)
    try:
        names = next(csv.reader([first], delimiter=separator)) if quoted else first.split(separator)
    except csv.Error as error:
        raise UserError(f"{path}: the header cannot be read ({error}); save the file again, one row a line") from None
    return [name.split(":")[0].strip() for name in names] if typed else names


def _rows(
    data: bytes, path: Path, separator: str, quoted: bool, shown: str, width: int, header: bool
) -> tuple[bytes, np.ndarray, list[str]]:
    """The text without blank lines, the line where each row begins, and notes; the cells of each row are counted."""
    whole = np.frombuffer(data, dtype=np.uint8)
    begins: list[np.ndarray] = []
    pieces: list[bytes | memoryview] = []
    blank, size = False, CHUNK
    start, line, spans, first_span = 0, 1, 0, 0
    while start < len(whole):
        end = min(start + size, len(whole))
        part = whole[start:end]
        newlines = np.flatnonzero(part == _NEWLINE)
        splits = np.flatnonzero(part == ord(separator))
        ends, last = newlines, end == len(whole)
        if quoted and (quotes := part == _QUOTE).any():
            inside = np.bitwise_xor.accumulate(quotes)  # whether a quoted cell is open after each byte
            ends, splits = newlines[~inside[newlines]], splits[~inside[splits]]
            # A quoted cell that continues beyond this part is checked with the next part.
            sure = len(part) if last else (ends[-1] + 1 if len(ends) else 0)
            _check_quotes(whole, start, np.flatnonzero(quotes[:sure]), path, separator, data, sure == len(part))
        if last and (not len(ends) or ends[-1] != len(part) - 1):
            ends = np.append(ends, len(part))  # the last line has no line break
        if not len(ends):
            if len(part) >= bounded.LINE:
                raise bounded.too_long(path, line)
            size *= 2
            continue
        first = np.concatenate([[0], ends[:-1] + 1])
        cells = np.diff(np.searchsorted(splits, ends), prepend=0) + 1
        # Physical lines before each row of the part.
        before = np.searchsorted(newlines, first)
        lengths = ends - first
        nothing = (lengths == 0) | ((lengths == 1) & (part[np.minimum(first, len(part) - 1)] == _RETURN))
        wrong = np.flatnonzero((cells != width) & ~nothing)
        if len(wrong):
            row = wrong[0]
            raise UserError(
                f"{path}: line {line + before[row]}: {cells[row]} cell{'s' * int(cells[row] != 1)}, "
                + (f"the header has {width}" if header else f"expected {width}")
                + "; "
                + _why(int(cells[row]) > width, shown, quoted)
            )
        over = np.diff(np.append(before, np.searchsorted(newlines, ends[-1]) + 1)) > 1
        if over.any():
            first_span = first_span or int(line + before[np.argmax(over)])
            spans += int(over.sum())
        begins.append(line + before[~nothing])
        used = min(int(ends[-1]) + 1, len(part))
        if nothing.any():
            blank = True
            kept = np.ones(used, dtype=bool)
            # A blank line is a line break, optionally preceded by a carriage return.
            kept[first[nothing]] = kept[np.minimum(ends[nothing], used - 1)] = False
            pieces.append(part[:used][kept].tobytes())
        else:
            pieces.append(memoryview(data)[start : start + used])
        line += int(np.searchsorted(newlines, ends[-1])) + 1
        start += int(ends[-1]) + 1
    if blank:
        data = b"".join(pieces)
    notes = [
        f"{path}: line {first_span}: a quoted cell goes over more than one line: {spans} such row{'s' * (spans != 1)}"
    ]
    return data, np.concatenate(begins) if begins else np.zeros(0, np.int64), notes if spans else []


def _why(more: bool, shown: str, quoted: bool) -> str:
    if quoted and more:
        return "put quotes around a cell that holds a comma"
    if quoted:
        return "a cell is missing, or a line break is in a cell without quotes"
    return f"a {shown} or a line break inside a cell?"


def _check_quotes(
    whole: np.ndarray, start: int, quotes: np.ndarray, path: Path, separator: str, data: bytes, complete: bool
) -> None:
    """Check quotes: one opens a cell at its beginning, one closes it at its end, and within it they are doubled."""
    opening, closing = quotes[::2] + start, quotes[1::2] + start
    edges = np.array([ord(separator), _NEWLINE, _QUOTE, _RETURN], dtype=np.uint8)
    before = np.where(opening == 0, _NEWLINE, whole[np.maximum(opening - 1, 0)])
    after = np.where(closing == len(whole) - 1, _NEWLINE, whole[np.minimum(closing + 1, len(whole) - 1)])
    bad_open, bad_close = opening[~np.isin(before, edges[:3])], closing[~np.isin(after, edges)]
    # The invalid row begins with the last opened quote.
    bad = [*bad_open[:1], *opening[: len(closing)][~np.isin(after, edges)][:1]]
    if complete and len(opening) > len(closing) and not len(bad_open) and not len(bad_close):
        raise UserError(
            f"{path}: line {_line(data, int(opening[-1]))}: a quote opens a cell and none closes it; write a quote "
            "within a cell twice, with quotes around the cell"
        )
    if bad:
        raise UserError(
            f"{path}: line {_line(data, int(min(bad)))}: a quote within a cell; write it twice, with quotes around the "
            "cell"
        )


def _line(data: bytes, place: int) -> int:
    return data.count(b"\n", 0, place) + 1


def _parquet(path: Path, columns: list[str]) -> Table:
    """The wanted columns alone: the others may be of any type."""
    names = contracts.parquet_schema(path)
    for column in columns:
        if column not in names:
            raise UserError(f"{path}: column '{column}' is missing{nearest(column, list(names))}")
    columns = list(dict.fromkeys(columns))
    # Parquet stores equal cells once with their count, so the file's size does not tell its size in memory.
    packed = path.stat().st_size
    bound = min(bounded.most(packed), bounded.LARGEST)
    if contracts.parquet_rows(path) * len(columns) * _CELL > bound:
        raise bounded.too_large(path, packed, bound)
    texts = [column for column in columns if isinstance(names[column], pl.String | pl.Categorical | pl.Enum)]
    if contracts.parquet_text(path, texts, bound) > bound:
        raise bounded.too_large(path, packed, bound)
    frame = contracts.read_parquet(path, columns, hint=contracts.FOREIGN)
    if not len(frame):
        raise UserError(f"{path}: no rows")
    return Table(path, frame, pl.int_range(1, len(frame) + 1, dtype=pl.Int64, eager=True), unit="row")
