"""Parsing the queue, and the lines of the watch. The tests in tests/slurm use a real queue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from langptune import slurm, stage
from langptune.errors import EXIT_AGAIN, UserError
from langptune.slurm import Entry, Watch
from tests.conftest import PLAIN_PYTHON, ROOT


def entry(id: str = "1", state: str = "RUNNING", reason: str = "None", elapsed: str = "1:00", rule: str = "evaluate"):
    return Entry(id, state, reason, elapsed, "n1", "run", "/here", rule)


def watch(**settings) -> tuple[Watch, list[str]]:
    lines: list[str] = []
    return Watch("/here", lines.append, **settings), lines


def test_only_jobs_of_rules_are_read():
    text = "\n".join(
        [
            "7|RUNNING|None|1-02:03:04|n1|langptune_a-b|/here|rule_train_encoder_wildcards_ml-100k_x+y_0_rlso-1",
            "8|PENDING|Priority|0:00||uuid|/here|rule_draw_sample",
            "9|RUNNING|None|1:00|n2|bash|/here|(null)",
        ]
    )
    jobs = slurm.parse(text)
    assert [(job.id, job.rule, job.active) for job in jobs] == [
        ("7", "train_encoder", True),
        ("8", "draw_sample", True),
    ]


def test_elapsed_times():
    assert [slurm._seconds(text) for text in ("0:07", "2:03", "1:00:00", "1-02:03:04", "INVALID")] == [
        7,
        123,
        3600,
        93784,
        0,
    ]


def test_two_drivers_in_one_folder(tmp_path):
    slurm.sole_driver(tmp_path)  # the lock must hold although its return value is dropped
    code = (
        "import sys; from pathlib import Path; from langptune.slurm import sole_driver; sole_driver(Path(sys.argv[1]))"
    )
    second = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "another run is at work in this folder" in second.stderr
    slurm._held.pop().close()
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


def test_missing_slurm_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="squeue: no such command"):
        slurm.queue(tmp_path)


def test_an_unreachable_controller_and_its_return_are_reported_once():
    one, lines = watch()
    for now in (0, 60, 120):
        one.look(None, now)
    one.look([], 180)
    assert lines == [
        "SLURM does not answer; jobs go on, and this run waits until it does",
        "SLURM answers again, after 3 minutes",
    ]


def test_a_job_that_will_never_start_is_reported_once_with_a_fix():
    one, lines = watch()
    for now in (0, 60):
        one.look([entry("4", "PENDING", "PartitionTimeLimit"), entry("5", "PENDING", "JobHeldUser")], now)
    reported = [line for line in lines if not line.startswith("in the queue")]
    assert len(reported) == 2
    assert (
        "job 4 (evaluate) will never start" in reported[0]
        and "limits.hours" in reported[0]
        and "scancel 4" in reported[0]
    )
    assert "scontrol release 5" in reported[1]


def test_jobs_that_slurm_dropped_are_requeued(tmp_path, monkeypatch):
    tool = tmp_path / "scontrol"
    tool.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    one, lines = watch(patience=100)
    one.look([entry("6", "PREEMPTED")], 0)
    one.look([entry("6", "PREEMPTED")], 60)
    assert lines == [] and not (tmp_path / "asked").exists()
    one.look([entry("6", "PREEMPTED")], 120)
    assert (tmp_path / "asked").read_text() == "requeue 6\n"
    assert len(lines) == 1 and "was not put back in the queue" in lines[0] and "done now" in lines[0]


def test_a_vanished_job_is_reported():
    one, lines = watch()
    one.look([entry("1"), entry("2")], 0)
    one.look([entry("1"), entry("2", "COMPLETED")], 60)
    one.look([entry("1")], 120)  # job 2 had ended, and SLURM forgets it after MinJobAge
    assert not [line for line in lines if "vanished" in line]
    one.look([], 180)
    assert [line for line in lines if "job 1 vanished" in line]


def test_summaries_come_on_change_and_rarely():
    one, lines = watch(summary=600)
    busy = [entry("1", elapsed="10:00", rule="train_encoder"), entry("2", "PENDING", "Resources")]
    for now in range(1000, 1600, 60):
        one.look(busy, now)
    assert lines == [
        "in the queue: 1 running; 1 waiting: Resources; longest: job 1 (train_encoder) on n1 for 10:00; "
        "by rule: 1 train_encoder, 1 evaluate"
    ]
    one.look(busy, 1600)
    assert len(lines) == 2
    one.look([busy[0], entry("2", "COMPLETED")], 1700)
    assert len(lines) == 3


def catches_term(pid: int) -> bool:
    """Whether a process has set a handler for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"^SigCgt:\s*(\w+)", status, re.M)[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_sigterm_ends_any_script_with_one_line_and_run_again(tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
    # The plain interpreter, because the preloading client would catch the signal before the script (tests/preload.py).
    command = [PLAIN_PYTHON, str(ROOT / "scripts" / "evaluate.py"), "--spec", "-"]
    waiting = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(2400):
        if catches_term(waiting.pid):
            break
        time.sleep(0.05)
    waiting.send_signal(signal.SIGTERM)
    _, errors = waiting.communicate(timeout=30)
    assert waiting.returncode == EXIT_AGAIN
    assert errors == "evaluate.py: stopped by SIGTERM; the same command goes on from what is kept\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("JobId=7 Requeue=1 Restarts=0 PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:01:00", True),
        ("JobId=7 Requeue=0 Restarts=0 PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:01:00", False),
        ("JobId=7 Requeue=1 Restarts=0 PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None", False),
    ],
)
def test_whether_a_job_is_preempted(answer, expected, tmp_path, monkeypatch):
    tool = tmp_path / "scontrol"
    tool.write_text(f"#!/bin/sh\necho '{answer}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not stage.preempted()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert stage.preempted() is expected


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["--exclude=None", "assigned", "-D", "a b"], ["-D", "a b"]),
        (["--exclude=n2,None", "assigned,n3", "x"], ["--exclude=n2,n3", "x"]),
        (["--exclude=n2", "--wrap=echo None assigned"], ["--exclude=n2", "--wrap=echo None assigned"]),
        ([], []),
    ],
)
def test_no_node_is_called_none_assigned(given, passed, tmp_path, monkeypatch):
    for name, script in {
        "scontrol": "echo controller is UP",
        "sbatch": 'for arg; do echo "$arg"; done; echo "$PATH"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", path := f"{ROOT / 'slurm' / 'bin'}:{tmp_path}:{os.environ['PATH']}")
    done = subprocess.run(["sbatch", *given], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*passed, path]  # a job inherits this PATH, so its srun waits too
