"""Draws the sessions for training, selection and comparison: one fixed draw per dataset, split and config."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from langptune.config.sample import Sample
from langptune.data import contracts
from langptune.data.contracts import EVALUATION
from langptune.errors import UserError
from langptune.randomness import numbered, stream


def draw(sessions: pl.DataFrame, sample: Sample, splits: tuple[str, ...] = ("test",)) -> pl.DataFrame:
    """Contract ``evaluation``: sampled sessions of the splits, ascending; all if a split has fewer than its sample."""
    parts = []
    for split in splits:
        ids = np.sort(sessions.filter(pl.col("split") == split)["session"].to_numpy())
        if (size := getattr(sample, split)) is not None:
            ids = pick(ids, size, sample.seed)
        parts.append(pl.DataFrame({"session": ids, "split": [split] * len(ids)}, schema=EVALUATION))
    return pl.concat(parts)


def sampled(path: Path | str, split: str) -> pl.DataFrame:
    """The sampled sessions of a split in a file that ``draw`` made: contract ``evaluation``, ascending.

    Raises:
        UserError: the file cannot be read, or has no session of the split.
    """
    chosen = contracts.read(path, "evaluation").filter(pl.col("split") == split).sort("session")
    if chosen.is_empty():
        raise UserError(f"{path}: no {split} session in it; use a protocol that has some")
    return chosen


def pick(ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` session numbers, drawn uniformly without replacement, ascending; all if there are fewer."""
    if count >= len(ids):
        return ids
    return np.sort(numbered(seed).choice(ids, count, replace=False))


def drawn(sessions: pl.Series, count: int, seed: int, phase: str) -> list[int]:
    """``count`` sessions, without replacement, for one phase of training (``Phase.stream``); all if there are fewer."""
    rng = stream(seed, phase, "choice of sessions")
    return sessions.to_list() if count >= len(sessions) else rng.choice(sessions.to_numpy(), count, False).tolist()


def fraction(ids: list[int], share: float, seed: int) -> list[int]:
    """A seeded share of session numbers, in their order; a smaller share is a subset of a larger one.

    Args:
        ids: session numbers.
        share: in (0, 1]; at least one session is kept.
    """
    by_hash = sorted(ids, key=lambda session: hashlib.blake2b(f"{seed}/{session}".encode(), digest_size=8).digest())
    kept = set(by_hash[: max(1, round(share * len(ids)))])
    return [session for session in ids if session in kept]
