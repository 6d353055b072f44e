"""Reads the times of interactions, for all files of rows and cells.

Nothing is rounded: different times in the file stay different, because a user's order depends on them.
"""

from __future__ import annotations

import polars as pl

from langptune.data.readers.cells import Table
from langptune.errors import UserError

_DECIMAL = r"^(-?[0-9]+)(?:\.([0-9]*))?$"
_ISO = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([0-9]{2}:[0-5][0-9])(?::([0-5][0-9])(?:[.,]([0-9]{1,9}))?)?"
    r"(?: ?(Z|z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?))?)?$"
)
FINEST = 9
"""Limit on the digits of a fraction."""
FORMS = (
    f"write whole numbers, numbers with at most {FINEST} digits after the point, or ISO dates as 2023-12-01T10:30:00Z"
)


def times(table: Table, column: str, notes: list[str]) -> pl.Series:
    """Column ``timestamp``, Int64: whole numbers unchanged, in any unit.

    Numbers with fractions are converted to thousandths, millionths or billionths of their unit, depending on the finest
    fraction. ISO dates and times become microseconds since 1970 (nanoseconds if a fraction has more than six digits);
    without an offset they are UTC.

    Args:
        notes: receives a line if the unit was changed.

    Raises:
        UserError: a time has another format (slash dates, exponents), a column has two formats, a time does not fit
            into 64 bits, or a float column is too coarse for its numbers; the message names file, line and value.
    """
    values = table.frame[column]
    if empty := values.null_count():
        raise UserError(f"{table.at(int(values.is_null().arg_max()))}: '{column}' is empty ({empty} such rows)")
    dtype = values.dtype
    if dtype.is_integer():
        found = values.cast(pl.Int64, strict=False)
        _all_there(found, values.cast(pl.String), table, column)
        return found.alias("timestamp")
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        fine = isinstance(dtype, pl.Datetime) and dtype.time_unit == "ns"
        return values.dt.epoch("ns" if fine else "us").cast(pl.Int64).alias("timestamp")
    if dtype.is_float():
        values = _digits(values, table, column)
    elif not (dtype == pl.String or dtype.is_decimal()):
        raise UserError(f"{table.path}: column '{column}' has type {dtype}, which is no time; {FORMS}")
    text = values.cast(pl.String).str.strip_chars()
    found = text.cast(pl.Int64, strict=False)
    if not found.null_count():
        return found.alias("timestamp")
    number, iso = text.str.contains(_DECIMAL), text.str.contains(_ISO)
    neither = ~(number | iso)
    if neither.any():
        row = int(neither.arg_max())
        raise UserError(
            f"{table.at(row)}: {column} is '{text[row][:40]}', neither a whole number nor an ISO date "
            f"({neither.sum()} such rows); {FORMS}"
        )
    for other in (number, iso):
        if other[0] and not other.all():
            row = int((~other).arg_max())
            raise UserError(
                f"{table.at(row)}: {column} is '{text[row][:40]}', but '{text[0][:40]}' in {table.unit} "
                f"{table.lines[0]}; write all times in one form"
            )
    found = _fractions(text, table, column, notes) if number[0] else _iso(text, table, column)
    return found.alias("timestamp")


def _digits(values: pl.Series, table: Table, column: str) -> pl.Series:
    """Floats as their shortest decimal representation; refused if adjacent integers could have become equal."""
    limit = 2**53 if values.dtype == pl.Float64 else 2**24
    bad = ~values.is_finite() | (values.abs() > limit)
    if bad.any():
        row = int(bad.arg_max())
        raise UserError(
            f"{table.at(row)}: {column} is {values[row]}, and a column of type {values.dtype} holds no exact whole "
            f"numbers above {limit}; save it as 64-bit integers"
        )
    if (values == values.floor()).all():
        return values.cast(pl.Int64).cast(pl.String)
    if values.dtype != pl.Float64:
        raise UserError(f"{table.path}: column '{column}' has type {values.dtype}, too coarse for fractions; {FORMS}")
    return pl.Series([repr(value) for value in values.to_list()], dtype=pl.String)


def _fractions(text: pl.Series, table: Table, column: str, notes: list[str]) -> pl.Series:
    parts = text.str.extract_groups(_DECIMAL).struct
    whole = parts.field("1")
    fraction = parts.field("2").fill_null("").str.strip_chars_end("0")
    lengths = fraction.str.len_bytes()
    if int(lengths.max()) > FINEST:
        row = int((lengths > FINEST).arg_max())
        raise UserError(f"{table.at(row)}: {column} is '{text[row][:60]}', too many digits after the point; {FORMS}")
    places = -(-int(lengths.max()) // 3) * 3
    found = (whole + fraction.str.pad_end(places, "0")).cast(pl.Int64, strict=False)
    _all_there(found, text, table, column)
    if places:
        notes.append(
            f"{table.path}: {column} has fractions: times are counted in 1/{10**places} of its unit, "
            f"{int((lengths > 0).sum())} such rows"
        )
    return found


def _iso(text: pl.Series, table: Table, column: str) -> pl.Series:
    parts = text.str.extract_groups(_ISO).struct
    clock = parts.field("2").fill_null("00:00") + ":" + parts.field("3").fill_null("00")
    day = (parts.field("1") + " " + clock).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
    if day.null_count():
        row = int(day.is_null().arg_max())
        raise UserError(
            f"{table.at(row)}: {column} is '{text[row][:40]}', a day or hour that does not exist "
            f"({day.null_count()} such rows)"
        )
    offset = parts.field("5")
    if 0 < offset.null_count() < len(offset):
        row = int(offset.is_null().arg_max())
        raise UserError(
            f"{table.at(row)}: {column} is '{text[row][:40]}', without the offset from UTC that other rows have; "
            "write it in all rows or in none"
        )
    # [+-]HH, [+-]HHMM or [+-]HH:MM; Z and UTC have none.
    hours, minutes = (
        offset.str.extract(r"^[+-]([0-9]{2})", 1).cast(pl.Int64).fill_null(0),
        offset.str.extract(r"^[+-][0-9]{2}:?([0-9]{2})$", 1).cast(pl.Int64).fill_null(0),
    )
    east = pl.Series([1]).extend_constant(1, len(text) - 1)
    east = east.zip_with(~offset.str.starts_with("-").fill_null(False), -east)
    seconds = day.dt.epoch("s") - east * (hours * 3600 + minutes * 60)
    fraction = parts.field("4").fill_null("").str.strip_chars_end("0")
    places = 6 if int(fraction.str.len_bytes().max()) <= 6 else 9
    if places == 9 and int(seconds.abs().max()) >= 2**63 // 10**9:
        row = int(seconds.abs().arg_max())
        raise UserError(f"{table.at(row)}: {column} is '{text[row][:40]}', which does not fit into 64-bit nanoseconds")
    return seconds * 10**places + fraction.str.pad_end(places, "0").cast(pl.Int64)


def _all_there(found: pl.Series, text: pl.Series, table: Table, column: str) -> None:
    if found.null_count():
        row = int(found.is_null().arg_max())
        raise UserError(
            f"{table.at(row)}: {column} is '{text[row][:40]}', which does not fit into 64 bits "
            f"({found.null_count()} such rows)"
        )
