"""Cleans texts: removes HTML, and empties fields with words for "no value".

Every text of an item or a prompt is cleaned here once, in ``langptune.data.reader_output.Raw``, for all readers.
"""

from __future__ import annotations

import html
import unicodedata
from html.entities import html5

import polars as pl

_ATTRIBUTES = r"""(?:\s+[a-z:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))*\s*/?>"""
# Only the tags of formatted text. Anything else in angle brackets may be part of the text: <3, <|im_end|>, and </s>,
# which is rare as a tag and common as the name of a token.
_BREAKING = (
    r"</?(?:br|p|div|li|ul|ol|dl|dt|dd|tr|td|th|table|tbody|thead|h[1-6]|hr|blockquote|pre|center|section|article|img)"
)
_INLINE = r"</?(?:a|b|i|u|em|strong|span|font|small|big|sub|sup|strike|del|ins|tt|code|abbr|cite|q|mark|wbr)"
BREAKING = rf"(?i)[ \t]*(?:(?:{_BREAKING}{_ATTRIBUTES}|<!--[^<>]*-->)[ \t]*)+"
INLINE = rf"(?i){_INLINE}{_ATTRIBUTES}"
ENTITY = r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
_SUSPECT = r"<[/!a-zA-Z]|&[#a-zA-Z]"
ROUNDS = 5
"""Limit on rounds of unescaping: shops escape text that is escaped already (``&amp;quot;``)."""
NO_VALUE = ["None", "NULL", "null", "nan", "NaN", "NaT", "<NA>", "N/A", "n/a", "—"]
"""Words that programs write for a missing value. Titles are exempt: a title may be such a word."""
_EMPTY_BRACKETS = r"^(.*\S)\s*\(\s*\)\s*$"


def without_html(texts: pl.Series) -> pl.Series:
    """Remove the tags of formatted text and replace entities by their characters.

    A tag that ends a line or a block becomes a space, other tags become nothing. Text without HTML is unchanged.
    Cleaning is idempotent.

    Args:
        texts: str; nulls stay null.
    """
    rows = texts.str.contains(_SUSPECT).fill_null(False).arg_true()
    if not len(rows):
        return texts
    before = part = texts.gather(rows)
    for _ in range(ROUNDS):
        last = part
        part = part.str.replace_all(BREAKING, " ").str.replace_all(INLINE, "")
        named = part.str.extract_all(ENTITY).explode().drop_nulls().unique().to_list()
        plain = {entity: text for entity in named if (text := _character(entity)) is not None}
        if plain:
            part = part.str.replace_many(list(plain), list(plain.values()))
        if part.equals(last):
            break
    changed = part != before
    part = part.str.strip_chars().zip_with(changed, before)
    return texts.clone().scatter(rows, part)


def _character(entity: str) -> str | None:
    """The character of an entity; None if it is not an entity (``&Sons;``)."""
    # Not html.unescape for names: it matches prefixes of longer words (&notit; begins with &not).
    text = html.unescape(entity) if entity[1] == "#" else html5.get(entity[1:])
    if text is None:
        return None
    if text.isspace():
        return " "
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs", "Cn") and c != "\ufffd")


def clean_items(items: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """The fields of items as plain text, and the number of items that each kind of cleaning changed.

    Args:
        items: item_id and further str columns, including ``title``; ids are not changed.
    """
    items, changed = _clean(items, [name for name in items.columns if name != "item_id"])
    counts = {"(kept) items with HTML entities or tags, cleaned": changed}
    titles = items["title"]
    bare = titles.str.replace(_EMPTY_BRACKETS, "${1}")
    counts["(kept) titles with empty brackets at the end, cleaned"] = int((bare != titles).sum())
    empty = [pl.col(name).is_in(NO_VALUE) for name in items.columns if name not in ("item_id", "title")]
    if empty:
        counts["(kept) items with a field like 'None' for no value, emptied"] = int(
            items.select(pl.any_horizontal(empty)).to_series().sum()
        )
    items = items.with_columns(
        bare,
        *[
            pl.when(pl.col(name).is_in(NO_VALUE)).then(pl.lit("")).otherwise(pl.col(name)).alias(name)
            for name in items.columns
            if name not in ("item_id", "title")
        ],
    )
    return items, {reason: count for reason, count in counts.items() if count}


def clean_reviews(reviews: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Column ``review`` as plain text, and the number of changed reviews."""
    reviews, changed = _clean(reviews, ["review"])
    return reviews, {"(kept) reviews in histories with HTML entities or tags, cleaned": changed} if changed else {}


def clean_users(users: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """The fields of users as plain text, and the number of changed users.

    Words like "none" are kept: it is an occupation in MovieLens.
    """
    users, changed = _clean(users, [name for name in users.columns if name != "user_id"])
    return users, {"(kept) users with HTML entities or tags in a field, cleaned": changed} if changed else {}


def _clean(frame: pl.DataFrame, columns: list[str]) -> tuple[pl.DataFrame, int]:
    plain = [without_html(frame[name]) for name in columns]
    # A text that consists only of tags is kept: it may be a title.
    plain = [new.zip_with((new != "").fill_null(True), frame[new.name]) for new in plain]
    if not plain:
        return frame, 0
    changed = pl.DataFrame([(new != frame[new.name]).fill_null(False) for new in plain])
    return frame.with_columns(plain), int(changed.select(pl.any_horizontal(pl.all())).to_series().sum())
