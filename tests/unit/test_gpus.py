"""Which GPU a local job gets, on a machine with simulated GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from langptune import gpus, launch
from langptune.errors import UserError
from tests.conftest import ROOT

JOB = """
import os, sys
from pathlib import Path
from langptune import stage

class Spec(stage.StageSpec):
    "A job that says which GPUs it sees, and keeps them for as long as standard input is open."
    out: str

    def needs_gpu(self):
        return True

def work(spec, record, log):
    assert "torch" not in sys.modules
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    sys.stdin.read()

if __name__ == "__main__":
    stage.run(Spec, work, sys.argv.pop(1))
"""


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, ["2", "0"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f2c"}, ["GPU-8f2c"]),
        ({"CUDA_VISIBLE_DEVICES": "1,7,0"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, ["0"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0", gpus.COUNT: "0"}, []),
    ],
)
def test_visible_gpus(env, found):
    assert gpus.visible({gpus.COUNT: "3", **env}) == found


@pytest.mark.parametrize("count", ["two", "²"])
def test_an_invalid_count_is_refused(count):
    with pytest.raises(UserError, match=rf"LANGPTUNE_GPUS: .*found '{count}'"):
        gpus.visible({gpus.COUNT: count})


@pytest.fixture
def job(tmp_path):
    """A function that starts jobs; the first line of each names the GPUs that it sees, or says that it waits."""
    (tmp_path / "job.py").write_text(JOB)
    started = []

    def start(**env: str) -> tuple[subprocess.Popen, str]:
        environment = {
            key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")
        }
        environment |= {gpus.COUNT: "2", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT / "src"), **env}
        command = [
            sys.executable,
            str(tmp_path / "job.py"),
            str(ROOT / "scripts/evaluate.py"),
            "--spec",
            '{"out": "x"}',
        ]
        child = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        started.append(child)
        return child, child.stdout.readline().strip()

    yield start
    for child in started:
        child.kill()
        child.wait()


def test_each_job_has_a_gpu_of_its_own(job):
    """With two GPUs, a third job waits until one is free; a killed job frees its GPU."""
    first, seen = job()
    assert seen == "0"
    assert job()[1] == "1"
    third, line = job()
    assert line == "waiting for 1 of the GPUs 0, 1: other jobs use them"
    first.kill()
    assert third.stdout.readline().strip() == "0"
    # A choice by the user, SLURM or the launcher of several processes is kept.
    assert job(CUDA_VISIBLE_DEVICES="1", LANGPTUNE_GPUS="3", TMPDIR=str(Path(third.args[1]).parent))[1].startswith(
        "wait"
    )
    assert job(CUDA_VISIBLE_DEVICES="1", SLURM_JOB_ID="7")[1] == "1"
    assert job(CUDA_VISIBLE_DEVICES="0,1", SLURM_JOB_ID="7")[1] == "0"
    assert job(CUDA_VISIBLE_DEVICES="0,1", RANK="0")[1] == "0,1"
    assert job(LANGPTUNE_GPUS="0")[1] == "None"


def test_a_launch_file_takes_as_many_as_it_has_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(gpus.tempfile, "tempdir", None)
    monkeypatch.setenv(gpus.COUNT, "4")
    monkeypatch.setenv(gpus.VISIBLE, "3,1,0")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    try:
        with pytest.raises(UserError, match=r"ddp.yaml: 4 GPUs are needed, one per process, and 3 are visible"):
            launch.run_here(Path("ddp.yaml"), launch.Shape(1, 4, False), 0, None, ["x"])
        gpus.claim(2, print)
        assert os.environ[gpus.VISIBLE] == "3,1"
    finally:
        for lock in gpus._held:
            lock.close()
        gpus._held.clear()


def test_one_process_of_a_training_does_not_spread_over_gpus():
    gpus.refuse_several(1)
    with pytest.raises(UserError, match=r"one process of a training uses one GPU, and 2 are visible"):
        gpus.refuse_several(2)
