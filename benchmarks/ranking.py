"""Ranks and metrics: ours against RecBole's own evaluator and against ranx, on the same scores in one run.

What is timed, per batch of scores ``[batch, items]`` (making the scores is not):

* ours: ``full_ranks`` (mask, exact rank with ties, 50 best items), then recall, NDCG and MRR per session;
* RecBole 1.2.1: its trainer's masking (``scores[history] = -inf``), its ``Collector`` with top-k, and its
  ``Evaluator`` with Recall, NDCG and MRR; means only, top-k only, ties left to ``torch.topk``;
* ranx: building a ``Run`` from lists of the 50 best items, which it is given, and ``evaluate``; it neither
  masks nor sorts a catalogue, so its time comes on top of a ranking.

``ours_rank_only`` is ``full_ranks`` without the 50 best items, which is all that the metrics need. ``ours_with_lists``
is ``ours`` and all metrics of ``langptune.list_metrics`` on the first ten items, with what they read of an invented
catalogue (18 genres, texts of eight words). The three must agree on the means. Scores are float32 normals: no ties,
where the three would differ by design.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import numpy as np
import polars as pl
import torch
from ranx import Qrels, Run
from ranx import evaluate as ranx_evaluate

from langptune import list_metrics, metrics
from langptune.baselines.engine import recbole_compat
from langptune.comparison.lists import facts_of
from langptune.list_metrics import Lists
from langptune.provenance import device, versions, write_json
from langptune.ranking.ranks import full_ranks

TOPK = [1, 5, 10, 20]
NAMES = [f"{kind}@{k}" for kind in ("recall", "ndcg", "mrr") for k in TOPK]
OUT = Path(__file__).parent / "out" / "ranking.json"
LENGTH = 10
"""Items of a list that list metrics look at."""


def invented(n_items: int, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
    """Items with texts, train sessions of 1,000 users, and genres bool ``[N, 18]``, for list metrics."""
    words = rng.integers(0, 5000, size=(n_items, 8))
    items = pl.DataFrame({"text": [" ".join(f"word{word}" for word in row) for row in words.tolist()]})
    sessions = pl.DataFrame(
        {
            "user_id": [str(user) for user in range(1000)],
            "split": ["train"] * 1000,
            "history": rng.integers(0, n_items, size=(1000, 50)).tolist(),
            "target": rng.integers(0, n_items, size=1000),
        }
    )
    return items, sessions, rng.random((n_items, 18)) < 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10_000, help="full size: 100000")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=1_000, help="sessions scored at once")
    parser.add_argument("--history", type=int, default=50, help="masked items per session")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    recbole_compat.apply()
    from recbole.config import Config
    from recbole.evaluator import Collector, Evaluator

    # the numpy aliases that RecBole's metrics still use, set where RecBole itself sets them
    Config.compatibility_settings(None)
    config = {
        "metrics": ["Recall", "NDCG", "MRR"],
        "topk": TOPK,
        "eval_args": {"mode": {"valid": "full", "test": "full"}},
        "device": torch.device("cpu"),
        "metric_decimal_place": 12,
    }
    collector, evaluator = Collector(config), Evaluator(config)
    # numba compiles here, untimed
    ranx_evaluate(Qrels({"u": {"0": 1}}), Run({"u": {"0": 1.0, "1": 0.5}}), NAMES, make_comparable=True)

    rng = np.random.default_rng(args.seed)
    seconds = dict.fromkeys(("ours", "ours_rank_only", "ours_with_lists", "recbole", "ranx"), 0.0)
    ranks, tops, values = [], [], []
    all_targets, histories = [], []
    for start in range(0, args.sessions, args.batch):
        size = min(args.batch, args.sessions - start)
        scores = rng.standard_normal((size, args.items), dtype=np.float32)
        history = rng.integers(0, args.items - 1, size=(size, args.history))
        targets = rng.integers(0, args.items, size=size)
        history += history >= targets[:, None]  # never the target
        scores[np.arange(size), targets] += rng.exponential(2.0, size=size).astype(np.float32)
        masks = list(history)

        clock = time.perf_counter()
        ranked = full_ranks(scores, targets, masks)
        seconds["ours"] += time.perf_counter() - clock
        clock = time.perf_counter()
        full_ranks(scores, targets, masks, top=0)
        seconds["ours_rank_only"] += time.perf_counter() - clock
        ranks.append(ranked.rank)
        tops.append(ranked.top)
        values.append(ranked.top_scores)
        all_targets.append(targets)
        histories.append(history)

        tensor = torch.from_numpy(scores)
        rows = torch.arange(size)
        history_index = (rows.repeat_interleave(args.history), torch.from_numpy(history).reshape(-1))
        clock = time.perf_counter()
        tensor[history_index] = -np.inf
        collector.eval_batch_collect(tensor, None, rows, torch.from_numpy(targets))
        seconds["recbole"] += time.perf_counter() - clock

    clock = time.perf_counter()
    rank = np.concatenate(ranks)
    ours = {name: float(metrics.from_ranks(name, rank).mean()) for name in NAMES}
    seconds["ours"] += time.perf_counter() - clock

    items, sessions, genres = invented(args.items, rng)
    compared = pl.DataFrame({"seen": np.concatenate(histories).tolist()})
    lists = Lists(np.concatenate(tops)[:, :LENGTH].astype(np.int64), args.items)
    clock = time.perf_counter()
    facts = facts_of(items, sessions, compared, genres)
    found = {name: list_metrics.values(name, lists, facts) for name in list_metrics.names()}
    seconds["ours_with_lists"] = seconds["ours"] + time.perf_counter() - clock

    clock = time.perf_counter()
    theirs = evaluator.evaluate(collector.get_data_struct())
    seconds["recbole"] += time.perf_counter() - clock

    users = [str(session) for session in range(args.sessions)]
    best = [[str(item) for item in row] for row in np.concatenate(tops).tolist()]
    best_scores = np.concatenate(values).tolist()
    target_ids = [str(target) for target in np.concatenate(all_targets).tolist()]
    clock = time.perf_counter()
    run = Run({user: dict(zip(*pair, strict=True)) for user, *pair in zip(users, best, best_scores, strict=True)})
    qrels = Qrels({user: {target: 1} for user, target in zip(users, target_ids, strict=True)})
    third = ranx_evaluate(qrels, run, NAMES, make_comparable=True)
    seconds["ranx"] += time.perf_counter() - clock

    apart = {
        "recbole": max(abs(ours[name] - float(theirs[name])) for name in NAMES),
        "ranx": max(abs(ours[name] - float(third[name])) for name in NAMES),
    }
    measured = {
        "sessions": args.sessions,
        "items": args.items,
        "batch": args.batch,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "list_metrics": sorted(found),
        "ratio_to_ours": {name: round(seconds[name] / seconds["ours"], 3) for name in seconds},
        "largest_difference_of_means": apart,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "device": device(),
        "versions": versions("numpy", "torch", "recbole", "ranx"),
    }
    write_json(args.out, measured)
    print(json.dumps(measured, indent=1))
    if max(apart.values()) > 1e-9:
        raise SystemExit("the evaluators disagree")


if __name__ == "__main__":
    main()
