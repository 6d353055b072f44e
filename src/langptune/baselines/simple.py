"""Scorers without a model: popularity, random, and the target itself (oracle). They give lower and upper bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from langptune.baselines.frame import baseline

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


class Keys(baseline.Keys):
    """Scorers without a model: popularity in the training sessions, random scores, and the target itself (oracle)."""

    scorer: Literal["pop", "random", "oracle"] = Field(
        description="pop: train count of the item; random: random scores; oracle: the target first"
    )

    memory: ClassVar[int] = 1000
    minutes: ClassVar[int] = 10
    cheap: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """The scorer."""
        return self.scorer

    @property
    def deterministic(self) -> bool:
        """Whether the scores do not depend on the seed: all but random ones."""
        return self.scorer != "random"


class Model(baseline.Baseline):
    """The scorer of an entry."""

    def __init__(self, keys: Keys):
        super().__init__(keys)
        if keys.scorer == "oracle":
            self.asks = (*self.asks, "target")

    def fit(self, lesson: baseline.Lesson, epochs: int | None = None) -> baseline.Fit:
        """Count the interactions of each item, for popularity; nothing for other scorers."""
        from langptune.data.interactions import popularity

        self.n_items, self.seed = lesson.n_items, lesson.seed
        if self.keys.scorer == "pop":
            self.counts = popularity(lesson.train, lesson.n_items)
        return baseline.Fit()

    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Float64 ``[S, n_items]``: the counts; random numbers from each session's own stream; or 1 for the target."""
        import numpy as np

        from langptune.randomness import numbered

        scores = np.zeros((len(sessions), self.n_items))
        if self.keys.scorer == "pop":
            scores[:] = self.counts
        elif self.keys.scorer == "random":
            for row, session in enumerate(sessions["session"]):
                scores[row] = numbered(self.seed, session).random(self.n_items)
        else:
            scores[np.arange(len(sessions)), sessions["target"].to_numpy()] = 1.0
        return scores
