"""What a SLURM run costs beside the work itself: overhead by job, and the driver while it waits.

    python benchmarks/cluster.py            # on the cluster at hand, with slurm/cluster.yaml
    python benchmarks/cluster.py --lab      # on the test cluster: root, and the packages that .ci/run installs

A fan-out of small jobs (random ranks of many seeds, and their evaluation) runs on this machine, on the cluster as the
profile groups them, and on the cluster one by one. Then the driver waits for as many jobs that may not start yet. Last,
the graph of config/paper.yaml. Results go to a folder of their own, which is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from langptune.provenance import ROOT, device

RESULTS = "results/benchmark-cluster"
FOLDER = ROOT / RESULTS
DATASET = "ml-100k-small"


@dataclass
class Run:
    """One run of a driver. cores: used on average since ``settle``; memory: highest, in MB."""

    seconds: float
    output: str
    cores: float
    memory: float


def snakemake(*args: str, env: dict[str, str], settle: float = 0.0, stop: float | None = None) -> Run:
    """Run it to its end, or interrupt it after ``stop`` seconds; numbers are of the driver process alone."""
    log = FOLDER / "driver.log"
    began = time.monotonic()
    with log.open("w") as out:
        driver = psutil.Popen(
            [sys.executable, "-m", "snakemake", *args],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
        memory, seen = 0.0, []
        while driver.poll() is None:
            memory = max(memory, driver.memory_info().rss / 1e6)
            now = time.monotonic() - began
            if now >= settle and (stop is None or now < stop):
                seen.append((now, sum(driver.cpu_times()[:2])))
            if stop is not None and now >= stop:
                driver.send_signal(signal.SIGINT)  # which also cancels its jobs
                stop = settle = float("inf")
            time.sleep(0.2)
    seconds = time.monotonic() - began
    if driver.returncode and stop is None:
        sys.exit(f"snakemake {' '.join(args)}\n{log.read_text()[-3000:]}")
    (first, before), (last, after) = seen[0], seen[-1]
    return Run(seconds, log.read_text(), (after - before) / max(last - first, 1e-9), memory)


def lab_environment() -> dict[str, str]:
    """The test cluster's, started where it is not up."""
    script = ROOT / "tests" / "slurm" / "cluster.sh"
    subprocess.run([script, "up"], check=True, stdout=subprocess.DEVNULL)
    told = subprocess.run(
        ["bash", "-c", f'eval "$({shlex.quote(str(script))} env)"; env -0'], check=True, capture_output=True
    )
    return dict(pair.split("=", 1) for pair in told.stdout.decode().split("\0") if "=" in pair)


def config_file(jobs: int) -> Path:
    """A config whose only fan-out is random ranks."""
    smoke = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    config = {key: smoke[key] for key in ("datasets", "encoders", "decoders", "models_dir", "sample")}
    config |= {"results": RESULTS, "methods": ["pop", "random"], "seeds": list(range(jobs // 2))}
    config["comparison"] = {"reference": "pop", "bootstrap": 100}
    file = FOLDER / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def main() -> None:
    """Measure and print tables."""
    # In the background a shell has SIGINT ignored, and so would the drivers that are to be stopped by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", action="store_true", help="use the test cluster")
    parser.add_argument("--jobs", type=int, default=200, help="jobs of the fan-out")
    parser.add_argument("--at-once", type=int, default=16, help="jobs in the queue at once")
    parser.add_argument("--wait", type=int, default=180, help="seconds that the driver is watched while it waits")
    args = parser.parse_args()
    env = lab_environment() if args.lab else dict(os.environ)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        site = yaml.safe_load(Path(env.get("LANGPTUNE_CLUSTER", ROOT / "slurm" / "cluster.yaml")).read_text())
        base = ["--configfile", str(config_file(args.jobs))]
        targets = [f"{RESULTS}/{DATASET}/random/random/seed{s}/metrics.parquet" for s in range(args.jobs // 2)]
        here = ["--nolock", "--cores", str(os.cpu_count()), *base]
        slurm = ["--profile", "slurm", "--jobs", str(args.at_once), *base]
        slurm += ["--slurm-init-seconds-before-status-checks", "5", "--latency-wait", "10"]
        one_by_one = [
            "--groups",
            "fit_baseline=rank",
            "evaluate=evaluate",
            "--group-components",
            "rank=1",
            "evaluate=1",
        ]
        snakemake(*here, "--", f"{RESULTS}/{DATASET}/data/evaluation.parquet", env=env)
        runs = {}
        for name, command in {
            "this machine, no scheduler": here,
            "SLURM, grouped as in the profile": slurm,
            "SLURM, one by one": [*slurm, *one_by_one],
        }.items():
            shutil.rmtree(FOLDER / DATASET / "random", ignore_errors=True)
            runs[name] = snakemake(*command, "--", *targets, env=env)
            print(f"{name}: {runs[name].seconds:.0f} s", file=sys.stderr, flush=True)
        shutil.rmtree(FOLDER / DATASET / "random", ignore_errors=True)
        held_site = FOLDER / "held.yaml"
        held_site.write_text(yaml.safe_dump(site | {"extra": "--begin=now+1hour"}))
        held = env | {"LANGPTUNE_CLUSTER": str(held_site)}
        settle = 60 + args.jobs / 4  # until all are submitted
        all_at_once = ["--jobs", str(args.jobs)]
        waiting = snakemake(*slurm, *all_at_once, "--", *targets, env=held, settle=settle, stop=settle + args.wait)
        graph = snakemake("--profile", "slurm", "-n", "--quiet", "rules", env=env)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    first = next(iter(runs.values())).seconds
    print(f"{args.jobs} small jobs; {os.cpu_count()} cores, {device()}\n")
    print("| | seconds | SLURM jobs | by job | ratio | driver's memory |")
    print("|---|---|---|---|---|---|")
    for name, run in runs.items():
        submitted = len(re.findall("has been submitted with SLURM jobid", run.output)) or ""
        each = f"{run.seconds / args.jobs:.2f} s"
        print(
            f"| {name} | {run.seconds:.0f} | {submitted} | {each} | {run.seconds / first:.1f} | {run.memory:.0f} MB |"
        )
    submitted = len(re.findall("has been submitted with SLURM jobid", waiting.output))
    print(f"\nwaiting for {submitted} jobs: {100 * waiting.cores:.2f}% of a core, {waiting.memory:.0f} MB")
    jobs = re.search(r"^total +(\d+)", graph.output, re.M)
    print(
        f"graph of config/paper.yaml: {jobs[1] if jobs else '?'} jobs in {graph.seconds:.1f} s, {graph.memory:.0f} MB"
    )


if __name__ == "__main__":
    main()
