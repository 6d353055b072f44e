"""A training on two nodes of the cluster, one process each: the numbers of one process, and what a signal does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import copy_of_repo, snakemake
from tests.slurm.conftest import RECIPE, TRAINING, start_driver

pytestmark = [pytest.mark.slurm, pytest.mark.models, pytest.mark.slow]

# In bfloat16 the rounding of another split of the batch adds up, over tens of batches, to a tenth of a loss.
RECIPE_HERE = RECIPE | {"precision": "float32", "batches": 10, "validate_every": 5}
LAUNCH = {"one": None, "two": "cpu-2-nodes.yaml"}
UNTIL = ("--until", "train_decoder")


def phase(repo: Path, name: str) -> Path | None:
    return next((repo / "results" / name / "ml-100k-small/phases/minilm-l6/seed0").glob("cl-history-*"), None)


def curve(repo: Path, name: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (phase(repo, name) / "curve.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def log(repo: Path, name: str) -> str:
    return next((repo / "results" / name / "logs/train_decoder").glob("*.log")).read_text()


def same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [row["batch"] for row in found] == [row["batch"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5)


@pytest.fixture(scope="module")
def repo(tmp_path_factory, real_models) -> Path:
    """A copy of the repository in which one process on this machine has trained."""
    repo = copy_of_repo(tmp_path_factory.mktemp("launch"), real_models)
    for name, launch in LAUNCH.items():
        recipe = {"cl-history": RECIPE_HERE | {"launch": launch}}
        config = TRAINING | {"results": f"results/{name}", "recipe_overrides": recipe}
        (repo / f"{name}.yaml").write_text(yaml.safe_dump(config))
    done = snakemake("--configfile", "one.yaml", *UNTIL, cwd=repo)
    assert done.returncode == 0, done.stdout[-5000:]
    return repo


def test_two_nodes_stopped_by_a_signal_end_where_one_process_does(cluster, repo, tmp_path):
    """A signal as SLURM sends it some time before the limit: a checkpoint, status 75, and the next attempt resumes."""
    running = start_driver(cluster, repo, tmp_path / "driver.log", "--configfile", "two.yaml", *UNTIL)

    def under_way() -> bool:
        assert running.poll() is None, (tmp_path / "driver.log").read_text()[-8000:]
        found = phase(repo, "two")
        return bool(found and list(found.glob(".checkpoints/*/checkpoint-*/seal.json")))

    cluster.wait_for(under_way, seconds=300, poll=0.1)
    nodes = re.search(r"2 processes on 2 nodes: (n\d), (n\d)", log(repo, "two"))
    assert nodes and nodes[1] != nodes[2], log(repo, "two")
    job = next(job for job in cluster.queue() if job["comment"].startswith("rule_train_decoder"))
    cluster.run("scancel", "--signal=TERM", job["id"])
    cluster.wait_for(lambda: "the same command goes on from there" in log(repo, "two"), seconds=60, poll=0.1)
    stopped = log(repo, "two")
    assert "SIGTERM: saving a checkpoint at the end of this step" in stopped
    assert running.wait(timeout=400) == 0, (tmp_path / "driver.log").read_text()[-8000:]
    resumed = re.search(r"resuming from checkpoint-(\d+)", log(repo, "two"))
    assert resumed and f"stopped by SIGTERM at step {resumed[1]};" in stopped, (stopped, log(repo, "two"))
    same(curve(repo, "two"), curve(repo, "one"))
    jobs = [job for job in cluster.accounting() if job["Comment"].startswith("rule_train_decoder")]
    assert all(re.fullmatch(r"n\[?\d[-,]\d\]?", job["NodeList"]) for job in jobs if job["WorkDir"] == str(repo)), jobs


def test_an_allocation_of_another_size_is_refused_in_one_line(cluster, repo):
    (repo / "s.py").write_text("print('started')")
    command = f"{sys.executable} scripts/launch.py --config-file config/accelerate/cpu-2-nodes.yaml s.py"
    out = repo / "refused.txt"
    env = f"PYTHONPATH={repo / 'src'}"
    options = ["--wait", "--nodes=1", "--mem=500", f"--chdir={repo}", f"--output={out}"]
    cluster.run("sbatch", *options, f"--wrap={env} {command}", check=False)
    output = out.read_text()
    assert "cpu-2-nodes.yaml: key 'num_machines': 2, but job" in output and "has 1 nodes" in output
    assert "Traceback" not in output and "started" not in output
