"""Runs of a small comparison, with ranks that a test chooses."""

from __future__ import annotations

import numpy as np
import polars as pl

from langptune import metrics
from langptune.comparison import grid, statistics
from langptune.comparison.grid import RunEntry

METRICS = ["recall@10", "ndcg@10"]


def write(folder, name, ranks, sessions=None, names=METRICS):
    """Write the metrics of one run with these ranks; returns the path of the file."""
    path = folder / f"{name}.parquet"
    sessions = np.arange(len(ranks)) if sessions is None else np.asarray(sessions)
    pl.DataFrame(
        {
            "session": sessions.astype(np.int32),
            "user_id": [str(s) for s in sessions],
            "rank": np.asarray(ranks, dtype=np.int32),
            **{m: metrics.from_ranks(m, np.asarray(ranks)) for m in names},
        }
    ).write_parquet(path)
    return str(path)


def entry(path, method, models="m", seed=0, **more):
    """One run of a comparison."""
    fields = {"title": method.upper(), "group": "baselines", "note": "", "trials": 0, **more}
    return RunEntry(method=method, models=models, seed=seed, metrics_path=path, **fields)


def runs_of(folder):
    """Runs of a reference with two models, of a good method with three seeds and of a bound; and a method not run."""
    rng = np.random.default_rng(11)
    weak = rng.integers(1, 200, size=80)
    entries = [
        entry(write(folder, "ref1", weak), "ref", "enc+d1", group="profiles", title="Ref_1 & <b>50%</b>|"),
        entry(write(folder, "ref2", rng.permutation(weak)), "ref", "enc+d2", group="profiles", title="Ref"),
        *(
            entry(
                write(folder, f"good{s}", np.maximum(1, rng.integers(1, 25, size=80))),
                "good", seed=s, trials=6, note="tuned_on {val}",
            )
            for s in range(3)
        ),
        entry(write(folder, "oracle", np.ones(80, int)), "oracle", group="bounds"),
    ]  # fmt: skip
    absent = entry(str(folder / "absent.parquet"), "absent", title="Absent")
    return entries, absent


def made(entries, allow_missing=False, published=()):
    """The comparison of these runs with the method ``ref``."""
    found = grid.collect(entries, METRICS, allow_missing)
    return statistics.compare(found, "ref", "ndcg@10", resamples=300, seed=1, published=published)
