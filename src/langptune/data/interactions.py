"""Interactions in the train sessions: distinct pairs of user and item, and counts per item."""

from __future__ import annotations

import numpy as np
import polars as pl


def train_pairs(sessions: pl.DataFrame) -> pl.DataFrame:
    """Columns user_id, item: distinct, sorted pairs in the histories and targets of the train sessions."""
    train = sessions.filter(pl.col("split") == "train")
    pairs = pl.concat(
        [
            train.select("user_id", pl.col("history").alias("item")).explode("item"),
            train.select("user_id", pl.col("target").alias("item")),
        ]
    )
    return pairs.unique().sort("user_id", "item")


def popularity(sessions: pl.DataFrame, n_items: int) -> np.ndarray:
    """Interactions per item, float64 ``[N]``, in the train sessions."""
    return np.bincount(train_pairs(sessions)["item"].to_numpy(), minlength=n_items).astype(np.float64)
