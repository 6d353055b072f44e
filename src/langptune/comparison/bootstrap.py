"""Percentile bootstrap of a mean over sessions and seeds.

Interpretation: the sessions are a sample of the users that could have been evaluated, and the seeds a sample of the
runs that could have been made. Each resample draws both with replacement, independently of each other, and averages
the crossed table (the pigeonhole bootstrap: A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2),
2007). Between the quantiles are the means that other users *and* other seeds would plausibly give.

Limits:

* with one seed the interval is over sessions only, and too narrow for a method that depends on its seed;
* R seeds understate the variance between seeds by the factor (R - 1) / R, a third at R = 3, while the
  interaction of session and seed is somewhat overstated: the interval is approximate with few seeds;
* a metric that is zero for every session gives [0, 0].

The draws of sessions depend on the seed alone, so all methods see the same resamples and the difference of
two methods' replicates is their paired bootstrap. The draws of seeds depend on the seed and the method's
name, so that adding a method to a table changes no other row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from langptune.randomness import numbered

CHUNK = 4_000_000
"""Limit on the number of resampled sessions in memory (32 MB of float64)."""


def replicates(values: Mapping[str, np.ndarray], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Bootstrap replicates of the mean of each method.

    Args:
        values: name -> float64 ``[S, R, M]`` (sessions, the method's seeds, metrics); R may differ.
        resamples: number of resamples B.
        seed: seed of the generators.

    Returns:
        name -> float64 ``[B, M]``; replicate b of every name is over the same sessions.
    """
    if not values:
        return {}
    n_sessions = len(next(iter(values.values())))
    seed_weights = {name: _seed_weights(name, table.shape[1], resamples, seed) for name, table in values.items()}
    out = {name: np.empty((resamples, table.shape[2])) for name, table in values.items()}
    for rows, weights in _session_weights(n_sessions, resamples, seed):
        for name, table in values.items():
            _, seeds, metrics = table.shape
            by_seed = (weights @ table.reshape(n_sessions, seeds * metrics)).reshape(-1, seeds, metrics)
            out[name][rows] = np.einsum("br,brm->bm", seed_weights[name][rows], by_seed)
    return out


def interval(draws: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """The ``(1 -+ confidence) / 2`` quantiles of ``[B, ...]`` draws along the first axis."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail], axis=0)
    return low, high


def _session_weights(n_sessions: int, resamples: int, seed: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Chunks of ``[b, S]`` weights: the number of times that each session is drawn, over S; rows sum to 1."""
    rng = numbered(seed, 0)
    step = max(1, CHUNK // n_sessions)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, n_sessions, size=(size, n_sessions))
        drawn += np.arange(size)[:, None] * n_sessions
        counts = np.bincount(drawn.ravel(), minlength=size * n_sessions).reshape(size, n_sessions)
        yield slice(start, start + size), counts / n_sessions


def _seed_weights(name: str, seeds: int, resamples: int, seed: int) -> np.ndarray:
    """``[B, R]`` weights of a method's seeds; rows sum to 1."""
    rng = numbered(seed, 1, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    return rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=resamples) / seeds
