"""Escapes text in CSV files, because spreadsheets evaluate cells that begin like a formula.

Such a text is prefixed by an apostrophe, which marks text in spreadsheets; ``plain`` removes it again. Numbers, also
negative ones, stay numbers.
"""

from __future__ import annotations

import re

import polars as pl

FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
"""The beginning of a formula in any spreadsheet, after optional apostrophes, so that ``plain`` undoes ``cell``."""


def cell(text: str) -> str:
    """A text that is safe in a cell."""
    return f"'{text}" if FORMULA.match(text) and not _number(text) else text


def plain(text: str) -> str:
    """The text from which ``cell`` made this one."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def cells(table: pl.DataFrame) -> pl.DataFrame:
    """A table with texts that are safe in cells."""
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
