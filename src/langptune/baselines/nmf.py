"""NMF (scikit-learn): the train interactions as a product of two non-negative matrices, users x factors x items.

Factors are fitted on the train sessions only. A session is then folded in: with the item factors fixed, its user's
factors are fitted to the items that the session shows. So a user need not be known from training. No matrix has a
target of a validation or test session; validation targets are used only to choose the number of factors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from langptune.baselines.frame import baseline
from langptune.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from scipy.sparse import csr_matrix


class Keys(baseline.Keys):
    """Non-negative matrix factorisation (scikit-learn) of the train interactions.

    A session is folded in with the items of its history, so that users need not be known from training.
    """

    components: Annotated[int, Field(ge=1)] = Field(32, description="number of factors, if it is not tuned")
    tune: dict[Literal["components"], list[Annotated[int, Field(ge=1)]] | baseline.Range] = Field(
        {},
        description="`components` -> values, or a range; the value with the best validation NDCG@10 with the first "
        "seed is used",
    )
    max_iterations: Annotated[int, Field(ge=1)] = Field(200, description="maximum number of iterations of the solver")
    deterministic: bool = Field(False, description="one seed is enough")

    label: ClassVar[str] = "NMF"
    cheap: ClassVar[bool] = True


class Model(baseline.Baseline):
    """Item factors, with a method that folds sessions in."""

    def fit(self, lesson: baseline.Lesson, epochs: int | None = None) -> baseline.Fit:
        """Fit the factors of the train matrix. The initial values (NNDSVD by a randomised SVD) depend on the seed.

        Raises:
            UserError: there are more factors than users or items, or no train sessions.
        """
        from sklearn.decomposition import NMF

        from langptune.baselines.frame.matrices import train_matrix

        train, components = train_matrix(lesson, "NMF"), self.keys.components
        if components > min(train.shape):
            raise UserError(
                f"methods.yaml: kind nmf: components {components}: the train sessions have {train.shape[0]} users and "
                f"the catalogue {train.shape[1]} items; choose at most {min(train.shape)}"
            )
        limit = self.keys.max_iterations
        self.nmf = NMF(components, init="nndsvda", max_iter=limit, random_state=lesson.seed)
        _quietly(self.nmf.fit, train)
        iterations = int(self.nmf.n_iter_)
        return baseline.Fit(notes={"iterations": iterations, "converged": iterations < limit})

    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Float64 ``[S, n_items]``."""
        from langptune.baselines.frame.matrices import session_matrix

        factors = self.nmf.components_
        return _quietly(self.nmf.transform, session_matrix(sessions, factors.shape[1])) @ factors


def _quietly(work: Callable[[csr_matrix], np.ndarray], matrix: csr_matrix) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # The limit of iterations is a setting; the manifest records whether the solver converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return work(matrix)
