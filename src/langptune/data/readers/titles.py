"""Converts titles from MovieLens's form to the usual one: articles first, years separate."""

from __future__ import annotations

import re

import polars as pl

from langptune.config.datasets import DatasetEntry

_MOVED = r"^(?P<rest>.+), (?P<article>The|A|An|Les?|La|L'|El|Los|Las|Il|Die|Der|Das|Une?)"
_LAST = re.compile(rf"{_MOVED}(?P<tail>)$")
_BEFORE_BRACKETS = re.compile(rf"{_MOVED}(?P<tail> \(.*\))?$")


def move_article(title: str) -> str:
    """Turn ``Usual Suspects, The`` into ``The Usual Suspects``; trailing brackets stay last."""
    line = title.removesuffix("\n")
    if "\n" in line:
        return title
    # The search for brackets is skipped if none ends the title: after each article it would take quadratic time.
    match = (_BEFORE_BRACKETS if line.endswith(")") else _LAST).match(title)
    if not match:
        return title
    space = "" if match["article"].endswith("'") else " "
    return f"{match['article']}{space}{match['rest']}{match['tail'] or ''}"


def articles_first(items: pl.DataFrame, entry: DatasetEntry) -> pl.DataFrame:
    """The items with the articles of titles moved to the front, if the dataset's entry requires it."""
    if not entry.move_articles:
        return items
    return items.with_columns(pl.col("title").map_elements(move_article, return_dtype=pl.String))


# (1995), (2006-2007), (2009– ): the last brackets of a title, unless they are the whole title.
_YEAR = r"^(.*\S)\s*\(\s*([0-9]{4})\s*(?:([-–])\s*([0-9]{4})?\s*)?\)\s*$"


def year_apart(items: pl.DataFrame) -> pl.DataFrame:
    """Split ``Toy Story (1995)`` into title and year; ``Death Note (2006–2007)`` has year ``2006-2007``; else empty."""
    title = pl.col("title").str.strip_chars()
    parts = title.str.extract_groups(_YEAR).struct
    dash = pl.when(parts.field("3").is_null()).then(pl.lit("")).otherwise(pl.lit("-"))
    return items.with_columns(
        pl.coalesce(parts.field("1"), title).alias("title"),
        (parts.field("2") + dash + parts.field("4").fill_null("")).fill_null("").alias("year"),
    )
