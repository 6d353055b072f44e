"""The metrics of a comparison on parts of the test sessions: who gains, and on which items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from langptune.comparison import bootstrap, differences
from langptune.comparison.grid import Grid
from langptune.data.interactions import popularity

FEWEST = 30
"""A slice with fewer sessions is drawn in grey: its intervals are too wide to read anything from."""


@dataclass(frozen=True)
class Slicing:
    """One way to divide the sessions into parts.

    labels: the slices in the order in which they are shown.
    of: int ``[S]``, for each session the index of its slice.
    """

    title: str
    labels: tuple[str, ...]
    of: np.ndarray


def history_length(test: pl.DataFrame, train: pl.DataFrame, counts: np.ndarray) -> Slicing:
    """Thirds of the sessions by how many items the user has seen; fewer slices where lengths are equal."""
    lengths = test["seen"].list.len().to_numpy()
    low, high = (int(np.quantile(lengths, share, method="lower")) for share in (1 / 3, 2 / 3))
    of = np.where(lengths <= low, 0, np.where(lengths <= high, 1, 2))
    return Slicing("Items that the user has seen", (f"up to {low}", f"{low + 1} to {high}", f"over {high}"), of)


def target_popularity(test: pl.DataFrame, train: pl.DataFrame, counts: np.ndarray) -> Slicing:
    """Head, middle and tail: the most popular items that together have a third of the train interactions, and so on."""
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    third = np.empty(len(counts), dtype=np.int64)
    third[order] = np.minimum((3 * before / max(1.0, counts.sum())).astype(np.int64), 2)
    sizes = [int((third == part).sum()) for part in range(3)]
    labels = tuple(f"{name} ({size} items)" for name, size in zip(("head", "middle", "tail"), sizes, strict=True))
    return Slicing("Popularity of the target in training", labels, third[test["target"].to_numpy()])


def target_in_training(test: pl.DataFrame, train: pl.DataFrame, counts: np.ndarray) -> Slicing:
    """Whether some train session contains the target."""
    known = counts[test["target"].to_numpy()] > 0
    return Slicing("Target in training", ("known", "cold"), np.where(known, 0, 1))


def user_in_training(test: pl.DataFrame, train: pl.DataFrame, counts: np.ndarray) -> Slicing:
    """Whether the user has train sessions."""
    known = test["user_id"].is_in(train["user_id"].unique().implode()).to_numpy()
    return Slicing("User in training", ("known", "new"), np.where(known, 0, 1))


SLICINGS: dict[str, Callable[[pl.DataFrame, pl.DataFrame, np.ndarray], Slicing]] = {
    "history-length": history_length,
    "target-popularity": target_popularity,
    "target-in-training": target_in_training,
    "user-in-training": user_in_training,
}
"""Each takes the compared sessions, the train sessions (contract ``sessions``) and the train interactions per item."""


def table(
    grid: Grid,
    reference: str,
    sessions: pl.DataFrame,
    n_items: int,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """All rows of a comparison on all slices. A slicing with a single slice is left out.

    Args:
        grid: the runs.
        reference: the method that differences are taken to, of the same models (``grid.own_reference``).
        sessions: contract ``sessions``, with those of the grid and of training.
        n_items: size of the catalogue.

    Returns:
        A row per slicing, slice, method, models and metric: ``sessions``, ``mean``, ``low``, ``high``; to the reference
        ``difference``, ``difference_low``, ``difference_high`` and ``detectable``, the smallest difference that the
        slice could have detected (``significance.detectable``); null for the reference itself. Intervals are
        percentile-bootstrap intervals over the slice's sessions and the seeds. No tests: slices are many.
    """
    test = pl.DataFrame({"session": grid.sessions}).join(sessions, on="session", how="left", maintain_order="left")
    train = sessions.filter(pl.col("split") == "train")
    counts = popularity(sessions, n_items)
    ran = [row for row in grid.rows if not row.missing]
    bases = differences.bases(ran, reference)
    out = []
    for name, make in SLICINGS.items():
        slicing = make(test, train, counts)
        present = [at for at in range(len(slicing.labels)) if (slicing.of == at).any()]
        for at in present if len(present) > 1 else []:
            chosen = slicing.of == at
            values = {row.key: row.values[chosen] for row in ran}
            draws = bootstrap.replicates(values, resamples, seed)
            for row in ran:
                means = values[row.key].mean(axis=(0, 1))
                low, high = bootstrap.interval(draws[row.key], confidence)
                against = differences.against(values, draws, row.key, bases[row.key], confidence)
                for metric, title in enumerate(grid.metrics):
                    out.append(
                        {
                            "slicing": name,
                            "title": slicing.title,
                            "slice": slicing.labels[at],
                            "sessions": int(chosen.sum()),
                            "method": row.method,
                            "models": row.models,
                            "metric": title,
                            "mean": float(means[metric]),
                            "low": float(low[metric]),
                            "high": float(high[metric]),
                            **{key: column[metric] for key, column in against.items()},
                        }
                    )
    return pl.DataFrame(out, schema=SCHEMA)


SCHEMA = {
    **dict.fromkeys(("slicing", "title", "slice"), pl.String),
    "sessions": pl.Int64,
    **dict.fromkeys(("method", "models", "metric"), pl.String),
    **dict.fromkeys(("mean", "low", "high"), pl.Float64),
    **dict.fromkeys(differences.COLUMNS, pl.Float64),
}
