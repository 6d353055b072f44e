"""Which sessions are trained, selected and compared on: one fixed draw per dataset, split and config."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl

from langptune.config.sample import Sample
from langptune.data.contracts import EVALUATION


def draw(sessions: pl.DataFrame, sample: Sample, splits: tuple[str, ...] = ("test",)) -> pl.DataFrame:
    """Contract ``evaluation``: sampled sessions of the splits, ascending. More asked than there are: all."""
    parts = []
    for split in splits:
        ids = np.sort(sessions.filter(pl.col("split") == split)["session"].to_numpy())
        size = getattr(sample, split)
        if size is not None and size < len(ids):
            ids = np.sort(np.random.default_rng(sample.seed).choice(ids, size, replace=False))
        parts.append(pl.DataFrame({"session": ids, "split": [split] * len(ids)}, schema=EVALUATION))
    return pl.concat(parts)


def fraction(ids: list[int], share: float, seed: int) -> list[int]:
    """A seeded share of session numbers, in their order; a smaller share is part of a larger one.

    Args:
        ids: session numbers.
        share: in (0, 1]; at least one session is kept.
    """
    by_hash = sorted(ids, key=lambda session: hashlib.blake2b(f"{seed}/{session}".encode(), digest_size=8).digest())
    kept = set(by_hash[: max(1, round(share * len(ids)))])
    return [session for session in ids if session in kept]
