"""Which test sessions the methods are compared on: one fixed draw per dataset and config."""

from __future__ import annotations

import numpy as np
import polars as pl

from langptune.config.sample import Sample
from langptune.data.contracts import EVALUATION


def draw(sessions: pl.DataFrame, sample: Sample) -> pl.DataFrame:
    """Contract ``evaluation``: sampled test sessions, ascending. More asked than there are: all."""
    ids = np.sort(sessions.filter(pl.col("split") == "test")["session"].to_numpy())
    if sample.test is not None and sample.test < len(ids):
        ids = np.sort(np.random.default_rng(sample.seed).choice(ids, sample.test, replace=False))
    return pl.DataFrame({"session": ids, "split": ["test"] * len(ids)}, schema=EVALUATION)
