"""Protocols: interactions to sessions, each a user's history and the item that came next (docs/protocol.md).

All protocols order a user's interactions by (timestamp, tie hash). The tie hash is a fixed hash of user and item
ids, so that the order of equal timestamps depends neither on the order of rows in the file nor on item ids
(which, in MovieLens, go with popularity and age).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from langptune.config.datasets import DatasetEntry, LeaveOneOut, Temporal
from langptune.data.contracts import SESSIONS
from langptune.data.readers import Raw
from langptune.data.templates import compile_template, render
from langptune.errors import UserError


@dataclass
class Prepared:
    """The outcome of a protocol: contract tables, user fields (or None), and counted facts for the manifest."""

    items: pl.DataFrame
    sessions: pl.DataFrame
    users: pl.DataFrame | None
    facts: dict[str, object]


def prepare(raw: Raw, entry: DatasetEntry, name: str) -> Prepared:
    """Items and sessions of a dataset under its protocol; the same input gives the same bytes.

    Raises:
        UserError: an item template that names a missing field, or a split that ends up empty.
    """
    interactions = raw.interactions
    if entry.users is not None:
        users = interactions["user_id"].unique().to_list()
        chosen = sorted(users, key=lambda user: stable_hash("user", user))[: entry.users]
        interactions = interactions.filter(pl.col("user_id").is_in(chosen))
    items = _items(raw.items, interactions, entry, name)
    ordered = ordered_interactions(interactions, items)
    drops = dict(raw.drops)
    if isinstance(entry.protocol, LeaveOneOut):
        sessions = leave_one_out(ordered, entry.protocol, drops)
    else:
        sessions = temporal(ordered, entry.protocol, drops)
    counts = {split: int((sessions["split"] == split).sum()) for split in ("train", "val", "test")}
    if empty := [split for split, count in counts.items() if not count]:
        raise UserError(
            f"dataset '{name}': protocol '{entry.protocol.name}' leaves no {empty[0]} sessions "
            f"of {len(interactions)} interactions; change its options in datasets.yaml"
        )
    facts = {
        "protocol": entry.protocol.model_dump(),
        "interactions": len(interactions),
        "users": interactions["user_id"].n_unique(),
        "items": len(items),
        "sessions": counts,
        "drops": drops,
        "items_without_interaction": int(items["first_seen"].null_count()),
    }
    return Prepared(items, sessions, raw.users, facts)


def stable_hash(*parts: str) -> bytes:
    """Eight bytes that depend on the parts alone, on every machine and version."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()


def ordered_interactions(interactions: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Columns user_id, item int32, rating, timestamp; by user (short ids first), then time, then the tie hash."""
    table = interactions.join(items.select("item", "item_id"), on="item_id")
    keys = [
        int.from_bytes(stable_hash("tie", user, item))
        for user, item in zip(table["user_id"], table["item_id"], strict=True)
    ]
    return (
        table.with_columns(pl.Series("tie", keys, dtype=pl.UInt64), pl.col("user_id").str.len_bytes().alias("length"))
        .sort("length", "user_id", "timestamp", "tie")
        .select("user_id", "item", "rating", "timestamp")
    )


def leave_one_out(ordered: pl.DataFrame, protocol: LeaveOneOut, drops: dict[str, int]) -> pl.DataFrame:
    """Last item test, the one before it validation, every earlier one but the first a train target."""
    rows = _Rows(protocol.history_length)
    short = 0
    for user, first, last in _users(ordered):
        if last - first < protocol.min_interactions:
            short += 1
            continue
        for target in range(first + 1, last):
            split = "test" if target == last - 1 else "val" if target == last - 2 else "train"
            # A user of three has no train window: the validation target is their second item.
            rows.add(user, split, first, target)
    drops[f"users with fewer than {protocol.min_interactions} interactions"] = short
    return rows.table(ordered)


def temporal(ordered: pl.DataFrame, protocol: Temporal, drops: dict[str, int]) -> pl.DataFrame:
    """Train targets before the validation cut; val and test: a user's first item at or after the cut."""
    times = ordered["timestamp"].to_numpy()
    cuts = [int(np.quantile(times, q, method="higher")) for q in (protocol.validation_from, protocol.test_from)]
    if not times.min() < cuts[0] < cuts[1]:
        raise UserError(
            f"protocol temporal: the cut-off times {cuts[0]} and {cuts[1]} do not separate the interactions; "
            "change validation_from and test_from"
        )
    rows = _Rows(protocol.history_length)
    no_history = 0
    for user, first, last in _users(ordered):
        before = [first + int(np.searchsorted(times[first:last], cut, side="left")) for cut in cuts]
        for target in range(first + 1, before[0]):
            rows.add(user, "train", first, target)
        for split, start, end in (("val", before[0], before[1]), ("test", before[1], last)):
            if start == end:
                continue
            if start == first:
                no_history += 1
                continue
            rows.add(user, split, first, start)
    drops["val or test users without an earlier interaction"] = no_history
    return rows.table(ordered)


def _users(ordered: pl.DataFrame) -> list[tuple[str, int, int]]:
    """(user_id, first row, one past the last row) for each user, in order."""
    runs = ordered["user_id"].rle().struct.unnest()
    ends = runs["len"].cum_sum().to_list()
    return list(zip(runs["value"], [0, *ends[:-1]], ends, strict=True))


class _Rows:
    """Sessions as row ranges of the ordered interactions, turned into list columns without Python lists."""

    def __init__(self, history_length: int | None):
        self.limit = history_length
        self.users: list[str] = []
        self.splits: list[str] = []
        self.first: list[int] = []
        self.target: list[int] = []

    def add(self, user: str, split: str, first: int, target: int) -> None:
        """One session: rows ``first..target-1`` were seen before row ``target``."""
        self.users.append(user)
        self.splits.append(split)
        self.first.append(first)
        self.target.append(target)

    def table(self, ordered: pl.DataFrame) -> pl.DataFrame:
        item, rating = ordered["item"].to_numpy(), ordered["rating"].to_numpy()
        first, target = np.array(self.first, dtype=np.int64), np.array(self.target, dtype=np.int64)
        start = first if self.limit is None else np.maximum(first, target - self.limit)
        n = len(target)
        return pl.DataFrame(
            {
                "session": pl.Series(np.arange(n), dtype=pl.Int32),
                "user_id": pl.Series(self.users, dtype=pl.String),
                "split": pl.Series(self.splits, dtype=pl.String),
                "history": _lists(item, start, target),
                "ratings": _lists(rating, start, target),
                "reviews": pl.Series([None] * n, dtype=pl.List(pl.String)),
                "seen": _lists(item, first, target),
                "target": pl.Series(item[target] if n else [], dtype=pl.Int32),
                "target_time": pl.Series(ordered["timestamp"].to_numpy()[target] if n else [], dtype=pl.Int64),
            },
            schema=SESSIONS,
        )


def _lists(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> pl.Series:
    lengths = end - start
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # Row r of the flat values is start + (position within its list).
    flat = np.repeat(start - offsets[:-1], lengths) + np.arange(offsets[-1])
    return pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values[flat])))


def _items(raw: pl.DataFrame, interactions: pl.DataFrame, entry: DatasetEntry, name: str) -> pl.DataFrame:
    """The catalogue: every item of the raw file, numbered by (id length, id), with the text a decoder embeds."""
    template = compile_template(entry.item_text, f"datasets.yaml: {name}: item_text")
    seen = interactions.group_by("item_id").agg(pl.col("timestamp").min().alias("first_seen"))
    fields = [column for column in raw.columns if column != "item_id"]
    table = (
        raw.with_columns(pl.col("item_id").str.len_bytes().alias("length"))
        .sort("length", "item_id")
        .drop("length")
        .with_row_index("item")
        .with_columns(pl.col("item").cast(pl.Int32))
        .join(seen, on="item_id", how="left", maintain_order="left")
    )
    texts = [render(template, f"datasets.yaml: {name}: item_text", **row) for row in table.select(fields).to_dicts()]
    return table.with_columns(pl.Series("text", texts, dtype=pl.String)).select(
        "item", "item_id", "title", "text", "first_seen", *[f for f in fields if f != "title"]
    )
