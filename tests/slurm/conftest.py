"""A real SLURM cluster on this machine, four nodes with two simulated GPUs each (cluster.sh), and drivers on it."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import PLAIN_PYTHON

SCRIPT = Path(__file__).with_name("cluster.sh")
# Programs that the cluster needs, from Debian's packages. It also needs root, to make device files.
PROGRAMS = ("munged", "mariadbd", "slurmctld", "slurmd", "slurmdbd", "sbatch", "sacct")

RECIPE = {"batch_size": 4, "micro_batch": 8, "uniform_negatives": 2, "checkpoint_every": 1}
TRAINING = {
    "models_dir": "results/models",
    "datasets": ["ml-100k-small"],
    "encoders": ["smollm2-135m"],
    "decoders": ["minilm-l6"],
    "methods": ["history-cl", "pop"],
    "sample": {"test": 8, "train": 40, "val": 8},
    "training": {"threads": 1},
    "overrides": {"history-cl": {"history_items": 2}},
    "comparison": {"reference": "history-cl", "bootstrap": 100},
}
"""A config with one training, of the decoder by ``RECIPE``, which takes about a second per batch."""


@dataclass
class Cluster:
    """A running cluster: the environment of its commands, queries about its jobs, and ways to break it."""

    folder: Path
    env: dict[str, str]

    def run(self, *command: str | Path, check: bool = True, timeout: float = 60) -> str:
        """The output of a command (sbatch, scontrol, ...) on the cluster."""
        done = subprocess.run(
            [str(part) for part in command],
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def script(self, *args: str) -> str:
        # Output goes to a file, not a pipe: the daemons would inherit the pipe and keep it open until they end.
        log = self.folder / "cluster.log"
        with log.open("w") as out:
            code = subprocess.run([SCRIPT, *args], env=self.env, stdout=out, stderr=out, timeout=120).returncode
        assert code == 0, f"cluster.sh {' '.join(args)}: {log.read_text()}"
        return log.read_text()

    def queue(self, *args: str) -> list[dict[str, str]]:
        """Jobs that wait, run or are ending; with ``--states=all`` also those that ended recently."""
        names = ("id", "name", "state", "partition", "node", "reason", "comment", "workdir")
        text = self.run("squeue", "--noheader", "--format=%i\t%j\t%T\t%P\t%N\t%r\t%k\t%Z", *args)
        return [dict(zip(names, line.split("\t"), strict=True)) for line in text.splitlines()]

    def accounting(self, *args: str) -> list[dict[str, str]]:
        """One row of the accounting for each job of the cluster, and for each attempt of a requeued job."""
        fields = (
            "JobID,JobName,State,ExitCode,Partition,Account,NodeList,AllocTRES,ReqMem,TimelimitRaw,ElapsedRaw,"
            "Submit,Start,End,Comment,WorkDir"
        )
        text = self.run("sacct", "-X", "-D", "-P", "--starttime=1970-01-01", f"--format={fields}", *args)
        return list(csv.DictReader(text.splitlines(), delimiter="|"))

    def wait_for(self, what: Callable[[], object], seconds: float = 60, poll: float = 0.5):
        """The first true value that ``what`` returns; the test fails if there is none within ``seconds``."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, f"not within {seconds} seconds; queue: {self.queue('--states=all')}"
            time.sleep(poll)
        return found

    def hurry(self, job: str) -> None:
        """Let a requeued job start now: SLURM holds it back for two minutes."""
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def kill_node(self, node: str) -> None:
        """Kill the node's daemon and all processes of its jobs at once, as a power cut would."""
        self.script("kill-node", node)

    def start_node(self, node: str) -> None:
        self.script("start-node", node)

    def stop_controller(self) -> None:
        self.script("stop-ctld")

    def start_controller(self) -> None:
        self.script("start-ctld")

    def stop_accounting(self) -> None:
        self.script("stop-dbd")

    def start_accounting(self) -> None:
        self.script("start-dbd")

    def site(self, **changes) -> Path:
        """A cluster.yaml for LANGPTUNE_CLUSTER; ``changes`` replace whole keys."""
        path = self.folder / f"site-{time.monotonic_ns()}.yaml"
        own = yaml.safe_load(Path(self.env["LANGPTUNE_CLUSTER"]).read_text())
        path.write_text(yaml.safe_dump(own | changes))
        return path


def free_ports(count: int) -> int:
    """The first of ``count`` consecutive free ports."""
    for first in range(16800 + os.getpid() % 300 * 40, 32000, count):
        with closing(socket.socket()) as probe:
            if all(probe.connect_ex(("127.0.0.1", first + offset)) for offset in range(count)):
                return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def cluster(request) -> Iterator[Cluster]:
    missing = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    reason = f"SLURM is not installed here (no {', '.join(missing)})" if missing else None
    reason = reason or ("the test cluster needs root" if os.geteuid() else None)
    if reason:
        message = f"{reason}; .ci/run installs what is needed"
        pytest.fail(message) if os.environ.get("LANGPTUNE_NEED_SLURM") == "1" else pytest.skip(message)
    # These tests take longest, so their jobs come before the tests of other processes. A container may forbid it.
    with suppress(PermissionError):
        os.nice(-10)
    # Its own folder and ports: a cluster that is in use in .slurmlab is not affected.
    folder = Path(tempfile.mkdtemp(prefix="langptune-slurm-"))
    folder.chmod(0o755)  # munge needs a socket that all accounts can reach; pytest's own folders are private
    lab = folder / "lab"
    own = {"LANGPTUNE_LAB": str(lab), "LANGPTUNE_LAB_PORT": str(free_ports(20))}
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))} | own
    env |= {"SLURM_CONF": str(lab / "etc/slurm.conf"), "PATH": f"{lab / 'bin'}:{env['PATH']}"}
    env["LANGPTUNE_CLUSTER"] = str(lab / "etc/cluster.yaml")
    running = Cluster(folder, env)
    try:
        running.script("up")
        yield running
    finally:
        running.script("down")
        # After a failure the logs are kept for inspection.
        shutil.rmtree(lab / "sql" if request.session.testsfailed else folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def nothing_left(request):
    """After each test, cancel its jobs and restart what it stopped."""
    yield
    if "cluster" in request.fixturenames:
        running = request.getfixturevalue("cluster")
        running.script("up")
        running.run("scancel", "--user=root", check=False)
        running.wait_for(lambda: not running.queue(), seconds=60)


def command(*args: str | Path, attentive: bool) -> list[str]:
    # The profile's waiting times suit jobs that take hours, and a driver that has finished waits for the timespan of
    # the job rate. Both are shortened here.
    short = ["--slurm-init-seconds-before-status-checks=3", "--latency-wait=10", "--max-jobs-per-timespan=20/5s"]
    program = [str(Path(__file__).with_name("attentive.py"))] if attentive else ["-m", "snakemake"]
    return [PLAIN_PYTHON, *program, "--profile", "slurm", *short, *map(str, args)]


def environment(cluster: Cluster, site: Path | None) -> dict[str, str]:
    return cluster.env | ({"LANGPTUNE_CLUSTER": str(site)} if site else {})


def driver(
    cluster: Cluster, repo: Path, *args: str | Path, site: Path | None = None, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run ``snakemake --profile slurm`` in a copy of the repository until it ends; returns both streams as text.

    It looks at the queue at the plugin's own intervals.

    site: a cluster.yaml made by ``cluster.site(...)``; the default is that of the test cluster.
    """
    return subprocess.run(
        command(*args, attentive=False),
        cwd=repo,
        env=environment(cluster, site),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
    )


def start_driver(
    cluster: Cluster, repo: Path, log: Path, *args: str | Path, site: Path | None = None
) -> subprocess.Popen[bytes]:
    """The same in the background, in a separate process group; its output goes to ``log``.

    It looks at the queue every few seconds, even if no job ends for a long time (``attentive.py``).
    """
    with log.open("wb") as out:
        return subprocess.Popen(
            command(*args, attentive=True),
            cwd=repo,
            env=environment(cluster, site),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
