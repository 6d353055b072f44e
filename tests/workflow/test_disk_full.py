"""A disk that fills up at random moments of a run: one line of error, no finished result lost, the same final results.

The results are on a separate file system. By default, the baselines run and the disk fills up twice. With
``DISK_MOMENTS=10``, it fills up ten times in a run of the whole config/smoke.yaml.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from langptune.provenance import file_hash
from tests.conftest import PLAIN_PYTHON, copy_of_repo, environment_of

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
WHOLE = "DISK_MOMENTS" in os.environ
MOMENTS = int(os.environ.get("DISK_MOMENTS", "2"))
RESULTS = Path("results/smoke")
TARGET = "all" if WHOLE else "baselines"
# What jobs write and remove while they run: in training, states of the optimizer (two jobs, three checkpoints each).
WORKING_SPACE = 2_000_000_000 if WHOLE else 40_000_000
# All jobs of the whole run use the plain interpreter. Otherwise the first ones do and later ones use the preloaded one
# (tests/preload.py), in which torch selects other kernels: the weights then differ by rounding.
PYTHON = PLAIN_PYTHON if WHOLE else sys.executable
ENVIRONMENT = environment_of(PYTHON)
COMMAND = ["-m", "snakemake", "--nolock", "--cores", "2", "--configfile", "config/smoke.yaml", "--", TARGET]


def start(repo: Path, log: Path) -> subprocess.Popen:
    """Start a run without retries: on a full disk, each job would fail three times."""
    command = [PYTHON, *COMMAND[:-2], "--retries", "0", *COMMAND[-2:]]
    return subprocess.Popen(command, cwd=repo, env=ENVIRONMENT, stdout=log.open("w"), stderr=subprocess.STDOUT)


def finish(repo: Path) -> str:
    done = subprocess.run(
        [PYTHON, *COMMAND], cwd=repo, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def results(repo: Path) -> dict[str, str]:
    """Path -> hash of every result that is the same in every run."""
    kinds = ("*.parquet", "table*.*", "*.png", "*.pdf", "choice.json", "selected.json")
    found = {path for kind in kinds for path in (repo / RESULTS).rglob(kind) if path.is_file()}

    def timed(path: Path) -> bool:
        return path.stem == "cost" or path.name.endswith(".manifest.json")

    return {
        path.relative_to(repo).as_posix(): file_hash(path)
        for path in found
        if not timed(path) and not any(part.startswith(".") for part in path.relative_to(repo).parts)
    }


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as out, pytest.raises(OSError):
        size = 1 << 20
        while True:
            try:
                out.write(bytes(size))
            except OSError:
                if size == 1:
                    raise
                size = 1 if size <= 512 else size // 8
    return ballast


def finished(log: str) -> set[str]:
    """The outputs of the jobs that Snakemake says have finished."""
    blocks = re.findall(r"^(?:local)?rule \w+:\n((?: {4}.*\n)+)", log, re.M)
    outputs = {}
    for block in blocks:
        fields = dict(line.strip().split(": ", 1) for line in block.splitlines() if ": " in line)
        if "output" in fields:
            outputs[fields["jobid"]] = fields["output"].split(", ")
    return {path for job in re.findall(r"^Finished jobid: (\d+)", log, re.M) for path in outputs.get(job, [])}


def test_a_disk_that_fills_up_at_random_moments(tmp_path, request, small_disk):
    models = request.getfixturevalue("real_models") if WHOLE else tmp_path / "nothing"
    repo = copy_of_repo(tmp_path / "repo", models)
    began = time.monotonic()
    finish(repo)
    wanted = results(repo)
    pause = (time.monotonic() - began) / len(wanted)
    size = sum(path.stat().st_blocks * 512 for path in (repo / RESULTS).rglob("*") if path.is_file())
    print(f"the undisturbed run took {time.monotonic() - began:.0f} s and {size / 1e6:.0f} MB", flush=True)
    shutil.rmtree(repo / RESULTS)
    disk = small_disk(repo / RESULTS, str(size + WORKING_SPACE))
    rng = random.Random(int(os.environ.get("DISK_SEED", "0")))
    hit, done = 0, set()
    for moment in range(5 * MOMENTS):
        if hit == MOMENTS:
            break
        log = tmp_path / f"run{moment}.log"
        running = start(repo, log)
        # The moment depends on the number of results, plus a part of a job, not on time: other load slows a run.
        there = len(done & wanted.keys())
        enough = there + round(rng.uniform(0.05, 0.7) * (len(wanted) - there))
        while running.poll() is None:
            output = log.read_text()
            if "rule " in output and len(wanted.keys() & (done | finished(output))) >= enough:
                break
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(rng.uniform(0, pause))
        done |= finished(log.read_text())
        before = {path: value for path, value in results(repo).items() if path in done}
        ballast = fill(disk)
        running.wait()
        output = log.read_text()
        after = results(repo)
        ballast.unlink()
        print(f"moment {moment}: {len(before)} results, exit status {running.returncode}", flush=True)
        assert {path: after.get(path) for path in before} == before, output[-6000:]
        assert all((repo / path).exists() for path in done), output[-6000:]
        if running.returncode:
            hit += 1
            assert "the disk is full" in output or "No space left on device" in output, output[-6000:]
            assert "Traceback" not in output, output[-6000:]
        elif after == wanted:
            # The disk filled up too late to disturb the run. The next one would have nothing to do.
            for path in (repo / RESULTS).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            done = set()
    finish(repo)
    assert results(repo) == wanted and len(wanted) > 4
    assert not list(disk.rglob(".*.part")), "partial files that a full disk left must be removed"
    assert hit == MOMENTS, "too few runs were disturbed"
