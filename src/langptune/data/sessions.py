"""Orders the interactions of each user and makes the table of sessions from ranges of their rows.

The order is by (timestamp, tie hash). The tie hash is a fixed hash of user and item ids, so that the order of equal
timestamps depends neither on the order of rows in the file nor on item ids (which correlate with popularity and age in
MovieLens).
"""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl

from langptune.data.contracts import AFTER_CUT, SESSIONS
from langptune.data.reader_output import Raw


def stable_hash(*parts: str) -> bytes:
    """Eight bytes that depend only on the parts, on every machine and version."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()


def ordered_interactions(interactions: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Columns row, user_id, item int32, rating, timestamp; by user (short ids first), time, tie hash, row.

    Interactions with items outside ``items`` are left out.
    """
    table = interactions.join(items.select("item", "item_id"), on="item_id", maintain_order="left")
    # Only ties need a hash, and most times of a user are distinct.
    tied = table.select(pl.struct("user_id", "timestamp").is_duplicated()).to_series().to_numpy()
    keys = np.zeros(len(table), dtype=np.uint64)
    users, ids = table["user_id"].filter(pl.Series(tied)), table["item_id"].filter(pl.Series(tied))
    keys[tied] = [int.from_bytes(stable_hash("tie", u, i)) for u, i in zip(users, ids, strict=True)]
    return (
        table.with_columns(pl.Series("tie", keys), pl.col("user_id").str.len_bytes().alias("length"))
        .sort("length", "user_id", "timestamp", "tie", "row")
        .select("row", "user_id", "item", "rating", "timestamp")
    )


def users_of(ordered: pl.DataFrame) -> list[tuple[str, int, int]]:
    """(user_id, first row, one past the last row) for each user, in order."""
    runs = ordered["user_id"].rle().struct.unnest()
    ends = runs["len"].cum_sum().to_list()
    return list(zip(runs["value"], [0, *ends[:-1]], ends, strict=True))


class SessionRows:
    """Sessions as row ranges of the ordered interactions, converted to list columns without Python lists."""

    def __init__(self, history_length: int | None):
        self.limit = history_length
        self.users: list[str] = []
        self.splits: list[str] = []
        self.first: list[int] = []
        self.end: list[int] = []
        self.target: list[int] = []
        self.cut: list[int] = []

    def add(self, user: str, split: str, first: int, end: int, target: int, cut: int | None = None) -> None:
        """Add a session: rows ``first..end-1`` were seen before row ``target``.

        Args:
            cut: the first row at or after the cut-off of the split; given for all sessions or for none. With it, the
                table has the column ``after_cut``.
        """
        if cut is not None:
            self.cut.append(cut)
        self.users.append(user)
        self.splits.append(split)
        self.first.append(first)
        self.end.append(end)
        self.target.append(target)

    def table(self, ordered: pl.DataFrame, raw: Raw) -> pl.DataFrame:
        """Contract ``sessions``; with reviews if the data has them, with ``after_cut`` if the protocol has cut-offs."""
        item, rating = ordered["item"].to_numpy(), ordered["rating"].to_numpy()
        first, end, target = (np.array(column, dtype=np.int64) for column in (self.first, self.end, self.target))
        start = first if self.limit is None else np.maximum(first, end - self.limit)
        n = len(target)
        reviews = pl.Series([None] * n, dtype=pl.List(pl.String))
        if raw.reviews is not None and n:
            rows = ordered["row"].to_numpy()
            found = raw.reviews_of(pl.Series(np.unique(_flat(rows, start, end)), dtype=pl.Int64))
            joined = ordered.select("row").join(found, on="row", how="left", maintain_order="left")
            text = joined["review"].fill_null("")
            reviews = _nested(text[_flat(np.arange(len(ordered)), start, end)], end - start)
        table = pl.DataFrame(
            {
                "session": pl.Series(np.arange(n), dtype=pl.Int32),
                "user_id": pl.Series(self.users, dtype=pl.String),
                "split": pl.Series(self.splits, dtype=pl.String),
                "history": _lists(item, start, end),
                "ratings": _lists(rating, start, end),
                "reviews": reviews,
                "seen": _lists(item, first, end),
                "target": pl.Series(item[target] if n else [], dtype=pl.Int32),
                "target_time": pl.Series(ordered["timestamp"].to_numpy()[target] if n else [], dtype=pl.Int64),
            },
            schema=SESSIONS,
        )
        if not self.cut:
            return table
        after = np.maximum(0, end - np.maximum(first, np.array(self.cut, dtype=np.int64)))
        return table.with_columns(pl.Series(AFTER_CUT, after, dtype=pl.Int32))


def _flat(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The concatenated values of all ranges."""
    lengths = end - start
    before = np.cumsum(lengths) - lengths
    # Row r of the flat values is start + (position within its list).
    return values[np.repeat(start - before, lengths) + np.arange(lengths.sum())]


def _lists(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> pl.Series:
    return _nested(pl.Series(_flat(values, start, end)), end - start)


def _nested(flat: pl.Series, lengths: np.ndarray) -> pl.Series:
    """Lists of these lengths (at least one each), filled in order."""
    frame = pl.DataFrame({"list": np.repeat(np.arange(len(lengths)), lengths), "value": flat})
    return frame.group_by("list", maintain_order=True).agg("value")["value"]
