"""Sparse matrices of interactions, for baselines that fit a matrix and fold sessions in."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from langptune.baselines.frame.baseline import Lesson
from langptune.data.interactions import train_pairs
from langptune.errors import UserError


def train_users(lesson: Lesson, name: str) -> tuple[csr_matrix, list[str]]:
    """The train interactions by user.

    Args:
        name: the name of the model, for errors.

    Returns:
        Float64 ``[U, n_items]``, 1 where a user of the train sessions has interacted with an item; and the ``U`` users,
        in the order of its rows.

    Raises:
        UserError: there are no train sessions.
    """
    pairs = train_pairs(lesson.train)
    if pairs.is_empty():
        raise UserError(f"{name}: there is nothing to train on; the sessions have no train split")
    users = pairs["user_id"].unique().sort()
    rows = pairs["user_id"].rank("dense").to_numpy() - 1
    at = (rows, pairs["item"].to_numpy())
    return csr_matrix((np.ones(len(pairs)), at), shape=(len(users), lesson.n_items)), users.to_list()


def train_matrix(lesson: Lesson, name: str) -> csr_matrix:
    """The matrix of ``train_users``."""
    return train_users(lesson, name)[0]


def session_matrix(sessions: pl.DataFrame, n_items: int) -> csr_matrix:
    """Float64 ``[S, n_items]``: 1 where a session shows an item (``seen``, which includes the history)."""
    shown = sessions.select(pl.int_range(pl.len()).alias("row"), pl.col("seen").list.unique()).explode("seen")
    at = (shown["row"].to_numpy(), shown["seen"].to_numpy())
    return csr_matrix((np.ones(len(shown)), at), shape=(len(sessions), n_items))


def keep_largest(rows: np.ndarray, number: int) -> np.ndarray:
    """A copy of ``[R, C]`` with zeros in place of all but the ``number`` largest values of each row.

    Of equal values at the limit, those of the lower columns are kept, so that the result depends on the values alone.
    """
    if number >= rows.shape[1]:
        return rows.copy()
    kept = np.argsort(-rows, axis=1, kind="stable")[:, :number]
    out = np.zeros_like(rows)
    np.put_along_axis(out, kept, np.take_along_axis(rows, kept, axis=1), axis=1)
    return out
