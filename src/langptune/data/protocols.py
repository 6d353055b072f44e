"""Protocols turn interactions into sessions: a user's history and the next item (docs/protocol.md).

A protocol chooses users, items, and the rows that are histories and targets. ``langptune.data.sessions`` orders the
interactions and makes the table.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from langptune.config.datasets import DatasetEntry, LeaveOneOut, Paper, Temporal
from langptune.data.kcore import k_core
from langptune.data.limits import TokenLimits
from langptune.data.reader_output import Raw
from langptune.data.sessions import SessionRows, ordered_interactions, stable_hash, users_of
from langptune.data.templates import compile_template, render
from langptune.errors import UserError

AVERAGE = "average_rating"
"""Item field that a protocol fills: the protocol decides which ratings may be averaged."""


@dataclass
class Prepared:
    """The outcome of a protocol: contract tables, user fields (or None), and counted facts for the manifest."""

    items: pl.DataFrame
    sessions: pl.DataFrame
    users: pl.DataFrame | None
    facts: dict[str, Any]


@dataclass
class _Job:
    """The input of a protocol, and its report.

    table: interactions, columns row, user_id, item_id, rating, timestamp.
    drops: reason -> number of rows or users left out.
    funnel: the remaining numbers after each step.
    facts: further facts for the manifest.
    """

    raw: Raw
    entry: DatasetEntry
    name: str
    limits: TokenLimits | None
    table: pl.DataFrame
    drops: dict[str, int] = field(default_factory=dict)
    funnel: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def step(self, name: str, table: pl.DataFrame) -> pl.DataFrame:
        """Record what remains after a step; a ``UserError`` if nothing does."""
        self.funnel.append(
            {
                "step": name,
                "interactions": len(table),
                "users": table["user_id"].n_unique(),
                "items": table["item_id"].n_unique(),
            }
        )
        if table.is_empty():
            steps = ", ".join(f"{step['step']} {step['interactions']}" for step in self.funnel)
            raise UserError(
                f"dataset '{self.name}': nothing is left after step '{name}' of protocol "
                f"'{self.entry.protocol.name}' (interactions: {steps}); change its options in datasets.yaml"
            )
        return table

    def items(self, ids: pl.Series | None, average: pl.DataFrame | None = None) -> pl.DataFrame:
        """The catalogue without ``first_seen``: numbered by (id length, id), with the text that a decoder embeds.

        Args:
            ids: the items of the catalogue; None: all.
            average: item_id and the text of its average rating, if the protocol allows one.
        """
        where = f"datasets.yaml: {self.name}: item_text"
        template = compile_template(self.entry.item_text, where)
        table = self.raw.items_of(ids)
        if AVERAGE in table.columns and not (self.raw_average and average is None):
            table = table.drop(AVERAGE)
            if average is None:
                table = table.with_columns(pl.lit("").alias(AVERAGE))
            else:
                table = table.join(average, on="item_id", how="left", maintain_order="left").with_columns(
                    pl.col(AVERAGE).fill_null("")
                )
        fields = [column for column in table.columns if column != "item_id"]
        table = (
            table.with_columns(pl.col("item_id").str.len_bytes().alias("length"))
            .sort("length", "item_id")
            .drop("length")
            .with_row_index("item")
            .with_columns(pl.col("item").cast(pl.Int32))
        )
        texts = [render(template, where, **row) for row in table.select(fields).iter_rows(named=True)]
        return table.with_columns(pl.Series("text", texts, dtype=pl.String)).select(
            "item", "item_id", "title", "text", *[f for f in fields if f != "title"]
        )

    @property
    def raw_average(self) -> bool:
        """Whether texts may contain the file's average over all time: only as a named defect."""
        return isinstance(self.entry.protocol, Paper) and "average-rating" in self.entry.protocol.defects


def prepare(raw: Raw, entry: DatasetEntry, name: str, limits: TokenLimits | None = None) -> Prepared:
    """Items and sessions of a dataset under its protocol; the output is deterministic.

    Args:
        limits: required if the protocol has ``limits``.

    Raises:
        UserError: an item template names a missing field, or a step or split is empty.
    """
    job = _Job(raw, entry, name, limits, raw.interactions, dict(raw.drops), list(raw.funnel))
    if not job.funnel:
        job.step("interactions", job.table)
    if entry.users is not None:
        users = job.table["user_id"].unique().to_list()
        chosen = sorted(users, key=lambda user: stable_hash("user", user))[: entry.users]
        job.table = job.step("users", job.table.filter(pl.col("user_id").is_in(chosen)))
    protocol = entry.protocol
    core = protocol.core
    if core is not None:
        # A user with fewer than k rows has fewer in every subset, so this never changes the core.
        active = pl.len().over("user_id") >= core
        job.table = job.step("active", job.table.filter(active))
    if not (isinstance(protocol, Paper) and "duplicates" in protocol.defects):
        job.table = job.step("repeats", _without_repeats(job))
    items, sessions = PROTOCOLS[type(protocol)](job)
    counts = {split: int((sessions["split"] == split).sum()) for split in ("train", "val", "test")}
    if empty := [split for split, count in counts.items() if not count]:
        raise UserError(
            f"dataset '{name}': protocol '{protocol.name}' leaves no {empty[0]} sessions "
            f"of {len(job.table)} interactions; change its options in datasets.yaml"
        )
    seen = job.table.group_by("item_id").agg(pl.col("timestamp").min().alias("first_seen"))
    items = items.join(seen, on="item_id", how="left", maintain_order="left")
    items = items.select(
        "item", "item_id", "title", "text", "first_seen", pl.exclude("item", "item_id", "title", "text", "first_seen")
    )
    _note_lookalikes(job)
    users = raw.users_with_fields()
    for reasons in raw.cleaned.values():
        job.drops.update(reasons)
    if "year" in items.columns and (unknown := int((items["year"] == "").sum())):
        job.drops["(kept) items without a year"] = unknown
    facts = {
        "protocol": protocol.model_dump(),
        "interactions": len(job.table),
        "users": job.table["user_id"].n_unique(),
        "items": len(items),
        "sessions": counts,
        "funnel": job.funnel,
        "drops": job.drops,
        "items_without_interaction": int(items["first_seen"].null_count()),
        "tied_test_targets": _tied(sessions, job.table),
        **job.facts,
    }
    return Prepared(items, sessions, users, facts)


def _tied(sessions: pl.DataFrame, events: pl.DataFrame) -> float:
    """Share of test targets that have the time of another event of their user."""
    test = sessions.filter(pl.col("split") == "test").select("user_id", timestamp="target_time")
    counts = events.group_by("user_id", "timestamp").len()
    return float((test.join(counts, on=["user_id", "timestamp"], how="left")["len"] > 1).mean() or 0.0)


def leave_one_out(job: _Job) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The last item is the test target, the one before it validation, earlier items except the first are train."""
    protocol = job.entry.protocol
    assert isinstance(protocol, LeaveOneOut)
    if protocol.core is not None:
        job.table = job.step("core", k_core(job.table, protocol.core)[0])
    items = job.items(None if protocol.core is None else job.table["item_id"].unique())
    ordered = ordered_interactions(job.table, items)
    rows = SessionRows(protocol.history_length)
    short = 0
    for user, first, last in users_of(ordered):
        if last - first < protocol.min_interactions:
            short += 1
            continue
        for target in range(first + 1, last):
            split = "test" if target == last - 1 else "val" if target == last - 2 else "train"
            # A user with three items has no train window: the validation target is the second item.
            rows.add(user, split, first, target, target)
    job.drops[f"users with fewer than {protocol.min_interactions} interactions"] = short
    return items, rows.table(ordered, job.raw)


def temporal(job: _Job) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Train targets are before the validation cut; val and test targets are chosen among the items from a cut on."""
    protocol = job.entry.protocol
    assert isinstance(protocol, Temporal)
    times = job.table["timestamp"].to_numpy()
    cuts = [int(np.quantile(times, q, method="higher")) for q in (protocol.validation_from, protocol.test_from)]
    if not times.min() < cuts[0] < cuts[1]:
        raise UserError(
            f"protocol temporal: the cut-off times {cuts[0]} and {cuts[1]} do not separate the interactions; "
            "change validation_from and test_from"
        )
    job.facts["cuts"] = cuts
    before = job.table.filter(pl.col("timestamp") < cuts[0])
    known = None
    needed = 1
    if protocol.core is not None:
        before = job.step("core before the validation cut", k_core(before, protocol.core)[0])
        known, needed = before["item_id"].unique(), protocol.core
        trained = set(before["user_id"].unique())
        job.table = job.table.filter(pl.col("item_id").is_in(known.implode()))
    average = before.group_by("item_id").agg(pl.col("rating").mean().round(1).cast(pl.String).alias(AVERAGE))
    items = job.items(known, average)
    ordered = ordered_interactions(job.table, items)
    times = ordered["timestamp"].to_numpy()
    rows = SessionRows(protocol.history_length)
    no_history = 0
    for user, first, last in users_of(ordered):
        cut = [first + int(np.searchsorted(times[first:last], at, side="left")) for at in cuts]
        if protocol.core is None or user in trained:
            start = first + 1 if protocol.windows is None else max(first + 1, cut[0] - protocol.windows)
            for target in range(start, cut[0]):
                rows.add(user, "train", first, target, target, cut[0])
        for split, start, end in (("val", cut[0], cut[1]), ("test", cut[1], last)):
            if start == end:
                continue
            if start - first < needed:
                no_history += 1
                continue
            for target in _targets(protocol.target, f"{split}/{user}", start, end):
                rows.add(user, split, first, target, target, start)
    few = "an" if needed == 1 else f"{needed}"
    job.drops[f"val or test users without {few} earlier interaction{'s' * (needed > 1)}"] = no_history
    return items, rows.table(ordered, job.raw)


def _targets(choice: str, name: str, start: int, end: int) -> Iterable[int]:
    """The rows among ``start..end-1`` that are targets (``Temporal.target``); a drawn one depends only on the name."""
    drawn = int.from_bytes(stable_hash("target", name)) % (end - start)
    return {"first": [start], "last": [end - 1], "random": [start + drawn]}.get(choice, range(start, end))


def paper(job: _Job) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The published steps (PAPER, section Data); the class ``Paper`` describes them."""
    protocol = job.entry.protocol
    assert isinstance(protocol, Paper)
    job.table = job.step("core", k_core(job.table, protocol.core)[0])
    if protocol.limits is not None:
        job.table = job.step("limits", _within_limits(job, protocol))
        job.table = job.step("second core", k_core(job.table, protocol.core)[0])
    firsts = job.table.group_by("user_id").agg(pl.col("timestamp").min())
    by_time = sorted(firsts.iter_rows(), key=lambda row: (row[1], stable_hash("user", row[0])))
    trained = [user for user, _ in by_time[: int((1 - protocol.held_out) * len(by_time) + 1e-9)]]
    train = pl.col("user_id").is_in(pl.Series(trained).implode())
    job.step("train users", job.table.filter(train))
    job.step("held-out users", job.table.filter(~train))
    known = job.table.filter(train)["item_id"].unique()
    warm = job.table.filter(train | pl.col("item_id").is_in(known.implode()))
    job.table = warm.filter(train | (pl.len().over("user_id") >= protocol.core))
    job.step("held-out users with enough known items", job.table.filter(~train))

    items = job.items(known)
    ordered = ordered_interactions(job.table, items)
    rows = SessionRows(None)
    item, size, missing = ordered["item"].to_numpy(), protocol.history_length, 0
    held_out, belongs = [], set(trained)
    for user, first, last in users_of(ordered):
        history = set(item[first : first + size].tolist())
        target = next((row for row in range(first + size, last) if item[row] not in history), None)
        if target is None:
            missing += 1
            continue
        rows.add(user, "train" if user in belongs else "held out", first, first + size, target)
        if user not in belongs:
            held_out.append(user)
    job.drops[f"users without a later item beside their first {size}"] = missing
    seed = secrets.randbits(31) if "unseeded-split" in protocol.defects else protocol.seed
    job.facts["split_seed"] = seed
    held_out.sort(key=lambda user: stable_hash(f"split/{seed}", user))
    half = {user: "val" if place < len(held_out) // 2 else "test" for place, user in enumerate(held_out)}
    rows.splits = [half.get(user, split) for user, split in zip(rows.users, rows.splits, strict=True)]
    sessions = rows.table(ordered, job.raw)
    if "monitor-test" in protocol.defects:
        copied = sessions.filter(pl.col("split") == "test").with_columns(pl.lit("val").alias("split"))
        sessions = pl.concat([sessions.filter(pl.col("split") != "val"), copied]).with_columns(
            pl.int_range(pl.len(), dtype=pl.Int32).alias("session")
        )
    for split in ("train", "val", "test"):
        part = sessions.filter(pl.col("split") == split)
        job.funnel.append({"step": f"{split} sessions", "users": len(part), "items": part["target"].n_unique()})
    job.funnel.append({"step": "catalogue", "items": len(items)})
    return items, sessions


PROTOCOLS: dict[type, Callable[[_Job], tuple[pl.DataFrame, pl.DataFrame]]] = {
    LeaveOneOut: leave_one_out,
    Temporal: temporal,
    Paper: paper,
}


def _without_repeats(job: _Job) -> pl.DataFrame:
    """Keep the first row in time per (user, item). Identical rows and later repeats are counted separately."""
    table = job.table
    # Sorted by all columns, so that the kept row does not depend on the order in the file. With reviews, which may
    # differ between otherwise equal rows, the first in the file is kept.
    first = table.sort(
        "user_id", "item_id", "timestamp", *(["row"] if job.raw.reviews is not None else ["rating", "row"])
    )
    first = first.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    identical = len(table) - table.select("user_id", "item_id", "timestamp", "rating").n_unique()
    job.drops["identical rows"] = identical
    job.drops["later interactions of a user with the same item"] = len(table) - len(first) - identical
    return first


def _within_limits(job: _Job, protocol: Paper) -> pl.DataFrame:
    """The rows of users whose items and prompt are within the limits; all rows if longer texts are truncated in use."""
    if job.limits is None:
        raise UserError(f"dataset '{job.name}': protocol.limits needs tokenizers; none were given")
    items = job.items(job.table["item_id"].unique())
    long = items.filter(pl.Series(job.limits.long_items(items["text"].to_list())))
    job.drops["items over the limit of tokens"] = len(long)
    ordered = ordered_interactions(job.table, items)
    runs = users_of(ordered)
    shown = ordered.with_columns(pl.int_range(pl.len()).over("user_id").alias("place")).filter(
        pl.col("place") < protocol.history_length
    )
    reviews = dict.fromkeys(shown["row"], "")
    if job.raw.reviews is not None:
        reviews.update(job.raw.reviews_of(shown["row"]).iter_rows())
    fields = items.drop("text", "item").to_dicts()
    entries = [
        {**fields[item], "rating": f"{rating:g}", "review": reviews[row]}
        for row, item, rating in shown.select("row", "item", "rating").iter_rows()
    ]
    histories, start = [], 0
    for _, first, last in runs:
        size = min(last - first, protocol.history_length)
        histories.append(entries[start : start + size])
        start += size
    wordy = job.limits.long_prompts(histories)
    job.drops["users whose prompt is over the limit of tokens"] = int(wordy.sum())
    touched = set(job.table.filter(pl.col("item_id").is_in(long["item_id"].implode()))["user_id"])
    job.drops["users with an item over the limit of tokens"] = len(touched)
    if protocol.limits is not None and protocol.limits.over == "truncate":
        return job.table
    dropped = touched | {user for (user, _, _), over in zip(runs, wordy, strict=True) if over}
    return job.table.filter(~pl.col("user_id").is_in(pl.Series(sorted(dropped), dtype=pl.String).implode()))


def _note_lookalikes(job: _Job) -> None:
    """Record user ids that differ only in case: they are probably one user, but stay separate."""
    users = job.table["user_id"].unique()
    if pairs := len(users) - users.str.to_lowercase().n_unique():
        job.drops["(kept) user ids that differ from another only in case"] = pairs
