"""The protocol of baselines: the keys of an entry, the training data, and a model that scores sessions."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from langptune.config.base import Strict, validate
from langptune.config.ranges import Range

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


Values = list[Annotated[int | float, Field(ge=0)]] | Range
"""Values of a key of ``tune`` that is a number of at least 0."""

_TRIALS = 5
"""Number of the random stream that draws trials."""


class Keys(Strict):
    """Keys of a baseline's entries, beside those that every method has. A subclass's docstring is its page in the docs.

    A key or property ``deterministic`` is True where the result does not depend on the seed. A key ``tune`` maps keys
    to the values that are tried on validation: a list, or a ``Range``, which needs a number of random trials.

    label: the name of the model in tables and paths; a constant or a property.
    memory, minutes, gpus: needs of a job (memory in MB). per_sessions: further MB per MB of the prepared sessions
        (``langptune.workflow.needs``); a constant or a property.
    cheap: jobs take seconds, so that several share an allocation of a cluster.
    curve: it is trained by epochs, so that its learning curve is drawn.
    """

    label: ClassVar[str]
    memory: ClassVar[int] = 2000
    per_sessions: ClassVar[float] = 80
    minutes: ClassVar[int] = 120
    gpus: ClassVar[int] = 0
    cheap: ClassVar[bool] = False
    curve: ClassVar[bool] = False

    def points(self, trials: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
        """The points that are tried on validation: a value for each key of ``tune``. Empty without ``tune``.

        Args:
            trials: number of points: first the entry's own values, then points drawn at random from the lists and
                ranges (``_shares``). All points differ, so that there are fewer where ``tune`` has no more. None: every
                point of the grid of the lists.
            seed: of the draw. More trials begin with the same points.
        """
        tune = getattr(self, "tune", {})
        keys = sorted(tune)
        if not tune:
            return []
        if trials is None:
            grid = itertools.product(*(tune[key] for key in keys))
            return [self.point(dict(zip(keys, values, strict=True))) for values in grid]
        out = [self.own()]
        known = [self.tuned(out[0])]
        for shares in _shares(trials, len(keys), seed):
            if len(out) == trials:
                break
            drawn = self.point({key: _drawn(tune[key], share) for key, share in zip(keys, shares, strict=True)})
            values = self.tuned(drawn)
            if values not in known:
                known.append(values)
                out.append(drawn)
        return out

    def own(self) -> dict[str, Any]:
        """The point of the entry's own values of the keys of ``tune``."""
        return {key: getattr(self, key) for key in sorted(getattr(self, "tune", {}))}

    def point(self, values: dict[str, Any]) -> dict[str, Any]:
        """The point with some values of the keys of ``tune``, as ``at`` takes it."""
        return values

    def tuned(self, point: dict[str, Any]) -> dict[str, Any]:
        """The values of the keys of ``tune`` at a point, those included that a library sets by default."""
        return {key: point[key] for key in sorted(getattr(self, "tune", {}))}

    def at(self, point: dict[str, Any]) -> Self:
        """The keys at a point of the grid.

        Raises:
            UserError: a value is not valid for its key.
        """
        return validate(type(self), {**self.model_dump(), **point}, f"{self.label}: tune")

    def check_names(self) -> None:
        """Check names that a library defines, where that library is installed.

        Raises:
            UserError: an unknown name.
        """


def _shares(trials: int, keys: int, seed: int) -> np.ndarray:
    """Random points, as places from 0 to 1 within each key's values: float ``[points, keys]``, more than are needed.

    They are points of a scrambled Sobol sequence. Of its first ``2**n`` points, each of ``2**n`` equal parts of a key's
    values has one. Independent draws would leave large parts of a range untried when there are few trials.
    """
    from scipy.stats import qmc

    from langptune.randomness import numbered

    sequence = qmc.Sobol(keys, scramble=True, rng=numbered(seed, _TRIALS))
    return sequence.random_base2(math.ceil(math.log2(100 * trials)))


def _drawn(values: list[Any] | Range, share: float) -> Any:
    return values[int(share * len(values))] if isinstance(values, list) else values.at(share)


@dataclass(frozen=True)
class Lesson:
    """The training data of a baseline. It has no target of a validation or test session.

    n_items: size of the catalogue; items are 0 to n_items - 1.
    users: all users, those of held-out sessions included.
    train: the train sessions, with their targets.
    shown: columns ``user_id``, ``item``: the items that the sessions to be ranked next show, without the targets of
        held-out sessions and without what is newer than a cut-off.
    validate: measures a model on the validation sessions: ``ndcg@10`` and ``recall@10``. None where there are no such
        sessions. A model that is trained by epochs calls it after each epoch.
    threads: CPU threads.
    device: ``auto`` uses a GPU where there is one; ``cpu`` does not.
    """

    n_items: int
    users: list[str]
    train: pl.DataFrame
    shown: pl.DataFrame
    seed: int
    log: Callable[[str], None]
    validate: Callable[[Baseline], dict[str, float]] | None = None
    threads: int = 1
    device: str = "auto"


@dataclass
class Fit:
    """The outcome of fitting.

    best_epoch: 1-based number of the epoch whose state was kept; 0 without epochs.
    val: metric -> mean over the validation sessions; empty where the model was not validated in fitting.
    curve: a row per epoch: ``epoch``, ``loss``, ``val_ndcg@10`` (null where the epoch was not validated), ``seconds``.
    notes: further facts for the manifest.
    """

    best_epoch: int = 0
    epochs_run: int = 0
    val: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


class Baseline(ABC):
    """A model that is fitted once and then scores sessions.

    asks: the columns of sessions that scoring reads.
    refits: it is ID-based, so that it is fitted once more with the items that the test sessions show.
    """

    asks: tuple[str, ...] = ("session", "user_id", "history", "seen")
    refits: bool = False

    def __init__(self, keys: Any):
        self.keys = keys

    @abstractmethod
    def fit(self, lesson: Lesson, epochs: int | None = None) -> Fit:
        """Fit the model.

        Args:
            epochs: the number of epochs of a refit, without validation. None: choose it by validation.

        Raises:
            UserError: there are no training data, or the keys do not fit the data.
        """

    @abstractmethod
    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Scores of the whole catalogue, float ``[S, n_items]``, higher is better.

        Args:
            sessions: ``[S]`` rows with the columns of ``asks``; the most recent item of ``history`` is the last.
        """
