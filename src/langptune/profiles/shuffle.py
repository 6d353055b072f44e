"""Gives every session the profile of another user: the control that shows whether profiles are personal."""

from __future__ import annotations

import numpy as np
import polars as pl

from langptune.errors import UserError
from langptune.randomness import numbered


def deal(profiles: pl.DataFrame, user_of: dict[int, str], seed: int) -> pl.DataFrame:
    """The same profiles in a seeded permutation, in which each moves to a session of another user.

    Args:
        profiles: contract ``profiles``.
        user_of: session -> user_id.

    Raises:
        UserError: one user owns more than half of the sessions, so that no such permutation exists.
    """
    table = profiles.sort("session", "sample")
    owners = np.array([user_of[session] for session in table["session"]])
    _, counts = np.unique(owners, return_counts=True)
    if 2 * counts.max() > len(owners):
        raise UserError("shuffled profiles: one user owns more than half of the sessions; draw a wider sample")
    rng = numbered(seed)
    # Sort by owner in random user order, then rotate by the largest block: no session keeps its owner.
    shuffle = rng.permutation(len(owners))
    rank_of_owner = {owner: place for place, owner in enumerate(rng.permutation(np.unique(owners)))}
    order = shuffle[np.argsort([rank_of_owner[owner] for owner in owners[shuffle]], kind="stable")]
    giver = np.empty(len(order), dtype=np.int64)
    giver[order] = np.roll(order, -int(counts.max()))
    assert (owners[giver] != owners).all()
    texts = table.select(pl.exclude("session", "sample"))[giver]
    return pl.concat([table.select("session", "sample"), texts], how="horizontal")
