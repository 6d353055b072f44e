"""Titles as MovieLens writes them, and as people do."""

from __future__ import annotations

import re

import polars as pl

from langptune.config.datasets import DatasetEntry

_MOVED = r"^(?P<rest>.+), (?P<article>The|A|An|Les?|La|L'|El|Los|Las|Il|Die|Der|Das|Une?)"
_LAST = re.compile(rf"{_MOVED}(?P<tail>)$")
_BEFORE_BRACKETS = re.compile(rf"{_MOVED}(?P<tail> \(.*\))?$")


def move_article(title: str) -> str:
    """``Usual Suspects, The`` to ``The Usual Suspects``; a trailing parenthesis stays last."""
    line = title.removesuffix("\n")
    if "\n" in line:
        return title
    # Where no bracket ends the title, none is looked for: to look after each article takes the square of its length.
    match = (_BEFORE_BRACKETS if line.endswith(")") else _LAST).match(title)
    if not match:
        return title
    space = "" if match["article"].endswith("'") else " "
    return f"{match['article']}{space}{match['rest']}{match['tail'] or ''}"


def articles_first(items: pl.DataFrame, entry: DatasetEntry) -> pl.DataFrame:
    """The items with their titles turned around, where the dataset's entry asks for it."""
    if not entry.move_articles:
        return items
    return items.with_columns(pl.col("title").map_elements(move_article, return_dtype=pl.String))


# (1995), (2006-2007), (2009– ): the last brackets of a title, unless they are all of it.
_YEAR = r"^(.*\S)\s*\(\s*([0-9]{4})\s*(?:([-–])\s*([0-9]{4})?\s*)?\)\s*$"


def year_apart(items: pl.DataFrame) -> pl.DataFrame:
    """``Toy Story (1995)`` as title and year, ``Death Note (2006–2007)`` with year ``2006-2007``; no year: empty."""
    title = pl.col("title").str.strip_chars()
    parts = title.str.extract_groups(_YEAR).struct
    dash = pl.when(parts.field("3").is_null()).then(pl.lit("")).otherwise(pl.lit("-"))
    return items.with_columns(
        pl.coalesce(parts.field("1"), title).alias("title"),
        (parts.field("2") + dash + parts.field("4").fill_null("")).fill_null("").alias("year"),
    )
