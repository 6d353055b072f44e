"""The card of a prepared dataset: its source, its processing, its content."""

from __future__ import annotations

import re
from typing import Any

import polars as pl

from langptune.config.datasets import DatasetEntry
from langptune.data.audit import Check
from langptune.data.contracts import SPLITS
from langptune.markup import markdown

URL = re.compile(r"https?://[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]+")
"""Addresses that are safe as Markdown autolinks (between angle brackets)."""


def statistics(items: pl.DataFrame, sessions: pl.DataFrame) -> pl.DataFrame:
    """One row per split: sessions, users, distinct targets, share of the catalogue among targets, history lengths,
    words of the reviews in histories, and the first and last time of a target (as in the data).

    Args:
        items: contract ``items``.
        sessions: contract ``sessions``.
    """
    rows = []
    for split in SPLITS:
        part = sessions.filter(pl.col("split") == split)
        lengths = part["history"].list.len()
        reviews = part["reviews"].drop_nulls().explode().drop_nulls()
        rows.append(
            {
                "split": split,
                "sessions": len(part),
                "users": part["user_id"].n_unique(),
                "targets": part["target"].n_unique(),
                "catalogue_among_targets": part["target"].n_unique() / len(items),
                "history_mean": lengths.mean(),
                "history_max": lengths.max(),
                "review_words_mean": reviews.str.count_matches(r"\S+").mean() if len(reviews) else None,
                "first_time": part["target_time"].min(),
                "last_time": part["target_time"].max(),
            }
        )
    return pl.DataFrame(rows)


def card(
    name: str,
    entry: DatasetEntry,
    numbers: pl.DataFrame,
    funnel: pl.DataFrame,
    facts: dict[str, Any],
    items: pl.DataFrame,
    checks: list[Check],
) -> str:
    """The card as Markdown.

    Args:
        numbers: the result of ``statistics``.
        funnel: step, interactions, users, items, and the same columns with suffix ``_published``.
        facts: notes in the manifest of the preparation; ``raw``, ``drops`` and ``notes`` are shown.
        items: contract ``items``.
        checks: the audit of order and leakage.
    """
    protocol = entry.protocol.model_dump()
    source = entry.source
    where = source.hub or source.url or source.package or source.folder
    published = funnel.select(pl.col("^.*_published$").is_not_null().any()).row(0)
    lines = [
        f"# {markdown(entry.title)}",
        "",
        f"`{name}`: {markdown(str(where))}{f' at revision {source.revision}' if source.revision else ''}. "
        f"Licence: {markdown(entry.licence)}." + (f" {_link(entry.url)}" if entry.url else ""),
        "",
        f"Protocol `{protocol.pop('name')}`: "
        + ", ".join(f"{key} {_shown(value)}" for key, value in protocol.items())
        + ".",
        "",
        "| file | SHA-256 |",
        "|---|---|",
        *[f"| {markdown(file)} | `{digest}` |" for file, digest in facts["raw"].items()],
        "",
        "## What each step left",
        "",
    ]
    heads = ["step", "interactions", "users", "items"]
    shown = heads + ([f"{head}_published" for head in heads[1:]] if any(published) else [])
    lines += _table(funnel.select(shown))
    lines += ["", "## Splits", "", *_table(numbers), ""]
    lines += ["## Order and leakage", "", "| check | value | level | meaning |", "|---|---|---|---|"]
    for check in checks:
        value = "" if check.value is None else f"{check.value:.3f}"
        lines.append(f"| {check.name} | {value} | {check.level} | {check.meaning} |")
    lines.append("")
    lengths = items["text"].str.len_chars()
    lines += [
        f"{len(items)} items, {items['title'].n_unique()} distinct titles; text of {lengths.median():.0f} characters "
        f"in the median, {lengths.max()} at most; {items['first_seen'].null_count()} without an interaction.",
        "",
        "## Left out and repaired",
        "",
    ]
    counted = [f"- {count} {markdown(reason)}" for reason, count in facts["drops"].items() if count]
    # Notes begin with the path of a file, which differs between machines, and quote its content.
    split = [note.partition(": ") for note in facts.get("notes", [])]
    noted = [f"- {markdown(file.rsplit('/')[-1])}: {markdown(text)}" for file, _, text in split]
    return "\n".join([*lines, *(counted + noted or ["nothing"]), ""])


def _shown(value: Any) -> str:
    return markdown(value) if isinstance(value, str) else str(value)


def _link(url: str) -> str:
    return f"<{url}>" if URL.fullmatch(url) else markdown(url)


def _table(frame: pl.DataFrame) -> list[str]:
    """A Markdown table; empty cells stay empty."""

    def cell(value: Any) -> str:
        if value is None:
            return ""
        return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

    return [
        "| " + " | ".join(name.replace("_", " ") for name in frame.columns) + " |",
        "|" + "---|" * frame.width,
        *["| " + " | ".join(cell(value) for value in row) + " |" for row in frame.iter_rows()],
    ]
