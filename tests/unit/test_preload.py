"""The ``python`` of the test run (tests/preload.py) behaves like any other interpreter, but starts faster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PLAIN_PYTHON, PRELOAD
from tests.unit.test_checkpoints import command, spec_of, weights_file, write_files

pytestmark = pytest.mark.skipif(PRELOAD not in os.environ, reason="no preloaded interpreter on this machine")

LOOK = """
import json, os, signal, sys
from pathlib import Path
preloaded = "preload.py" in Path("/proc/self/cmdline").read_text()
import torch
from huggingface_hub import constants
from threadpoolctl import threadpool_info
SET = ("KMP", "TOR", "_RJ", "SHL", "_")  # by libraries when they are imported, and by shells
umask = os.umask(0)
os.umask(umask)
print(json.dumps({
    "arguments": sys.argv, "path": sys.path[:2], "name": __name__, "file": __file__, "folder": os.getcwd(),
    "environment": {key: value for key, value in os.environ.items() if key[:3] not in SET},
    "umask": umask,
    "input": sys.stdin.read(), "threads": torch.get_num_threads(), "offline": constants.HF_HUB_OFFLINE,
    "pools": sorted((pool["internal_api"], pool["num_threads"]) for pool in threadpool_info()
                    if "torch" in pool["filepath"] or "numpy" in pool["filepath"]),
    "ignored": [n for n in (signal.SIGHUP, signal.SIGUSR1) if signal.getsignal(n) is signal.SIG_IGN],
    "open": sorted(os.listdir("/proc/self/fd"))[:3],
}))
sys.stderr.write("preloaded" if preloaded else "plain")
sys.exit(int(sys.argv[1]))
"""
WAIT = """
import os, signal, sys, time
import torch
def stop(*_):
    print("stopped", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print(os.getpid(), flush=True)
time.sleep(120)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A function that writes a script of the kind that is preloaded; a server already runs for it."""
    folder = tmp_path_factory.mktemp("preload") / "scripts"
    folder.mkdir()

    def written(text: str) -> str:
        path = folder / f"script{len(list(folder.iterdir()))}.py"
        path.write_text(text)
        return str(path)

    look = written(LOOK)
    end = time.monotonic() + 300
    how = ""
    while not how.endswith("preloaded") and time.monotonic() < end:  # until its server has started
        done = subprocess.run([sys.executable, look, "0"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        how = done.stderr
    assert done.stderr.endswith("preloaded"), done.stderr
    return written


def test_a_script_sees_what_it_would_see_alone(script, tmp_path):
    look, seen = script(LOOK), {}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "LANGPTUNE_NAME": "ä",
        "PYTHONPATH": "/a",
    }
    start = f'trap "" HUP; umask 027; exec "$0" {look} 7 "a b" ""'
    for python, how in ((PLAIN_PYTHON, "plain"), (sys.executable, "preloaded")):
        done = subprocess.run(
            ["bash", "-c", start, python], input="typed", capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 7 and done.stderr.endswith(how), done.stderr
        seen[how] = json.loads(done.stdout)
    assert seen["plain"] == seen["preloaded"]
    assert seen["plain"]["threads"] == 1 and seen["plain"]["offline"] and seen["plain"]["input"] == "typed"


def test_signals_reach_it_and_its_end_comes_back(script):
    wait = script(WAIT)
    for number, code, output in ((signal.SIGTERM, 75, "stopped\n"), (signal.SIGINT, -signal.SIGINT, "")):
        child = subprocess.Popen([sys.executable, wait], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert int(child.stdout.readline()) != child.pid
        child.send_signal(number)
        assert child.communicate(timeout=30)[0] == output and child.returncode == code


def test_it_dies_with_the_process_that_was_started(script):
    child = subprocess.Popen([sys.executable, script(WAIT)], stdout=subprocess.PIPE, text=True)
    job = int(child.stdout.readline())
    assert Path(f"/proc/{job}").exists()
    child.kill()
    assert child.communicate(timeout=30)[0] == "" and child.returncode == -signal.SIGKILL
    end = time.monotonic() + 10
    while Path(f"/proc/{job}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{job}").exists()


def test_an_error_and_another_environment(script):
    done = subprocess.run(
        [sys.executable, script("import torch\nraise ValueError('x')")], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.endswith("ValueError: x\n")
    # A library may have read this variable when it was imported, so the same server cannot run it.
    environment = {**os.environ, "HF_HOME": "/nowhere"}
    done = subprocess.run(
        [sys.executable, script(LOOK), "0"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.stderr.endswith("plain"), done.stderr
    on_a_cluster = {**os.environ, "SLURM_JOB_ID": "1"}
    done = subprocess.run(
        [sys.executable, script(LOOK), "0"], env=on_a_cluster, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.stderr.endswith("plain"), done.stderr


@pytest.mark.parametrize("kind", ["cl", "rlso"])
def test_a_training_gives_the_same_bytes_both_ways(script, tmp_path, kind):
    """tests/slurm/test_tables.py compares both ways for all of config/smoke.yaml on the cluster."""
    data, curves = write_files(tmp_path / "data"), {}
    for way, python in (("plain", PLAIN_PYTHON), ("preloaded", sys.executable)):
        spec = spec_of(kind, data, tmp_path / way, batches=3, validate_every=1)
        done = subprocess.run([python, *command(kind, spec)[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (tmp_path / way / "curve.jsonl").read_text().splitlines()]
        curves[way] = [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
    assert weights_file(tmp_path / "plain").read_bytes() == weights_file(tmp_path / "preloaded").read_bytes()
    # A sum may differ by rounding, because libraries also choose their kernels by memory alignment.
    plain, preloaded = curves["plain"], curves["preloaded"]
    assert len(plain) == len(preloaded) and all(
        one == pytest.approx(other, rel=1e-4) for one, other in zip(plain, preloaded, strict=True)
    )
