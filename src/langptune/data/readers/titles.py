"""Titles as MovieLens writes them, and as people do."""

from __future__ import annotations

import re

import polars as pl

from langptune.config.datasets import DatasetEntry

_ARTICLE = re.compile(
    r"^(?P<rest>.+), (?P<article>The|A|An|Les?|La|L'|El|Los|Las|Il|Die|Der|Das|Une?)(?P<tail> \(.*\))?$"
)


def move_article(title: str) -> str:
    """``Usual Suspects, The`` to ``The Usual Suspects``; a trailing parenthesis stays last."""
    match = _ARTICLE.match(title)
    if not match:
        return title
    space = "" if match["article"].endswith("'") else " "
    return f"{match['article']}{space}{match['rest']}{match['tail'] or ''}"


def articles_first(items: pl.DataFrame, entry: DatasetEntry) -> pl.DataFrame:
    """The items with their titles turned around, where the dataset's entry asks for it."""
    if not entry.move_articles:
        return items
    return items.with_columns(pl.col("title").map_elements(move_article, return_dtype=pl.String))
