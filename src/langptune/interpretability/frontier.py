"""The share of a reference's accuracy and steerability that a method keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from langptune.interpretability.summary import interval_of, resampled


@dataclass(frozen=True)
class Kept:
    """A method's mean over its reference's, with the bootstrap interval of the ratio.

    All are NaN unless the interval of the reference's mean lies above 0: a share of nothing, or of an effect in the
    wrong direction, has no meaning.
    """

    share: float
    low: float
    high: float


def kept(
    values: Mapping[str, np.ndarray], references: Mapping[str, str], resamples: int, confidence: float, seed: int
) -> dict[str, Kept]:
    """The share that each method keeps of its reference's mean.

    Each replicate resamples the sessions of both alike (``comparison.bootstrap``), so the interval is that of a paired
    ratio.

    Args:
        values: method -> float ``[S, R]``, the same sessions for all, NaN if undefined; higher is better.
        references: method -> its reference.
        seed: seed of the resamples.
    """
    found = resampled({name: table[..., None] for name, table in values.items()}, resamples, seed)
    out = {}
    for name in values:
        (mean, draws), (whole, of) = found[name], found[references[name]]
        if not interval_of(of[:, 0], confidence)[0] > 0:
            out[name] = Kept(float("nan"), float("nan"), float("nan"))
            continue
        ratios = np.divide(draws, of, out=np.full_like(draws, np.nan), where=of > 0)
        out[name] = Kept(float(mean[0] / whole[0]), *interval_of(ratios[:, 0], confidence))
    return out
