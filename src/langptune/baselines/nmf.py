"""NMF (scikit-learn): the train interactions as a product of two non-negative matrices, users x factors x items.

Factors are fitted on the train sessions alone. A session is then folded in: its user's factors are those that best
explain what the session shows, the factors of items as they are. So a user need not be known from training, and no
target of a validation or test session is ever in a matrix; the validation targets choose the number of factors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from langptune import metrics
from langptune.data.interactions import train_pairs
from langptune.errors import UserError
from langptune.ranking.decoder import rank_sessions
from langptune.ranking.ranks import TOP

COLUMNS = ["session", "user_id", "split", "history", "seen", "target"]
"""The columns of ``sessions`` that fitting and ranking read."""

_SCORES = 1 << 24
"""How many scores are held at once (128 MiB)."""


def train_matrix(sessions: pl.DataFrame, n_items: int) -> csr_matrix:
    """1 where a user of the train sessions has interacted with an item: float64 ``[users, n_items]``."""
    pairs = train_pairs(sessions)
    if pairs.is_empty():
        raise UserError("NMF: there is nothing to train on; the sessions have no train split")
    users = pairs["user_id"].rank("dense").to_numpy() - 1
    shape = (int(users.max()) + 1, n_items)
    return csr_matrix((np.ones(len(pairs)), (users, pairs["item"].to_numpy())), shape=shape)


def session_matrix(sessions: pl.DataFrame, n_items: int) -> csr_matrix:
    """1 where a session shows an item (``seen``, which holds the history): float64 ``[S, n_items]``."""
    shown = sessions.select(pl.int_range(pl.len()).alias("row"), pl.col("seen").list.unique()).explode("seen")
    at = (shown["row"].to_numpy(), shown["seen"].to_numpy())
    return csr_matrix((np.ones(len(shown)), at), shape=(len(sessions), n_items))


@dataclass(frozen=True)
class Fitted:
    """Item factors, and what folds a session in."""

    model: NMF

    def blocks(self, sessions: pl.DataFrame) -> Iterator[np.ndarray]:
        """Score blocks float64 ``[b, n_items]`` of consecutive sessions, for ``rank_sessions``."""
        factors = self.model.components_
        step = max(1, _SCORES // factors.shape[1])
        for start in range(0, len(sessions), step):
            shown = session_matrix(sessions.slice(start, step), factors.shape[1])
            yield _quietly(self.model.transform, shown) @ factors

    def ranks(self, sessions: pl.DataFrame, top: int = TOP) -> pl.DataFrame:
        """Contract ``ranks`` of the sessions."""
        return rank_sessions(sessions, self.blocks(sessions), top)


def fit(train: csr_matrix, components: int, max_iterations: int, seed: int) -> Fitted:
    """Factors of a train matrix ``[users, items]``.

    Args:
        components: how many.
        max_iterations: of the solver (coordinate descent), which stops before where it has converged.
        seed: of the start (NNDSVD, by a randomised decomposition).

    Raises:
        UserError: more factors than the matrix has users or items.
    """
    if components > min(train.shape):
        raise UserError(
            f"methods.yaml: kind nmf: components {components}: the train sessions have {train.shape[0]} users and the "
            f"catalogue {train.shape[1]} items; choose at most {min(train.shape)}"
        )
    model = NMF(components, init="nndsvda", max_iter=max_iterations, random_state=seed)
    _quietly(model.fit, train)
    return Fitted(model)


def select(
    train: csr_matrix,
    val: pl.DataFrame,
    grid: Sequence[int],
    max_iterations: int,
    seed: int,
    log: Callable[[str], None],
) -> tuple[int, dict[int, float]]:
    """The number of factors with the best NDCG@10 on validation, the first of equals, and the NDCG@10 of each.

    Args:
        val: validation sessions.
        grid: numbers of factors.

    Raises:
        UserError: no validation sessions; see ``fit``.
    """
    if val.is_empty():
        raise UserError("NMF: the sessions have no validation split to choose 'components' on; set tune: {} for it")
    tried: dict[int, float] = {}
    for components in grid:
        ranks = fit(train, components, max_iterations, seed).ranks(val, top=0)["rank"].to_numpy()
        tried[components] = float(metrics.from_ranks("ndcg@10", ranks).mean())
        log(f"NMF with {components} components: val NDCG@10 {tried[components]:.4f}")
    return max(tried, key=tried.__getitem__), tried


def _quietly(work: Callable[[csr_matrix], np.ndarray], matrix: csr_matrix) -> np.ndarray:
    with warnings.catch_warnings():
        # An early stop is a setting here; whether it came to that stands in the manifest.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return work(matrix)
