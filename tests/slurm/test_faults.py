"""Faults of a cluster, applied to real trainings: each row of the fault table in docs/cluster.md is measured here.

A training of the decoder that checkpoints at every step runs once on this machine without faults. On the cluster, it
must end with the same weights after every fault.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
import yaml

from langptune.provenance import file_hash
from langptune.training.checkpoints import SEAL
from tests.conftest import PLAIN_PYTHON, copy_of_repo, copy_of_run, environment_of
from tests.slurm.conftest import RECIPE, TRAINING, Cluster, driver, start_driver

pytestmark = [pytest.mark.slurm, pytest.mark.models, pytest.mark.slow]

SEEDS = [0, 1, 2]
LONG = 100
"""Seconds of a training when two run at once on this machine: with four at once, none ends within a minute."""
CONFIG = TRAINING | {"results": "results/faults", "generation": {"threads": 1}}
BATCHES = {"batches": 20, "validate_every": 20}
DATA = "results/faults/ml-100k-small"


class Trial:
    """A copy of the repository with the config above, and access to the files of its trainings."""

    def __init__(
        self, folder: Path, models: Path, seeds: list[int], retries: int = 2, like: Trial | None = None, **recipe: int
    ):
        """``like``: a finished trial whose prepared data are reused."""
        if like is None:
            self.repo = copy_of_repo(folder / "repo", models)
        else:
            self.repo = copy_of_run(like.repo, folder / "repo")
            shutil.rmtree(self.repo / DATA / "phases")
            shutil.rmtree(self.repo / "results/faults/logs/train_decoder")
        config = CONFIG | {"seeds": seeds, "training": {"threads": 1, "retries": retries}}
        config["recipe_overrides"] = {"cl-history": RECIPE | BATCHES | recipe}
        (self.repo / "faults.yaml").write_text(yaml.safe_dump(config))
        self.log = folder / "driver.log"
        self.began = time.monotonic()

    def local(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Snakemake on this machine, with the interpreter of the cluster's jobs.

        torch selects other kernels if it is imported before the number of threads is set, as in tests/preload.py. The
        weights then differ by rounding.
        """
        command = [PLAIN_PYTHON, "-m", "snakemake", "--nolock", "--cores", "2", "--configfile", "faults.yaml", *args]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run(command, cwd=self.repo, env=environment_of(PLAIN_PYTHON), text=True, **streams)

    def phase(self, seed: int) -> Path | None:
        return next(iter((self.repo / DATA / "phases" / "minilm-l6" / f"seed{seed}").glob("cl-history-*")), None)

    def steps(self, seed: int) -> int:
        """The step of the newest complete checkpoint of a running training."""
        phase = self.phase(seed)
        found = phase.glob(f".checkpoints/*/checkpoint-*/{SEAL}") if phase else []
        return max((int(seal.parent.name.split("-")[1]) for seal in found), default=0)

    def weights(self, seed: int) -> str:
        return file_hash(self.phase(seed) / "decoder" / "model.safetensors")

    def seconds(self, seed: int) -> float:
        """Seconds per batch of a finished training."""
        curve = [json.loads(line) for line in (self.phase(seed) / "curve.jsonl").read_text().splitlines()]
        seconds = [row["seconds"] for row in curve if row.get("loss") is not None]
        return (seconds[-1] - seconds[0]) / (len(seconds) - 1)

    def log_of(self, seed: int) -> str:
        """The log of a training's last attempt."""
        return next((self.repo / "results/faults/logs/train_decoder").glob(f"*-seed{seed}-*.log")).read_text()

    def output(self) -> str:
        return self.log.read_text()


def submitted(cluster: Cluster, rule: str, trial: Trial) -> list[dict[str, str]]:
    """All attempts at jobs of a rule, from the accounting, after it has recorded their ends."""

    def settled() -> list[dict[str, str]]:
        rows = [row for row in cluster.accounting() if row["Comment"].startswith(f"rule_{rule}_")]
        rows = [row for row in rows if row["WorkDir"] == str(trial.repo)]
        return [] if {row["State"] for row in rows} & {"PENDING", "RUNNING"} else rows

    return cluster.wait_for(settled)


def job_of(cluster: Cluster, rule: str, seed: int | None = None) -> dict[str, str] | None:
    """The running job of a rule (and seed), if any."""
    mark = f"rule_{rule}_wildcards_" + ("" if seed is None else f"ml-100k-small_minilm-l6_{seed}_")
    found = [job for job in cluster.queue("--states=RUNNING") if job["comment"].startswith(mark)]
    return found[0] if found else None


def back_in_the_queue(cluster: Cluster, trial: Trial, job: dict[str, str]) -> None:
    """Wait until SLURM has requeued a job, and let it start at once: SLURM would hold it back for two minutes."""

    def requeued() -> bool:
        queue = cluster.queue("--states=PENDING")
        return any(found["id"] == job["id"] and found["reason"] == "BeginTime" for found in queue)

    cluster.wait_for(requeued, seconds=120)
    report(trial, f"job {job['id']} is back in the queue")
    cluster.hurry(job["id"])


def report(trial: Trial, line: str) -> None:
    """Print a measurement for docs/cluster.md; ``pytest -s`` shows it."""
    print(f"[{time.monotonic() - trial.began:5.0f} s] {line}", flush=True)


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory, real_models) -> Trial:
    """The trainings on this machine, without faults."""
    trial = Trial(tmp_path_factory.mktemp("undisturbed"), real_models, SEEDS)
    done = trial.local("--", "langptune")
    assert done.returncode == 0, done.stdout[-3000:]
    return trial


def exclusive(cluster: Cluster, **changes) -> Path:
    """A site where each job has a node to itself, so that a fault affects only one training."""
    return cluster.site(extra="--exclusive", warn_seconds=0, **changes)


def test_cancelled_lost_with_its_node_and_preempted(cluster, trained_here, real_models, tmp_path):
    """scancel, a lost node, preemption with requeue, and restarts of controller and accounting, all in one run."""
    trial = Trial(tmp_path, real_models, SEEDS, like=trained_here)
    site = exclusive(cluster, partition={"cpu": "cpu", "gpu": "low"})
    running = start_driver(
        cluster, trial.repo, trial.log, "--configfile", "faults.yaml", "--jobs", "4", "--", "langptune", site=site
    )
    try:
        for seed in SEEDS:
            cluster.wait_for(lambda seed=seed: trial.steps(seed) >= 2, seconds=240)
        jobs = {seed: job_of(cluster, "train_decoder", seed) for seed in SEEDS}
        at = {seed: trial.steps(seed) for seed in SEEDS}
        report(trial, f"all train, at steps {at}")
        cluster.run("scancel", jobs[0]["id"])
        cluster.kill_node(jobs[1]["node"])
        cluster.run(
            *("sbatch", "--account=lab", "--partition=high", f"--nodelist={jobs[2]['node']}", "--exclusive"),
            *("--output=/dev/null", "--wrap=sleep 5"),
        )
        report(trial, "seed 0: scancel; seed 1: its node killed; seed 2: preempted")
        back_in_the_queue(cluster, trial, jobs[2])
        cluster.stop_accounting()
        cluster.stop_controller()
        time.sleep(25)  # longer than an sbatch or squeue waits
        cluster.start_controller()
        cluster.start_accounting()
        report(trial, "controller and accounting were away for 25 seconds")
        back_in_the_queue(cluster, trial, jobs[1])
        cluster.start_node(jobs[1]["node"])
        assert running.wait(timeout=600) == 0, trial.output()[-6000:]
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    report(trial, "the run is over")
    for seed in SEEDS:
        resumed = re.search(r"resuming from checkpoint-(\d+)", trial.log_of(seed))
        assert resumed, f"seed {seed}: {trial.log_of(seed)}"
        # At most one checkpoint interval is lost; here, it is one step.
        report(trial, f"seed {seed}: {resumed[0]}; {at[seed]} when it was hit")
        assert int(resumed[1]) >= at[seed]
        assert trial.weights(seed) == trained_here.weights(seed)
    states = {seed: [job["State"] for job in cluster.accounting("-j", jobs[seed]["id"])] for seed in SEEDS}
    report(trial, f"states in the accounting: {states}")
    assert states[0][0].startswith("CANCELLED") and states[2][-1] == "COMPLETED"


def limits(cluster: Cluster, trained_here: Trial, real_models: Path, tmp_path: Path) -> None:
    """The first attempts have too little time or memory. Later ones get more, and resume where the first stopped."""
    args = ("--configfile", "faults.yaml", "--", "langptune")
    batches = round(LONG / trained_here.seconds(0))
    long = Trial(tmp_path / "time", real_models, [0], like=trained_here, batches=batches, validate_every=batches)
    small = Trial(tmp_path / "memory", real_models, [0], retries=4, like=trained_here)
    site = cluster.site(time_factor=0.012, warn_seconds=0)
    short = start_driver(cluster, long.repo, long.log, *args, site=site)
    site = cluster.site(memory_factor=0.2, warn_seconds=0)
    tight = start_driver(cluster, small.repo, small.log, *args, site=site)

    def attempt(other: str = "") -> dict[str, str] | None:
        assert short.poll() is None, long.output()[-6000:]
        running = [job for job in cluster.queue("--states=RUNNING") if job["workdir"] == str(long.repo)]
        return next((job for job in running if "train_decoder" in job["comment"] and job["id"] != other), None)

    first = cluster.wait_for(attempt, seconds=300)
    again = cluster.wait_for(lambda: attempt(first["id"]), seconds=300)
    limit = cluster.run("squeue", "--noheader", "--format=%l", f"--jobs={again['id']}").strip()
    # Two minutes may or may not be enough: SLURM checks limits twice a minute, and counts a job that ends in between as
    # failed.
    cluster.run("scontrol", "update", f"JobId={again['id']}", "TimeLimit=30")
    assert tight.wait(timeout=900) == 0, small.output()[-6000:]
    report(small, "enough memory at last")
    assert short.wait(timeout=1200) == 0, long.output()[-6000:]
    report(long, "enough time at last")
    timed = submitted(cluster, "train_decoder", long)
    report(long, str([(job["State"], job["TimelimitRaw"], job["ElapsedRaw"]) for job in timed]))
    assert [job["State"] for job in timed] in (["TIMEOUT", "COMPLETED"], ["FAILED", "COMPLETED"])
    assert timed[0]["TimelimitRaw"] == "1" and limit == "2:00"
    resumed = re.search(r"resuming from checkpoint-(\d+)", long.log_of(0))
    assert resumed and int(resumed[1]) > 0
    report(long, resumed[0])

    sized = submitted(cluster, "train_decoder", small)
    report(small, str([(job["State"], job["ReqMem"], job["ElapsedRaw"]) for job in sized]))
    asked = [int(job["ReqMem"].rstrip("M")) for job in sized]
    assert len(asked) >= 2 and asked == sorted(set(asked))
    assert sized[-1]["State"] == "COMPLETED" and "COMPLETED" not in {job["State"] for job in sized[:-1]}
    assert small.weights(0) == trained_here.weights(0)


def driver_killed(cluster: Cluster, trained_here: Trial, real_models: Path, tmp_path: Path) -> None:
    """The next driver waits for the jobs of the dead one, keeps their results, and starts no job twice."""
    trial = Trial(tmp_path, real_models, SEEDS, like=trained_here)
    args = ("--configfile", "faults.yaml", "--jobs", "2", "--", "langptune")
    first = start_driver(cluster, trial.repo, tmp_path / "first.log", *args)
    cluster.wait_for(lambda: "has been submitted" in (tmp_path / "first.log").read_text(), seconds=120)
    third = start_driver(cluster, trial.repo, tmp_path / "third.log", *args)
    assert third.wait(timeout=180) == 1
    assert "another run is at work in this folder" in (tmp_path / "third.log").read_text()
    cluster.wait_for(lambda: sum(trial.steps(seed) >= 1 for seed in SEEDS) == 2, seconds=240)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    left = [job["id"] for job in cluster.queue() if job["workdir"] == str(trial.repo)]
    report(trial, f"driver killed; jobs {left} go on")
    assert len(left) == 2
    second = start_driver(cluster, trial.repo, trial.log, *args)
    assert second.wait(timeout=600) == 0, trial.output()[-6000:]
    report(trial, "the second driver is through")
    output = trial.output()
    assert "2 jobs of an earlier run in this folder are still in the queue (2 train_decoder)" in output
    assert "reading what they finished" in output
    mine = submitted(cluster, "train_decoder", trial)
    report(trial, str([(job["JobID"], job["State"]) for job in mine]))
    assert len(mine) == len(SEEDS) and {job["State"] for job in mine} == {"COMPLETED"}
    assert all(trial.weights(seed) == trained_here.weights(seed) for seed in SEEDS)


def full_disk(cluster: Cluster, trained_here: Trial, real_models: Path, tmp_path: Path) -> None:
    """The disk fills up during a training: three attempts fail with one line each. With free space, it resumes."""
    trial = Trial(tmp_path, real_models, [0], like=trained_here)
    disk = trial.repo / "results" / "faults"
    prepared = disk.rename(tmp_path / "prepared")
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400m", "tmpfs", str(disk)], check=True)
    try:
        shutil.copytree(prepared, disk, dirs_exist_ok=True)
        args = ("--configfile", "faults.yaml", "--", "all")
        running = start_driver(cluster, trial.repo, trial.log, *args)
        cluster.wait_for(lambda: trial.steps(0) >= 2, seconds=240)
        with (disk / "ballast").open("wb") as ballast, pytest.raises(OSError):
            while True:
                ballast.write(bytes(1 << 20))
        report(trial, f"disk full at step {trial.steps(0)}")
        assert running.wait(timeout=600) == 1
        report(trial, "the run gave up")
        tried = submitted(cluster, "train_decoder", trial)
        assert [job["State"] for job in tried] == ["FAILED"] * 3
        assert "the disk is full" in trial.output()
        (disk / "ballast").unlink()
        done = driver(cluster, trial.repo, *args)
        assert done.returncode == 0, done.stdout[-6000:]
        assert "resuming from checkpoint-" in trial.log_of(0)
        assert trial.weights(0) == trained_here.weights(0)
        assert pl.read_csv(disk / "ml-100k-small/comparison/table.csv").height
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def test_limits_a_killed_driver_and_a_full_disk(cluster, trained_here, real_models, tmp_path):
    """These faults mostly wait for the queue, so they run in parallel."""
    with ThreadPoolExecutor() as pool:
        faults = [
            pool.submit(fault, cluster, trained_here, real_models, tmp_path / fault.__name__)
            for fault in (limits, driver_killed, full_disk)
        ]
    if failed := [error for fault in faults if (error := fault.exception())]:
        raise BaseExceptionGroup("faults", failed)


def test_submitting_waits_for_the_controller(cluster, tmp_path):
    """The `sbatch` that the driver finds in its PATH waits while the controller is down."""
    tool = Path(__file__).parents[2] / "slurm" / "bin" / "sbatch"
    env = cluster.env | {"LANGPTUNE_SLURM_SECONDS": "1", "PATH": f"{tool.parent}:{cluster.env['PATH']}"}
    command = ["sbatch", "--parsable", "--account=lab", "--output=/dev/null", "--wrap=true"]
    cluster.stop_controller()
    try:
        waiting = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(5)
        assert waiting.poll() is None
    finally:
        cluster.start_controller()
    out, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 0 and out.strip().isdigit()
    assert errors.count("SLURM's controller does not answer") == 1
