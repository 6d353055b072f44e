"""The driver tries a job that crashes three times, and a job that fails on the user's input once, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import copy_of_repo

pytestmark = [pytest.mark.workflow]
ITEMS = "results/smoke/ml-100k-small/data/items.parquet"
PROFILES = {
    "on this machine": ["--cores", "2", "--nolock"],
    # The driver decides about retries. It is the same driver without a cluster, but starts the jobs itself.
    "by the cluster's profile": ["--profile", "slurm", "--executor", "local", "--cores", "2", "--latency-wait", "0"],
}
FAULTS = {
    "exit status 2": ("from langptune.errors import UserError; raise UserError('line 7: correct it')", 1),
    "an exception": ("raise RuntimeError('by chance')", 3),
    "a kill": ("import os; os.kill(os.getpid(), 9)", 3),
    "once": ("if len(Path('tries').read_text()) < 2: raise RuntimeError('by chance')", 2),
}


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    return copy_of_repo(tmp_path_factory.mktemp("retries") / "repo", Path("nowhere"))


def driven(repo: Path, fault: str, *profile: str) -> tuple[int, int, str]:
    """Run a workflow whose first job has a fault: exit status, how often the job was started, and output."""
    script = repo / "scripts/prepare_data.py"
    before = script.read_text()
    count = "    with open('tries', 'a') as tries:\n        tries.write('x')\n"
    marker = '    """Read, split, write."""\n'
    assert marker in before
    (repo / "tries").unlink(missing_ok=True)
    try:
        script.write_text(before.replace(marker, f"{marker}{count}    {fault}\n"))
        command = [sys.executable, "-m", "snakemake", "--configfile", "config/smoke.yaml", *profile, "--", ITEMS]
        env = {key: value for key, value in os.environ.items() if key != "LANGPTUNE_RUN"}
        done = subprocess.run(
            command, cwd=repo, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600
        )
    finally:
        script.write_text(before)
    return done.returncode, len((repo / "tries").read_text()), done.stdout


@pytest.mark.parametrize(
    ("profile", "fault"),
    [
        *(("on this machine", fault) for fault in FAULTS),
        *(("by the cluster's profile", fault) for fault in ("exit status 2", "an exception")),
    ],
)
def test_how_often_a_job_is_tried(repo, profile, fault):
    code, times = FAULTS[fault]
    status, tried, output = driven(repo, code, *PROFILES[profile])
    assert status != 0 or fault == "once", output
    assert tried == times, output
    if times == 1:
        assert "line 7: correct it" in output and "Trying to restart" not in output
        assert "attempt 1 of 3: ended with status 2, for its user to correct: it is not tried again" in output
    else:
        assert output.count("crashed or was stopped: it is tried again") == times - 1
        assert "status 2" not in output
    assert not output.count("Traceback (most recent call last)") or "by chance" in output
