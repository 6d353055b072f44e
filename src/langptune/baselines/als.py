"""ALS (package ``implicit``): factors of users and items by alternating least squares on confidence-weighted pairs.

Hu, Koren and Volinsky 2008 (doi 10.1109/ICDM.2008.22): all pairs count, those without an interaction with confidence 1
and the others with ``confidence``. A session is folded in: with the item factors fixed, its user's factors are solved
for the items that it shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from langptune.baselines.frame import baseline

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


class Keys(baseline.Keys):
    """Alternating least squares on confidence-weighted pairs (package implicit). Sessions are folded in."""

    factors: Annotated[int, Field(ge=1)] = Field(64, description="number of factors, if it is not tuned")
    regularization: Annotated[float, Field(ge=0)] = Field(0.01, description="weight of the squared norm of the factors")
    confidence: Annotated[float, Field(gt=0)] = Field(
        1.0, description="how much an interaction counts, where a pair without one counts 1"
    )
    iterations: Annotated[int, Field(ge=1)] = Field(15, description="number of alternations")
    tune: dict[
        Literal["factors", "regularization", "confidence", "iterations"],
        baseline.Values,
    ] = Field(
        {},
        description="key -> values, or a range; the best point on validation (NDCG@10, first seed) is used",
    )
    deterministic: bool = Field(False, description="one seed is enough")

    label: ClassVar[str] = "ALS"
    cheap: ClassVar[bool] = True


class Model(baseline.Baseline):
    """Item factors, with a method that folds sessions in."""

    def fit(self, lesson: baseline.Lesson, epochs: int | None = None) -> baseline.Fit:
        """Fit both factors on the train matrix. The initial values depend on the seed.

        Raises:
            UserError: there are no train sessions.
        """
        import numpy as np
        from implicit.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        from langptune.baselines.frame.matrices import train_matrix

        keys = self.keys
        train = train_matrix(lesson, "ALS")
        with threadpool_limits(1, "blas"):
            self.als = AlternatingLeastSquares(
                factors=keys.factors,
                regularization=keys.regularization,
                alpha=keys.confidence,
                iterations=keys.iterations,
                # Single precision and the GPU would make the ranks depend on the machine.
                dtype=np.float64,
                use_gpu=False,
                num_threads=lesson.threads,
                random_state=lesson.seed,
            )
            self.als.fit(train, show_progress=False)
        return baseline.Fit()

    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Float64 ``[S, n_items]``."""
        import numpy as np
        from threadpoolctl import threadpool_limits

        from langptune.baselines.frame.matrices import session_matrix

        factors = self.als.item_factors
        with threadpool_limits(1, "blas"):
            users = self.als.recalculate_user(np.arange(len(sessions)), session_matrix(sessions, len(factors)))
            return users @ factors.T
