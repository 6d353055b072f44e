"""The protocol of baselines: the keys of an entry, what may be learned from, and a model that scores sessions."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from langptune.config.base import Strict, validate

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


class Keys(Strict):
    """Keys of a baseline's entries, beside those that every method has. A subclass's docstring is its page in the docs.

    A key ``deterministic`` (or a property) says whether one seed stands for all. A key ``tune`` maps keys to the values
    that are tried on validation.

    label: names the model in tables and paths; a constant, or a property.
    memory, minutes, gpus: what a job needs (MB).
    cheap: jobs take seconds, so that several share an allocation of a cluster.
    curve: it trains by epochs, so that its learning curve is drawn.
    """

    label: ClassVar[str]
    memory: ClassVar[int] = 2000
    minutes: ClassVar[int] = 120
    gpus: ClassVar[int] = 0
    cheap: ClassVar[bool] = False
    curve: ClassVar[bool] = False

    def grid(self) -> list[dict[str, Any]]:
        """The points of the validation grid: a value for each key of ``tune``; one empty point without ``tune``."""
        tune = getattr(self, "tune", {})
        keys = sorted(tune)
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(tune[key] for key in keys))]

    def at(self, point: dict[str, Any]) -> Self:
        """The keys at a point of the grid.

        Raises:
            UserError: values that the keys do not take.
        """
        return validate(type(self), {**self.model_dump(), **point}, f"{self.label}: tune")

    def check_names(self) -> None:
        """Check names that a library defines, where that library is installed.

        Raises:
            UserError: an unknown name.
        """


@dataclass(frozen=True)
class Lesson:
    """All that a baseline may learn from. It holds no target of a validation or test session.

    n_items: size of the catalogue; items are 0 to n_items - 1.
    users: all users, of held-out sessions too.
    train: the train sessions, with their targets.
    shown: ``user_id``, ``item``: what the sessions that are ranked next show, without what a held-out session asks for.
    validate: measures the model on the validation sessions: ``ndcg@10`` and ``recall@10``. None where there are no such
        sessions. Who trains by epochs calls it after them.
    threads: CPU threads.
    device: ``auto`` takes a GPU where there is one; ``cpu`` never does.
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
    """What fitting tells of itself.

    best_epoch: 1-based, the epoch whose state was kept; 0 without epochs.
    val: metric -> mean over the validation sessions; empty where the model did not measure itself.
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

    asks: the columns of a session that scoring reads.
    refits: it knows users by number, so that it is fitted once more, on what the test sessions show.
    """

    asks: tuple[str, ...] = ("session", "user_id", "history", "seen")
    refits: bool = False

    def __init__(self, keys: Any):
        self.keys = keys

    @abstractmethod
    def fit(self, lesson: Lesson, epochs: int | None = None) -> Fit:
        """Learn.

        Args:
            epochs: train exactly so many, without validation: a refit. None: choose by validation.

        Raises:
            UserError: nothing to learn from, or keys that do not fit the data.
        """

    @abstractmethod
    def scores(self, sessions: pl.DataFrame) -> np.ndarray:
        """Scores of the whole catalogue, float ``[S, n_items]``, higher is better.

        Args:
            sessions: ``[S]`` rows with the columns of ``asks``; the most recent item of ``history`` is the last.
        """
