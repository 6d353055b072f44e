"""P3alpha and RP3beta: random walks of three steps in the graph of train users and items.

A walk goes from a user to an item, on to another user of that item, and on to an item of that user. Its probability,
each step raised to the power alpha, is the score of P3alpha (Cooper et al. 2014, doi 10.1145/2567948.2579244). RP3beta
divides the score by the number of the item's users, raised to the power beta (Paudel et al. 2017, doi 10.1145/2955101).
The first step starts from the items that a session shows. So a user need not be known from training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from langptune.baselines.frame import baseline

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

_WALKS = 1 << 23
"""Maximum number of walks from item to item in memory at once (64 MiB)."""


class Keys(baseline.Keys):
    """Random walks of three steps in the graph of train users and items: P3alpha; with `beta` above 0, RP3beta."""

    alpha: Annotated[float, Field(ge=0)] = Field(
        1.0, description="power of the probability of each step, if it is not tuned"
    )
    beta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="power of the number of an item's users, by which its scores are divided; 0: P3alpha"
    )
    neighbours: Annotated[int, Field(ge=1)] = Field(
        200, description="number of items that are kept for each item, those with the largest scores"
    )
    tune: dict[Literal["alpha", "beta", "neighbours"], baseline.Values] = Field(
        {},
        description="key -> values, or a range; the best point on validation (NDCG@10, first seed) is used",
    )

    cheap: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """P3alpha, or RP3beta where popularity is discounted."""
        betas = self.tune.get("beta", [])
        return "RP3beta" if self.beta or any(getattr(betas, "bounds", betas)) else "P3alpha"


class Model(baseline.Baseline):
    """The scores of walks from item to item."""

    def fit(self, lesson: baseline.Lesson, epochs: int | None = None) -> baseline.Fit:
        """Multiply the steps from item to user and from user to item, in blocks of items.

        Raises:
            UserError: there are no train sessions.
        """
        from scipy.sparse import csr_matrix, vstack

        from langptune.baselines.frame.matrices import keep_largest, train_matrix

        keys, train = self.keys, train_matrix(lesson, self.keys.label)
        from_user, from_item = _steps(train, keys.alpha), _steps(train.T.tocsr(), keys.alpha)
        discount = _power(train.getnnz(axis=0), -keys.beta)
        blocks = []
        step = max(1, _WALKS // lesson.n_items)
        for start in range(0, lesson.n_items, step):
            walks = (from_item[start : start + step] @ from_user).toarray() * discount
            rows = range(len(walks))
            walks[rows, [start + row for row in rows]] = 0.0  # back to where it came from
            blocks.append(csr_matrix(keep_largest(walks, keys.neighbours)))
        self.walks = vstack(blocks, format="csr")
        return baseline.Fit()

    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Float64 ``[S, n_items]``."""
        from langptune.baselines.frame.matrices import session_matrix

        return (session_matrix(sessions, self.walks.shape[0]) @ self.walks).toarray()


def _steps(matrix, alpha: float):
    """The probability of each step from a row to its columns, raised to the power alpha; a sparse matrix."""
    from scipy.sparse import diags

    return diags(_power(matrix.getnnz(axis=1), -alpha)) @ matrix


def _power(counts: np.ndarray, exponent: float) -> np.ndarray:
    """Counts to a power; 0 where the count is 0."""
    import numpy as np

    return np.where(counts > 0, np.maximum(counts, 1).astype(float) ** exponent, 0.0)
