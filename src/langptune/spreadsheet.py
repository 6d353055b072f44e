"""Text in CSV files that people open in a spreadsheet, which would compute a cell that begins like a formula.

Such a text gets an apostrophe in front, which spreadsheets and people read as "this is text"; ``plain`` takes it off
again. Numbers, whatever their sign, stay numbers.
"""

from __future__ import annotations

import re

import polars as pl

FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
"""How a formula begins, for some spreadsheet; apostrophes in front count, so that ``plain`` undoes ``cell``."""


def cell(text: str) -> str:
    """A text as it may stand in a cell."""
    return f"'{text}" if FORMULA.match(text) and not _number(text) else text


def plain(text: str) -> str:
    """What ``cell`` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def cells(table: pl.DataFrame) -> pl.DataFrame:
    """A table whose texts may stand in cells."""
    texts = [name for name, kind in table.schema.items() if kind == pl.String]
    return table.with_columns(
        pl.Series(name, [None if text is None else cell(text) for text in table[name]], dtype=pl.String)
        for name in texts
    )


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
