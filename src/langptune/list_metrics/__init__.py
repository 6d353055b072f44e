"""Metrics of recommended lists, beyond accuracy. The name of each file is a metric; ``text_diversity.py`` is
``text-diversity``.

A file has a function ``values(lists, facts)`` and three literal constants:

- ``TITLE``: its name in tables, to which the cut-off ``@K`` is added.
- ``NEEDS``: a tuple of what it reads that a dataset may lack, among the keys of ``LACKING``. Where a dataset lacks it,
  the table gives the reason in place of values.
- ``PER_SESSION``: True if ``values`` returns float64 ``[S]``, one value per session, NaN where a session has none; the
  metric is their mean. False if it returns one number for all lists together.

The docstring gives formula and source. The workflow, the table and the figure list this folder: a new file is a new
metric of every comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from langptune.errors import UserError
from langptune.registry import Registry

if TYPE_CHECKING:
    from scipy import sparse

LACKING = {
    "genres": "the dataset has no genres, or none with five items",
    "words": "the texts of the items have no words",
}
"""Attributes of ``Facts`` that may be None -> the reason that tables give."""
_REGISTRY = Registry("langptune.list_metrics")


@dataclass(frozen=True)
class Lists:
    """The lists of one run.

    items: int64 ``[S, K]``, best first; -1 after the end of a list with fewer than K items. No list is empty.
    n_items: size of the catalogue N.
    """

    items: np.ndarray
    n_items: int

    @cached_property
    def filled(self) -> np.ndarray:
        """bool ``[S, K]``: false after the end of a list."""
        return self.items >= 0

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 ``[N]``: the number of lists that hold each item."""
        return np.bincount(self.items[self.filled], minlength=self.n_items)

    @cached_property
    def matrix(self) -> sparse.csr_array:
        """float64 ``[S, N]``: 1 where a list holds an item."""
        from scipy import sparse

        ends = np.concatenate([[0], self.filled.sum(axis=1).cumsum()])
        items = self.items[self.filled].astype(np.int32)  # products with 64-bit indices take twice the time
        return sparse.csr_array((np.ones(len(items)), items, ends), shape=(len(self.items), self.n_items))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """float64 ``[S]``: the mean over each list of a value per item, ``[N]``."""
        return np.where(self.filled, values[self.items], 0.0).sum(axis=1) / self.filled.sum(axis=1)


@dataclass(frozen=True)
class Facts:
    """What metrics read of a dataset and of the compared sessions.

    popularity: float64 ``[N]``, the train users that have each item (``data.interactions.popularity``).
    users: the number of train users.
    history: float64 ``[S, N]``, 1 where the session's user has seen the item before the target.
    genres: bool ``[N, G]``, or None.
    words: float64 ``[N, V]``, the words of item texts as unit vectors (zeros for a text without words), or None.
    """

    popularity: np.ndarray
    users: int
    history: sparse.csr_array
    genres: np.ndarray | None = None
    words: sparse.csr_array | None = None


def blocks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` sessions, so that no table of all sessions and pairs of items is in memory."""
    return (slice(start, start + max(1, size)) for start in range(0, total, max(1, size)))


def names() -> list[str]:
    """All metrics, in alphabetical order of their files."""
    return [name.replace("_", "-") for name in _REGISTRY.names()]


def modules() -> tuple[str, ...]:
    """The dotted names of the modules of all metrics."""
    return tuple(map(_REGISTRY.module, _REGISTRY.names()))


@cache
def metric(name: str) -> ModuleType:
    """The module of a metric.

    Raises:
        UserError: there is no such metric, or its file lacks a part or needs what is not in ``LACKING``.
    """
    entry = name.replace("-", "_")
    found = _REGISTRY.load(entry)
    for part in ("TITLE", "NEEDS", "PER_SESSION", "values"):
        if not hasattr(found, part):
            raise UserError(f"{_REGISTRY.file(entry)}: a metric of lists has {part} (docs/extend.md)")
    if not isinstance(found.NEEDS, tuple) or set(found.NEEDS) - set(LACKING):
        raise UserError(f"{_REGISTRY.file(entry)}: NEEDS must be a tuple of {', '.join(LACKING)}")
    return found


def left_out(facts: Facts) -> dict[str, str]:
    """The metrics that a dataset cannot have -> the reason."""
    out = {}
    for name in names():
        absent = [need for need in metric(name).NEEDS if getattr(facts, need) is None]
        if absent:
            out[name] = LACKING[absent[0]]
    return out


def values(name: str, lists: Lists, facts: Facts) -> np.ndarray | float:
    """A metric's values: float64 ``[S]``, or one number for all lists together.

    Raises:
        UserError: its file returns another shape.
    """
    found = metric(name)
    out = np.asarray(found.values(lists, facts), dtype=np.float64)
    wanted = (len(lists.items),) if found.PER_SESSION else ()
    if out.shape != wanted:
        raise UserError(f"{found.__file__}: values: shape {out.shape}, expected {wanted}; see PER_SESSION")
    return out
