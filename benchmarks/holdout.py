"""How much accuracy depends on which item is held out: the quick baselines under several kinds of leave-one-out.

Publications call all of these leave-one-out. They differ in nothing but the order of a user's interactions, whose last
two items are the targets of test and validation:

* ``last``: by time; interactions of the same time in an order that has nothing to do with the items (the protocol of
  the benchmark);
* ``rising``, ``falling``: by time; interactions of the same time by item id, as a sort of all columns leaves them;
* ``random``: in random order, so that items of a later time are among the train items.

Users, catalogue, masking, and tuning (a method's points in the config, by NDCG@10 on validation) are the same.

    python benchmarks/holdout.py --config config/baselines.yaml
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import polars as pl

from langptune import metrics
from langptune.baselines.frame import fit
from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.config.methods import BASELINES
from langptune.config.workflow import Workflow
from langptune.data import protocols, readers
from langptune.data.protocols import Prepared
from langptune.data.reader_output import Raw
from langptune.provenance import device, versions, write_json
from langptune.randomness import numbered

OUT = Path(__file__).parent / "out" / "holdout.json"
METRICS = ("recall@10", "ndcg@10")


def ordered(raw: Raw, columns: list[pl.Expr], descending: list[bool]) -> Raw:
    """The same interactions with their place in the order of these columns as their time."""
    sort = raw.interactions.sort(columns, descending=descending)
    placed = sort.with_columns(timestamp=pl.int_range(len(sort), dtype=pl.Int64)).sort("row")
    return dataclasses.replace(raw, interactions=placed)


def orders(raw: Raw, seeds: Iterable[int]) -> dict[str, list[Raw]]:
    """Kind of leave-one-out -> the interactions in its order, once for each seed if it is random."""
    numeric = raw.interactions["item_id"].str.contains(r"^\d+$").all()
    ids = pl.col("item_id").cast(pl.Int64) if numeric else pl.col("item_id")
    times = [numbered(seed).permutation(len(raw.interactions)) for seed in seeds]
    return {
        "last": [raw],
        "rising": [ordered(raw, [pl.col("timestamp"), ids], [False, False])],
        "falling": [ordered(raw, [pl.col("timestamp"), ids], [False, True])],
        "random": [ordered(raw, [pl.lit(pl.Series(time))], [False]) for time in times],
    }


def tied(raw: Raw) -> int:
    """Number of users whose last interaction shares its time with another one of theirs."""
    last = raw.interactions.filter(pl.col("timestamp") == pl.col("timestamp").max().over("user_id"))
    return int((last.group_by("user_id").len()["len"] > 1).sum())


def accuracy(workflow: Workflow, name: str, prepared: Prepared) -> dict[str, float]:
    """Test means of a method's point that is best on validation."""
    method = workflow.methods[name]
    entry = BASELINES.load(method.kind)
    keys = entry.Keys.model_validate(method.keys())
    sessions, n_items = prepared.sessions.select(fit.COLUMNS), len(prepared.items)

    def lesson(shows: str) -> fit.Lesson:
        return fit.lesson(sessions, n_items, shows, 0, lambda line: None)

    tried = [keys.at(point) for point in workflow.points(name)]
    if tried:
        scores = [fit.select(entry.Model(one), lesson("val")).val["ndcg@10"] for one in tried]
        keys = tried[int(np.argmax(scores))]
    model, _ = fit.final(lambda: entry.Model(keys), lesson("val"), lambda: lesson("test"))
    ranks = fit.ranks(model, sessions.filter(pl.col("split") == "test"), n_items, top=0)["rank"].to_numpy()
    return {metric: float(metrics.from_ranks(metric, ranks).mean()) for metric in METRICS}


def table(found: dict[str, dict[str, list[dict[str, float]]]], metric: str) -> None:
    """Print a line for each method: the mean of each kind, and the smallest and largest of the random ones."""
    print(f"\n{metric:<12}" + "".join(f"{kind:>9}" for kind in next(iter(found.values()))) + f"{'from':>9}{'to':>9}")
    for name, kinds in found.items():
        values = {kind: [run[metric] for run in runs] for kind, runs in kinds.items()}
        numbers = [*map(np.mean, values.values()), min(values["random"]), max(values["random"])]
        print(f"{name:<12}" + "".join(f"{number:>9.4f}" for number in numbers))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config/baselines.yaml")
    parser.add_argument("--dataset", default="ml-100k", help="entry of datasets.yaml, with protocol leave-one-out")
    parser.add_argument("--methods", nargs="+", default=["pop", "userknn", "itemknn", "p3alpha", "rp3beta", "ease"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="random held-out items")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    root = Path(__file__).parent.parent
    workflow = load({**read_yaml(Path(args.config)), "datasets": [args.dataset]}, root)
    entry = workflow.datasets[args.dataset]
    raw = readers.read(entry, args.dataset)
    print(f"last item of the same time as another one: {tied(raw)} of {raw.interactions['user_id'].n_unique()} users")
    prepared = {
        kind: [protocols.prepare(one, entry, args.dataset) for one in many]
        for kind, many in orders(raw, args.seeds).items()
    }
    found = {}
    for name in args.methods:
        found[name] = {kind: [accuracy(workflow, name, one) for one in many] for kind, many in prepared.items()}
        print(f"{name}: done", flush=True)
    for metric in METRICS:
        table(found, metric)
    args.out.parent.mkdir(exist_ok=True)
    write_json(args.out, {"methods": found, "seeds": args.seeds, "device": device(), "versions": versions()})


if __name__ == "__main__":
    main()
