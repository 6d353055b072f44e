"""Interactions in the train sessions: distinct pairs of user and item, and counts per item."""

from __future__ import annotations

import numpy as np
import polars as pl

_BLOCK = 50_000


def pairs(sessions: pl.DataFrame) -> pl.DataFrame:
    """Columns user_id, item: distinct pairs in the histories, then in the targets, in the order of their first rows."""
    shown = sessions.select("user_id", item="history")
    # Histories overlap. All of them at once would be a hundred times as many rows as there are pairs.
    blocks = [
        shown.slice(start, _BLOCK).explode("item").drop_nulls().unique(maintain_order=True)
        for start in range(0, len(shown), _BLOCK)
    ]
    return pl.concat([*blocks, sessions.select("user_id", item="target")]).unique(maintain_order=True)


def train_pairs(sessions: pl.DataFrame) -> pl.DataFrame:
    """Columns user_id, item: distinct, sorted pairs in the histories and targets of the train sessions."""
    return pairs(sessions.filter(pl.col("split") == "train")).sort("user_id", "item")


def popularity(sessions: pl.DataFrame, n_items: int) -> np.ndarray:
    """Interactions per item, float64 ``[N]``, in the train sessions."""
    return np.bincount(train_pairs(sessions)["item"].to_numpy(), minlength=n_items).astype(np.float64)
