"""Which val and test sessions the methods are compared on: one fixed draw per dataset and config."""

from __future__ import annotations

import numpy as np
import polars as pl

from langptune.config.workflow import Sample
from langptune.data.contracts import EVALUATION


def draw(sessions: pl.DataFrame, sample: Sample) -> pl.DataFrame:
    """Contract ``evaluation``: sampled session ids with their split, ascending. More asked than there are: all."""
    parts = []
    for split, wanted in (("val", sample.validation), ("test", sample.test)):
        ids = np.sort(sessions.filter(pl.col("split") == split)["session"].to_numpy())
        if wanted is not None and wanted < len(ids):
            ids = np.sort(np.random.default_rng([sample.seed, len(split)]).choice(ids, wanted, replace=False))
        parts.append(pl.DataFrame({"session": ids, "split": [split] * len(ids)}, schema=EVALUATION))
    return pl.concat(parts).sort("session")
