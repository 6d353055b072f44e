"""The k-core of interactions: users and items that keep at least k interactions with each other."""

from __future__ import annotations

import numpy as np
import polars as pl


def k_core(table: pl.DataFrame, k: int) -> tuple[pl.DataFrame, int]:
    """Drop users and items with fewer than k rows until nothing changes.

    Args:
        table: columns user_id, item_id.

    Returns:
        The remaining rows in their order, and the number of rounds. The cost of a round is linear in the remaining
        rows. The result does not depend on whether users or items are dropped first.
    """
    users, items = codes(table["user_id"]), codes(table["item_id"])
    rows = np.arange(len(table))
    rounds = 0
    while True:
        keep = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k) if len(rows) else np.zeros(0, bool)
        if keep.all():
            return table[rows], rounds
        rows, users, items = rows[keep], users[keep], items[keep]
        rounds += 1


def codes(values: pl.Series) -> np.ndarray:
    """int ``[rows]``: numbers from 0, equal for equal texts."""
    distinct = values.unique().to_frame("value").with_row_index("code")
    return values.to_frame("value").join(distinct, on="value", how="left", maintain_order="left")["code"].to_numpy()
