"""Any ID-based or sequential RecBole model, trained on our train sessions and evaluated with our rank function.

The best epoch is chosen by NDCG@10 of ``full_ranks`` on our validation sessions, masked by ``seen``. RecBole's
evaluator is not used, because it does not mask the history of a sequential model. For RecBole's use of our data, see
``langptune.baselines.engine.recbole_job``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from langptune.baselines.frame import baseline
from langptune.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

Scalar = bool | int | float | str | None
Setting = Scalar | list[Scalar]


class Keys(baseline.Keys):
    """Any RecBole model, trained on our train sessions and evaluated with our rank function."""

    model: str = Field(description="RecBole's name of the model, e.g. SASRec")
    settings: dict[str, Setting] = Field({}, description="RecBole settings, passed unchanged")
    tune: dict[str, list[Setting] | baseline.Range] = Field(
        {},
        description="setting -> values, or a range; each point of the grid, or each of `trials` random points, is "
        "tried on validation with the first seed, in its own job",
    )
    epochs: Annotated[int, Field(ge=1)] = Field(
        100, description="maximum number of epochs; ignored by closed-form models"
    )
    patience: Annotated[int, Field(ge=1)] = Field(
        10, description="stop after this many validations without a better NDCG@10"
    )
    validate_every: Annotated[int, Field(ge=1)] = Field(1, description="epochs between validations")
    history_items: Annotated[int, Field(ge=1)] = Field(
        50, description="number of most recent items that sequential models read"
    )
    train_sessions: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="maximum number of train windows per user for sequential models, the most recent ones; null: all",
    )
    refit: bool = Field(
        True,
        description="ID-based models only: after selection on validation, train again for the best number of epochs, "
        "with the histories of the test sessions, which all other methods read too",
    )
    deterministic: bool = Field(False, description="no random numbers (closed form); one seed is enough")

    minutes: ClassVar[int] = 240
    gpus: ClassVar[int] = 1
    curve: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """RecBole's name of the model."""
        return self.model

    @property
    def per_sessions(self) -> float:
        """More than for other baselines: RecBole reads the lists of sequential models as a string for each item.

        Measured on MovieLens-1M with lists of 200: 360 (11.3 GB for 793,373 windows).
        """
        return super().per_sessions + 1.5 * self.history_items

    def own(self) -> dict[str, Any]:
        """The entry's settings."""
        return {**self.settings}

    def point(self, values: dict[str, Any]) -> dict[str, Any]:
        """All settings: the entry's, with some changed."""
        return {**self.settings, **values}

    def tuned(self, point: dict[str, Any]) -> dict[str, Any]:
        """The tuned settings at a point; RecBole's defaults where it has none and RecBole is installed."""
        from langptune.baselines.engine.recbole_catalogue import defaults
        from langptune.provenance import installed

        missing = any(key not in point for key in self.tune) and installed("recbole")
        known = defaults(self.model) | point if missing else point
        return {key: known.get(key) for key in sorted(self.tune)}

    def at(self, point: dict[str, Any]) -> Self:
        """The keys with other settings."""
        return super().at({"settings": point})

    def check_names(self) -> None:
        """Check the names of model and settings, where RecBole is installed.

        Raises:
            UserError: see ``recbole_catalogue.check``.
        """
        from langptune.baselines.engine.recbole_catalogue import check
        from langptune.provenance import installed

        if installed("recbole"):
            check(self.model, self.settings)
            for key, values in self.tune.items():
                for value in values if isinstance(values, list) else values.bounds:
                    check(self.model, {key: value})


class Model(baseline.Baseline):
    """A RecBole model, at the epoch with the best validation; a closed-form model is validated once."""

    @property
    def refits(self) -> bool:
        """Whether it is ID-based and its entry sets ``refit``."""
        from langptune.baselines.engine.recbole_catalogue import models

        return self.keys.refit and models()[self.keys.model] == "general_recommender"

    def fit(self, lesson: baseline.Lesson, epochs: int | None = None) -> baseline.Fit:
        """Train on the train sessions and keep the epoch with the best validation NDCG@10.

        With ``refit``, an ID-based model also trains on the items that the validation sessions show (never a target),
        as it later trains on those of the test sessions. Under leave-one-out this adds nothing. Under user-disjoint
        protocols these are the model's only interactions of a validation user.

        Raises:
            UserError: see ``recbole_catalogue.check``; there are no train or validation sessions; a loss or score is
                not a number.
        """
        import torch

        from langptune.baselines.engine.recbole_catalogue import check
        from langptune.baselines.engine.recbole_job import Job

        check(self.keys.model, self.keys.settings)
        if lesson.validate is None:
            raise UserError(f"{self.keys.model}: the sessions have no validation split to choose an epoch on")
        torch.set_num_threads(lesson.threads)
        self.job = Job(self.keys, lesson)
        if epochs is not None:
            self._again(lesson, epochs)
            return baseline.Fit(epochs)
        return self._closed_form(lesson) if self.job.closed_form else self._by_epochs(lesson)

    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Float32 ``[S, n_items]``; an ID-based model gives equal scores for a user without training interactions."""
        return self.job.scores(sessions)

    def _again(self, lesson: baseline.Lesson, epochs: int) -> None:
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            loss = self.job.epoch(epoch)
            seconds = time.perf_counter() - start
            lesson.log(f"{self.keys.model} refit epoch {epoch}/{epochs} loss {loss:.4f} {seconds:.1f} s")

    def _closed_form(self, lesson: baseline.Lesson) -> baseline.Fit:
        start = time.perf_counter()
        measured = self._measure(lesson, 0)
        seconds = time.perf_counter() - start + self.job.build_seconds
        lesson.log(f"{self.keys.model} closed form, val NDCG@10 {measured['ndcg@10']:.4f}, {seconds:.1f} s")
        row = {"epoch": 0, "loss": None, "val_ndcg@10": measured["ndcg@10"], "seconds": round(seconds, 3)}
        return baseline.Fit(val=measured, curve=[row])

    def _by_epochs(self, lesson: baseline.Lesson) -> baseline.Fit:
        """Early stopping on validation NDCG@10."""
        keys, job = self.keys, self.job
        curve: list[dict[str, Any]] = []
        best: dict[str, float] = {"ndcg@10": -1.0}
        best_epoch, state, stale = 0, None, 0
        begun = time.perf_counter()
        for epoch in range(1, keys.epochs + 1):
            start = time.perf_counter()
            loss = job.epoch(epoch)
            row = {"epoch": epoch, "loss": loss, "val_ndcg@10": None}
            validated = ""
            if epoch % keys.validate_every == 0 or epoch == keys.epochs:
                measured = self._measure(lesson, epoch)
                row["val_ndcg@10"] = measured["ndcg@10"]
                stale += 1
                if measured["ndcg@10"] > best["ndcg@10"]:
                    best, best_epoch, state, stale = measured, epoch, job.state(), 0
                validated = f" val NDCG@10 {measured['ndcg@10']:.4f} best {best['ndcg@10']:.4f} (epoch {best_epoch})"
            now = time.perf_counter()
            row["seconds"] = round(now - start, 3)
            curve.append(row)
            left = (keys.epochs - epoch) * (now - begun) / epoch
            lesson.log(
                f"{keys.model} epoch {epoch}/{keys.epochs} loss {loss:.4f}{validated} {now - start:.1f} s, "
                f"<= {left:.0f} s left"
            )
            if stale >= keys.patience:
                break
        job.restore(state)
        return baseline.Fit(best_epoch, len(curve), best, curve)

    def _measure(self, lesson: baseline.Lesson, epoch: int) -> dict[str, float]:
        try:
            return lesson.validate(self)
        except UserError as error:
            raise UserError(f"{self.keys.model}, epoch {epoch}: {error}") from None
