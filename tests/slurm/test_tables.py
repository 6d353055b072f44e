"""One seed of config/smoke.yaml on the cluster: the tables of a run on one machine.

Methods whose jobs repeat those of others are left out, but every rule runs. The cluster's jobs use the plain
interpreter and the local jobs use the preloaded one (tests/preload.py), so the two interpreters are compared as well.
"""

from __future__ import annotations

import csv
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.conftest import AFTER_ALL, copy_of_repo, copy_of_run, jobs_of, snakemake
from tests.slurm.conftest import start_driver

pytestmark = [pytest.mark.slurm, pytest.mark.models, pytest.mark.slow]
ON_GPU = {
    *("embed_items", "embed_phase_items", "train_decoder", "train_encoder", "write_profiles"),
    *("choose_popularity", "rank_profiles", "rank_history_text"),
}
BASELINES = {"try_baseline", "fit_baseline"}
"""These rules use a GPU if their model is one of RecBole's."""
GPU_SCRIPTS = ("embed_items", "train_decoder", "train_encoder", "write_profiles", "rank_texts")
LOCAL = {"compare", "slice_metrics", "list_metrics", "report_tuning", "plot", "study", "show_profiles"}
METHODS = "langptune-0,langptune,pop,ease,sasrec"
STUDIES = "{history: {values: [1]}}"
RUN = ("--configfile", "config/smoke.yaml", "--config", "seeds=[0]", f"methods=[{METHODS}]", f"studies={STUDIES}")


@dataclass
class Grid:
    """A finished run: its folder, the driver's output, its jobs, and the environments of its scripts' processes."""

    repo: Path
    log: str
    jobs: list[dict[str, str]]
    seen: dict[str, set[tuple[bool, str | None]]] = field(default_factory=lambda: defaultdict(set))
    """script -> pairs of whether it ran in a job, and CUDA_VISIBLE_DEVICES"""
    offline: set[str | None] = field(default_factory=set)
    """HF_HUB_OFFLINE of all scripts"""

    def look(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            script = next((Path(word) for word in words[:4] if word.startswith(f"{self.repo}/scripts/")), None)
            if script:
                try:
                    environment = process.environ()
                except psutil.Error:
                    continue
                self.seen[script.stem].add(("SLURM_JOB_ID" in environment, environment.get("CUDA_VISIBLE_DEVICES")))
                self.offline.add(environment.get("HF_HUB_OFFLINE"))

    def rules(self, kind: str) -> set[str]:
        """The rules that the driver started as ``rule`` (a job) or as ``localrule``."""
        return set(re.findall(rf"^ *{kind} (\w+):", self.log, re.M))

    def rules_of(self, job: dict[str, str]) -> set[str]:
        """The rules of a job, from the comment that the executor gives it; a group has several."""
        words = job["Comment"].removeprefix("rule_").split("_wildcards_")[0]
        known = self.rules("rule") | self.rules("localrule")
        return {rule for rule in known if re.search(rf"(^|_){rule}(_|$)", words)}


TRAINED = {"langptune", "langptune-cl", "history-cl"}
"""Methods that use a trained decoder or encoder."""


def tables(folder: Path) -> set[str]:
    """Paths of all final tables in a results folder, relative to it."""
    patterns = ("*/comparison/table*", "*/comparison/comparisons.csv", "*/studies/*.csv")
    files = [file for pattern in patterns for file in folder.glob(pattern) if not file.name.endswith(".manifest.json")]
    return {str(file.relative_to(folder)) for file in files}


def rows(folder: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """The rows of the long table, by method, models and metric."""
    with (folder / "ml-100k-small" / "comparison" / "table_long.csv").open(newline="") as file:
        return {(row["method"], row["models"], row["metric"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def grid(cluster, tmp_path_factory, real_models) -> Grid:
    repo = copy_of_repo(tmp_path_factory.mktemp("grid"), real_models)
    log = cluster.folder / "grid.log"
    out = Grid(repo, "", [])
    driver = start_driver(cluster, repo, log, *RUN)
    while driver.poll() is None:
        out.look()
        time.sleep(1)
    out.log = log.read_text()
    assert driver.returncode == 0, out.log[-8000:]
    submitted = len(re.findall(r"submitted with SLURM jobid", out.log))

    def recorded() -> bool:  # the accounting records the end of a job a little later
        out.jobs = [job for job in cluster.accounting() if job["WorkDir"] == str(repo)]
        return len(out.jobs) == submitted and not {job["State"] for job in out.jobs} & {"PENDING", "RUNNING"}

    cluster.wait_for(recorded)
    return out


@pytest.fixture(scope="module")
def local(smoke_run, tmp_path_factory) -> Path:
    """The results of the same run on this machine: those of ``smoke_run``, compared without its second seed."""
    repo = copy_of_run(smoke_run, tmp_path_factory.mktemp("local") / "repo")
    planned = jobs_of(snakemake(*RUN, "-n", cwd=repo).stdout)
    assert set(planned) <= {*LOCAL, *AFTER_ALL}, planned
    done = snakemake(*RUN, cwd=repo)
    assert done.returncode == 0, done.stdout[-5000:]
    return repo / "results" / "smoke"


def test_tables_are_those_of_a_local_run(grid, local):
    found, expected = tables(grid.repo / "results" / "smoke"), tables(local)
    assert len(expected) >= 8 and found == expected
    theirs, ours = rows(grid.repo / "results" / "smoke"), rows(local)
    assert theirs.keys() == ours.keys()
    others = {key: row for key, row in ours.items() if key[0] not in TRAINED}
    assert {key[0] for key in others} == set(METHODS.split(",")) - TRAINED
    assert {key: theirs[key] for key in others} == others
    # A training in bfloat16 may differ by rounding between two processes: kernels also depend on memory alignment.
    for key in ours.keys() - others.keys():
        for column in ("mean", "low", "high"):
            assert float(theirs[key][column]) == pytest.approx(float(ours[key][column]), rel=0.02, abs=0.01), key


def test_every_job_succeeded_at_once(grid):
    assert {job["State"] for job in grid.jobs} == {"COMPLETED"}
    assert {job["Account"] for job in grid.jobs} == {"lab"}


def test_jobs_with_models_had_a_gpu_each_and_others_none(grid):
    assert grid.rules("rule") >= ON_GPU
    for job in grid.jobs:
        rules = grid.rules_of(job)
        assert rules, job
        recbole = re.search("_wildcards_.*_(ease|sasrec)_", job["Comment"]) is not None
        on_gpu = bool(rules & ON_GPU) or bool(rules & BASELINES and recbole)
        assert ("gres/gpu=1" in job["AllocTRES"].split(","), job["Partition"]) == (on_gpu, "gpu" if on_gpu else "cpu")
    assert grid.offline == {"1"}, "no job asks the hub"
    for script in GPU_SCRIPTS:
        assert grid.seen[script] and grid.seen[script] <= {(True, "0"), (True, "1")}, (script, grid.seen)


def test_tables_and_figures_were_made_where_the_driver_runs(grid):
    local = grid.rules("localrule")
    assert local >= LOCAL and not local & grid.rules("rule")
    assert not any(grid.rules_of(job) & local for job in grid.jobs)
    for script in ("compare", "plot"):
        assert grid.seen[script] == {(False, None)}, (script, grid.seen)
