"""Preparing an Amazon category under the published protocol: time and memory by size, and against rows in pandas.

    python benchmarks/prepare.py [--reviews 1000000 4000000 16000000] [--threads 1] [--compare]

Made-up files in the raw format (tests/amazon.py) are written once for each size and kept. Every side runs in a process
of its own: ``scripts/prepare_data.py`` as the workflow calls it, and, with ``--compare`` and at the smallest size, the
steps of the publication row by row in pandas (``iterrows``, a dict for each row, ``groupby().filter`` for each round of
the core, ``apply`` for each user). Both must give the same sessions. Prints seconds, rows a second and peak memory of
each size (the fastest of ``--repeats``, files read once beforehand), how far seconds per row are from those at the
smallest size (0% would be linear), and the ratios (above 1: ours is better); writes benchmarks/out/prepare.json. At 16
million reviews the files take 10 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "out"
CATEGORY = "Movies_and_TV"
CORE, HISTORY, HELD_OUT, SEED = 5, 4, 0.2, 0
TEXT = "Title: {{ title }}\nDescription: {{ description }}\nCategories: {{ categories }}\nPrice: {{ price }}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, nargs="+", default=[1_000_000, 4_000_000, 16_000_000])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of polars; pandas has one")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each size; the fastest is reported")
    parser.add_argument("--gz", action="store_true", help="compressed files, as the hub also serves them")
    parser.add_argument("--compare", action="store_true", help="also the row-by-row procedure, at the smallest size")
    parser.add_argument("--folder", type=Path, default=OUT / "prepare", help="where the made-up files are kept")
    parser.add_argument("--out", type=Path, default=OUT / "prepare.json")
    # How this file calls itself: each side must be alone in its process for its memory to be told.
    parser.add_argument("--step", nargs=2, metavar=("NAME", "JSON"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        {"write": write, "rows": rows}[args.step[0]](**json.loads(args.step[1]))
        return

    sizes = []
    print(
        f"{'reviews':>12} {'GB':>6} {'seconds':>9} {'CPU s':>8} {'peak MB':>8} {'rows/s':>9} {'s/million':>10} linear"
    )
    for reviews in sorted(args.reviews):
        folder = made(args.folder, reviews, args.gz)
        told = {"reviews": reviews, "bytes": sum(path.stat().st_size for path in folder.rglob("*.jsonl*"))}
        with tempfile.TemporaryDirectory() as work:
            read_once(folder)
            runs = [ours(folder, Path(work), args.threads) for _ in range(args.repeats)]
            told |= {**min(runs, key=lambda run: run["seconds"]), "all_seconds": [run["seconds"] for run in runs]}
            per_million = told["seconds"] / reviews * 1e6
            told |= {"rows_per_second": round(reviews / told["seconds"]), "seconds_per_million": round(per_million, 3)}
            told["off_linear"] = round(per_million / sizes[0]["seconds_per_million"] - 1, 3) if sizes else 0.0
            print(
                f"{reviews:>12,} {told['bytes'] / 1e9:>6.2f} {told['seconds']:>9.1f} {told['cpu_seconds']:>8.1f} "
                f"{told['peak_mb']:>8.0f} {told['rows_per_second']:>9,} {told['seconds_per_million']:>10.2f} "
                f"{told['off_linear']:+.0%}",
                flush=True,
            )
            if args.compare and not sizes:
                told["row_by_row"] = compare(folder, Path(work), told)
        sizes.append(told)
    from langptune.provenance import device, versions, write_json

    found = {"threads": args.threads, "gz": args.gz, "sizes": sizes, "device": device()}
    write_json(args.out, {**found, "versions": versions("polars", "pandas", "pyarrow")})


def made(folder: Path, reviews: int, gz: bool) -> Path:
    """The folder of the made-up files, written unless they are there from another run."""
    target = folder / f"{reviews}{'-gz' if gz else ''}"
    if not target.exists():
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        took = myself("write", {"folder": str(part), "reviews": reviews, "gz": gz}, 1)
        part.rename(target)
        print(f"wrote {target} in {took['seconds']:.0f} s, {took['peak_mb']:.0f} MB of memory", file=sys.stderr)
    return target


def read_once(folder: Path) -> None:
    """So that the files lie in memory for every run, as far as they fit: a disk is not what is measured."""
    for path in folder.rglob("*.jsonl*"):
        with path.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def ours(folder: Path, work: Path, threads: int) -> dict[str, Any]:
    """The preparation as a job of the workflow, its inputs not hashed beforehand."""
    protocol = {"name": "paper", "core": CORE, "history_length": HISTORY, "held_out": HELD_OUT, "seed": SEED}
    dataset = {
        "title": "Made-up films",
        "reader": "amazon-2023",
        "source": {"folder": str(folder.resolve())},
        "category": CATEGORY,
        "licence": "none",
        "columns": {key: key for key in ("title", "description", "categories", "price")},
        "item_text": TEXT,
        "prompt": "movies",
        "protocol": protocol,
    }
    outputs = {f"{name}_out": str(work / f"{name}.parquet") for name in ("items", "sessions", "users")}
    spec = {"name": "made-up", "dataset": dataset, **outputs, "funnel_out": str(work / "funnel.csv")}
    script = ROOT / "scripts" / "prepare_data.py"
    return measured([sys.executable, str(script), "--spec", json.dumps(spec)], threads)


def compare(folder: Path, work: Path, told: dict[str, Any]) -> dict[str, Any]:
    """The row-by-row procedure on the same files, and a check that it gives the same sessions."""
    import polars as pl

    other = myself("rows", {"folder": str(folder), "out": str(work / "rows.json")}, 1)
    sessions = pl.read_parquet(work / "sessions.parquet")
    ids = pl.read_parquet(work / "items.parquet")["item_id"].to_list()
    same = [
        [user, split, [ids[item] for item in history], ratings, reviews, ids[target], at]
        for user, split, history, ratings, reviews, target, at in sessions.select(
            "user_id", "split", "history", "ratings", "reviews", "target", "target_time"
        ).iter_rows()
    ]
    if json.loads((work / "rows.json").read_text(encoding="utf-8")) != [ids, same]:
        raise SystemExit("the two procedures do not give the same items and sessions")
    other["times_slower"] = round(other["seconds"] / told["seconds"], 1)
    other["times_memory"] = round(other["peak_mb"] / told["peak_mb"], 1)
    print(
        f"{'row by row':>12} {'':>6} {other['seconds']:>9.1f} {other['cpu_seconds']:>8.1f} {other['peak_mb']:>8.0f}   "
        f"same {len(same):,} sessions; {other['times_slower']:g} times the time, {other['times_memory']:g} times "
        "the memory",
        flush=True,
    )
    return other


def myself(step: str, values: dict[str, Any], threads: int) -> dict[str, Any]:
    return measured([sys.executable, __file__, "--step", step, json.dumps(values)], threads)


def measured(command: list[str], threads: int) -> dict[str, Any]:
    """Run a command; its seconds, CPU seconds and peak memory."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = {**os.environ, "PYTHONPATH": path, "POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as said:
        clock = time.perf_counter()
        child = subprocess.Popen(command, env=env, stdout=said, stderr=said)
        # Not wait(): this tells the usage of this child alone, not of the greatest of all so far.
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - clock
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)[:300]}\nended with {child.returncode}:\n{said.read()[-3000:]}")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
    }


def write(folder: str, reviews: int, gz: bool) -> None:
    from tests.amazon import write_amazon

    write_amazon(folder, category=CATEGORY, reviews=reviews, gz=gz)


def rows(folder: str, out: str) -> None:
    """The published steps as one would first write them, a row at a time; its own reading, no table library of ours."""
    import pandas as pd

    from langptune.data.sessions import stable_hash

    def objects(kind: str, name: str):
        path = next((Path(folder) / kind).glob(f"{name}.jsonl*"))
        chunks = pd.read_json(path, lines=True, chunksize=50_000, dtype=False, convert_dates=False)
        for chunk in chunks:
            for _, row in chunk.iterrows():
                yield row

    def core(frame: pd.DataFrame) -> pd.DataFrame:
        while True:
            before = len(frame)
            for key in ("user_id", "parent_asin"):
                frame = frame.groupby(key).filter(lambda group: len(group) >= CORE)
            if len(frame) == before:
                return frame

    items: dict[str, dict | None] = {}
    for row in objects("meta_categories", f"meta_{CATEGORY}"):
        if row["parent_asin"] not in items:
            titled = isinstance(row["title"], str) and row["title"].strip()
            keys = ("title", "description", "categories", "price", "average_rating")
            items[row["parent_asin"]] = {key: row[key] for key in keys} if titled else None
    kept = []
    for line, row in enumerate(objects("review_categories", CATEGORY)):
        if items.get(row["parent_asin"]) is not None:
            keys = ("user_id", "parent_asin", "timestamp", "rating", "text")
            kept.append({"line": line, **{key: row[key] for key in keys}})
    frame = pd.DataFrame(kept)
    del kept
    frame = frame.sort_values(["timestamp", "line"]).drop_duplicates(["user_id", "parent_asin"])
    frame = core(core(frame))  # the second time after the limits on lengths, of which there are none here
    joined = []
    for _, row in frame.iterrows():
        tie = int.from_bytes(stable_hash("tie", row["user_id"], row["parent_asin"]), "big")
        joined.append({**items[row["parent_asin"]], **row.to_dict(), "tie": tie})
    frame = pd.DataFrame(joined)

    first = frame.groupby("user_id").apply(lambda group: group["timestamp"].min())
    users = sorted(first.index, key=lambda user: (first[user], stable_hash("user", user)))
    train = set(users[: int((1 - HELD_OUT) * len(users) + 1e-9)])
    known = set(frame[frame.apply(lambda row: row["user_id"] in train, axis=1)]["parent_asin"])

    def session(group: pd.DataFrame) -> list | None:
        group = group[[item in known for item in group["parent_asin"]]]
        if len(group) < CORE:
            return None
        group = group.sort_values(["timestamp", "tie", "line"])
        history = group.head(HISTORY)
        for _, row in group.iloc[HISTORY:].iterrows():
            if row["parent_asin"] not in set(history["parent_asin"]):
                shown = [list(history[key]) for key in ("parent_asin", "rating", "text")]
                return [*shown, row["parent_asin"], int(row["timestamp"])]
        return None

    found = {user: session(group) for user, group in frame.groupby("user_id")}
    asked = [user for user, row in found.items() if row is not None and user not in train]
    asked.sort(key=lambda user: stable_hash(f"split/{SEED}", user))
    split = {user: "val" if place < len(asked) // 2 else "test" for place, user in enumerate(asked)}
    sessions = [
        [user, split.get(user, "train"), *found[user]]
        for user in sorted(found, key=lambda user: (len(user), user))
        if found[user] is not None
    ]
    told = [sorted(known, key=lambda item: (len(item), item)), sessions]
    Path(out).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
