"""Amazon Reviews 2023: one category's reviews and metadata, of any size, in two passes over the files.

Reviews of items without a title in the metadata are left out while reading (PAPER, section Data). The others are
written to Parquet parts in a scratch folder. Interactions are loaded only for users with enough of them for the
protocol's core, and texts only for what remains after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from langptune.config.base import nearest
from langptune.config.datasets import DatasetEntry
from langptune.data import contracts
from langptune.data.jsonl import records, storable
from langptune.data.reader_output import INTERACTIONS, Problems, Raw
from langptune.data.readers.checks import sound_id
from langptune.errors import UserError

REVIEW = {
    "user_id": pl.String,
    "parent_asin": pl.String,
    "timestamp": pl.Int64,
    "rating": pl.Float64,
    "text": pl.String,
}
FIRST_YEAR, LAST_YEAR = 1995, 2100
BATCH = 1 << 18
"""Number of reviews per join with the metadata."""
MATCHING = 0.1
"""Minimum share of reviews whose item is in the metadata; below it, the two files do not belong together. It is above
0.5 in the published files."""


def read_amazon(folder: Path, entry: DatasetEntry, scratch: Path | None) -> Raw:
    """Read ``review_categories/CATEGORY.jsonl[.gz]`` and ``meta_categories/meta_CATEGORY.jsonl[.gz]``, or both directly
    in ``folder``.

    Raises:
        UserError: a file is missing or damaged, has too many bad rows, or the metadata is of another category.
    """
    if scratch is None:
        raise UserError("reader 'amazon-2023' needs a scratch folder")
    reviews = _find(folder, entry.category, "review_categories", "")
    metadata = _find(folder, entry.category, "meta_categories", "meta_")
    about_items, about_reviews = Problems(metadata, entry.max_bad), Problems(reviews, entry.max_bad)
    columns = {"average_rating": "average_rating", **entry.columns}
    known = _read_metadata(metadata, columns, scratch, about_items)
    counts, funnel = _read_reviews(reviews, known, entry, scratch, about_reviews)

    parts = _parts(scratch, "reviews")
    active = counts.filter(pl.col("len") >= (entry.protocol.core or 1))
    interactions = (
        parts.select(*INTERACTIONS)
        .filter(pl.col("user_id").is_in(active["user_id"].implode()))
        .collect(engine="streaming")
    ).sort("row")
    # The parts contain all rows of a repeated item.
    items = _parts(scratch, "items").join(known.lazy().select("line"), on="line", how="semi")
    drops = {f"reviews: {reason}": count for reason, count in about_reviews.left_out.items()}
    drops |= {f"metadata: {reason}": count for reason, count in about_items.left_out.items()}
    return Raw(
        interactions,
        items,
        None,
        [reviews, metadata],
        reviews=parts.select("row", "review"),
        finish_items=lambda items: _finish(items, columns),
        drops=drops,
        funnel=funnel,
        notes=[*about_reviews.lines(), *about_items.lines()],
    )


def _read_metadata(path: Path, columns: dict[str, str], scratch: Path, problems: Problems) -> pl.DataFrame:
    """Write the rows with a title to parts; return ``line``, ``item_id`` and ``titled`` of each item's first row."""
    if "title" not in columns:
        raise UserError("datasets.yaml: reader 'amazon-2023': 'columns' must say which key is the title")
    known = []
    schema = {"parent_asin": pl.String, columns["title"]: pl.String}
    for number, frame in enumerate(records(path, schema, problems, whole=True)):
        frame = _identified(frame, "parent_asin", problems)
        frame = frame.select(
            "line",
            pl.col("parent_asin").alias("item_id"),
            "json",
            (pl.col(columns["title"]).fill_null("").str.strip_chars() != "").alias("titled"),
        )
        known.append(frame.select("line", "item_id", "titled"))
        frame.filter("titled").drop("titled").write_parquet(
            scratch / f"items-{number:06}.parquet", compression="zstd", compression_level=1
        )
    problems.check()
    every = pl.concat(known)
    first = every.unique("item_id", keep="first", maintain_order=True)
    if len(first) < len(every):
        again = every.join(first, on="line", how="anti")
        problems.add(
            "parent_asin occurs again; the first row counts", again["line"][0], again["item_id"][0], count=len(again)
        )
    return first


def _read_reviews(
    path: Path, known: pl.DataFrame, entry: DatasetEntry, scratch: Path, problems: Problems
) -> tuple[pl.DataFrame, list[dict[str, object]]]:
    """Write the reviews of titled items to parts; return each user's number (``len``), and the funnel's first steps."""
    low, high = entry.rating_range
    usable = matched = kept = 0
    for number, frame in enumerate(_batches(records(path, REVIEW, problems))):
        frame = _identified(frame, "user_id", problems)
        for column in ("parent_asin", "rating", "timestamp"):
            frame = _with(frame, column, problems)
        inside = pl.col("rating").is_between(low, high)
        frame = _keep(frame, inside, f"rating lies outside {low:g}..{high:g}", "rating", problems)
        frame = _in_milliseconds(frame, problems)
        titled = known.select(pl.col("item_id").alias("parent_asin"), "titled")
        frame = frame.join(titled, on="parent_asin", how="left", maintain_order="left")
        # The ids of known items were checked already.
        if not frame.filter(pl.col("titled").is_null()).select(sound_id("parent_asin").all()).item():
            frame = _identified(frame, "parent_asin", problems)
        frame = frame.rename({"parent_asin": "item_id", "text": "review", "line": "row"})
        usable += len(frame)
        matched += frame["titled"].count()
        frame = frame.filter("titled")
        kept += len(frame)
        frame.with_columns(pl.col("rating").cast(pl.Float32), pl.col("review").fill_null("")).select(
            *INTERACTIONS, "review"
        ).write_parquet(scratch / f"reviews-{number:06}.parquet", compression="lz4", statistics=False)
    problems.check()
    if matched < MATCHING * usable:
        raise UserError(
            f"{path}: only {matched} of {usable} reviews are of items in the metadata; do both files "
            f"belong to category '{entry.category}'?"
        )
    if not kept:
        raise UserError(f"{path}: no review is of an item with a title")
    parts = _parts(scratch, "reviews")
    counts = parts.group_by("user_id").len().collect(engine="streaming")
    return counts, [
        {"step": "reviews", "interactions": problems.rows},
        {"step": "usable", "interactions": usable},
        {
            "step": "metadata",
            "interactions": kept,
            "users": len(counts),
            "items": parts.select(pl.col("item_id").n_unique()).collect(engine="streaming").item(),
        },
    ]


def _parts(scratch: Path, kind: str) -> pl.LazyFrame:
    """The parts of one kind, in the order of the file."""
    return contracts.scan_parquet(sorted(scratch.glob(f"{kind}-*.parquet")))


def _batches(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Concatenate tables up to ``BATCH`` rows, because each join builds an index of all items."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(map(len, held)) >= BATCH:
            yield pl.concat(held, how="diagonal")
            held = []
    if held:
        yield pl.concat(held, how="diagonal")


def _with(frame: pl.DataFrame, column: str, problems: Problems) -> pl.DataFrame:
    """The rows in which a column is not empty."""
    filled = pl.col(column).is_not_null()
    return _keep(
        frame,
        filled & (pl.col(column) != "") if frame.schema[column] == pl.String else filled,
        f"{column} is missing",
        None,
        problems,
    )


def _identified(frame: pl.DataFrame, column: str, problems: Problems) -> pl.DataFrame:
    """The rows with a valid id, by the rule of all readers."""
    if frame.select(sound_id(column).all(ignore_nulls=False)).item():
        return frame
    frame = _with(frame, column, problems)
    reason = f"{column} is too long, or has blanks at its ends or characters that cannot be seen"
    return _keep(frame, sound_id(column), reason, column, problems)


def _keep(frame: pl.DataFrame, holds: pl.Expr, reason: str, shown: str | None, problems: Problems) -> pl.DataFrame:
    mask = frame.select(holds.fill_null(False)).to_series()
    if mask.all():
        return frame
    bad = frame.filter(~mask)
    problems.add(reason, bad["line"][0], str(bad[shown][0]) if shown else "", count=len(bad))
    return frame.filter(mask)


def _in_milliseconds(frame: pl.DataFrame, problems: Problems) -> pl.DataFrame:
    """Convert times in seconds, recognised by their size, to milliseconds; leave out times that are neither."""
    first, last = (int((year - 1970) * 365.25 * 86400) for year in (FIRST_YEAR, LAST_YEAR))
    seconds = pl.col("timestamp").is_between(first, last)
    if len(found := frame.filter(seconds)):
        problems.add(
            "timestamp in seconds, not milliseconds",
            found["line"][0],
            str(found["timestamp"][0]),
            count=len(found),
            repaired=True,
        )
        frame = frame.with_columns(
            pl.when(seconds).then(pl.col("timestamp") * 1000).otherwise("timestamp").alias("timestamp")
        )
    plausible = pl.col("timestamp").is_between(first * 1000, last * 1000)
    return _keep(frame, plausible, f"timestamp is no time of {FIRST_YEAR} to {LAST_YEAR}", "timestamp", problems)


def _finish(items: pl.DataFrame, columns: dict[str, str]) -> pl.DataFrame:
    """Fields as plain text, from the original lines, which show whether a field is a list."""
    items = items.sort("line")
    texts: dict[str, list[str]] = {field: [] for field in columns}
    for number, line in items.select("line", "json").iter_rows():
        try:
            row = json.loads(line)
            for field, key in columns.items():
                texts[field].append(plain(row.get(key), " " if field == "description" else ", "))
        except RecursionError:
            raise UserError(f"metadata: line {number}: brackets are nested too deeply; remove the line") from None
    return items.select("item_id").with_columns(
        pl.Series(field, values, dtype=pl.String) for field, values in texts.items()
    )


def plain(value: object, joiner: str) -> str:
    """A field's text: the parts of a list joined, null as empty; whitespace at the ends and empty parts are removed."""
    parts = value if isinstance(value, list) else [value]
    texts = [storable(str(part)).strip() for part in parts if part is not None]
    return joiner.join(text for text in texts if text)


def _find(folder: Path, category: str, sub: str, prefix: str) -> Path:
    if not category:
        raise UserError("datasets.yaml: reader 'amazon-2023' needs 'category', such as Movies_and_TV")
    names = [f"{prefix}{category}.jsonl", f"{prefix}{category}.jsonl.gz"]
    for base in (folder / sub, folder):
        for name in names:
            if (base / name).is_file():
                return base / name
    there = sorted(path.name for path in [*folder.glob("*.jsonl*"), *(folder / sub).glob("*.jsonl*")])
    raise UserError(
        f"{folder}: {names[0]} (or .gz) is missing, also in {sub}/{nearest(names[0], there) if there else ''}"
    )
