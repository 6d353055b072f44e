"""UserKNN: the items of the most similar train users, each weighted by the similarity of its user.

Similarity is the cosine of two users' sets of items, with a shrinkage term in the denominator (Bell and Koren 2007),
as in Ferrari Dacrema et al. 2021 (arXiv 1911.07698). A session is compared by the items that it shows, so that its
user need not be known from training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from langptune.baselines.frame import baseline

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

_SIMILARITIES = 1 << 23
"""Maximum number of similarities in memory (64 MiB)."""


class Keys(baseline.Keys):
    """The items of the most similar train users (cosine of the sets of items, with shrinkage)."""

    neighbours: Annotated[int, Field(ge=1)] = Field(100, description="number of most similar users, if it is not tuned")
    shrink: Annotated[float, Field(ge=0)] = Field(
        0.0, description="added to the denominator of the cosine; lowers similarities that rest on few items"
    )
    tune: dict[Literal["neighbours", "shrink"], baseline.Values] = Field(
        {},
        description="key -> values, or a range; the best point on validation (NDCG@10, first seed) is used",
    )

    label: ClassVar[str] = "UserKNN"
    cheap: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True


class Model(baseline.Baseline):
    """The train users and their items."""

    def fit(self, lesson: baseline.Lesson, epochs: int | None = None) -> baseline.Fit:
        """Keep the train matrix.

        Raises:
            UserError: there are no train sessions.
        """
        import numpy as np

        from langptune.baselines.frame.matrices import train_users

        self.train, users = train_users(lesson, "UserKNN")
        self.rows = {user: row for row, user in enumerate(users)}
        self.norms = np.sqrt(self.train.getnnz(axis=1))
        return baseline.Fit()

    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Float64 ``[S, n_items]``."""
        import numpy as np

        from langptune.baselines.frame.matrices import keep_largest, session_matrix

        shown = session_matrix(sessions, self.train.shape[1])
        own = [self.rows.get(user) for user in sessions["user_id"]]
        step = max(1, _SIMILARITIES // self.train.shape[0])
        blocks = []
        for start in range(0, len(sessions), step):
            part = shown[start : start + step]
            norms = np.sqrt(part.getnnz(axis=1))[:, None] * self.norms
            similar = (part @ self.train.T).toarray() / (norms + self.keys.shrink)
            for row, user in enumerate(own[start : start + step]):
                # A user is no neighbour of itself: it would only find what it has seen.
                if user is not None:
                    similar[row, user] = 0.0
            blocks.append(keep_largest(similar, self.keys.neighbours) @ self.train)
        return np.concatenate(blocks)
