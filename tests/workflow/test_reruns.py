"""`snakemake --profile slurm -n`, which needs no cluster, lists exactly the expected jobs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import AFTER_ALL, AFTER_RANKS, copy_of_repo, copy_of_run, jobs_of, snakemake

pytestmark = [pytest.mark.workflow, pytest.mark.models]
DATA = Path("results/smoke/ml-100k-small")


def dry(repo: Path, *args: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "-n", *args]
    env = {key: value for key, value in os.environ.items() if key != "LANGPTUNE_CLUSTER"}
    done = subprocess.run(command, cwd=repo, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def planned(repo: Path, *args: str) -> dict[str, int]:
    return jobs_of(dry(repo, "--configfile", "config/smoke.yaml", *args))


@pytest.fixture(scope="module")
def repo(smoke_run, tmp_path_factory) -> Path:
    """A copy of the finished run. These tests move parts of it away, and kill jobs in it."""
    return copy_of_run(smoke_run, tmp_path_factory.mktemp("reruns") / "repo")


@pytest.fixture
def without(repo):
    """A function that moves folders of results away until the end of the test."""
    moved: list[tuple[Path, Path]] = []

    def away(pattern: str) -> None:
        for found in sorted((repo / DATA).glob(pattern)):
            aside = repo / "aside" / str(len(moved))
            aside.parent.mkdir(exist_ok=True)
            found.rename(aside)
            moved.append((found, aside))

    yield away
    for found, aside in moved:
        aside.rename(found)
    shutil.rmtree(repo / "aside")


def test_fresh_clone_without_a_cluster(tmp_path):
    """The paper's grid can be planned without SLURM, models or data."""
    repo = copy_of_repo(tmp_path / "repo", tmp_path / "nothing")
    output = dry(repo)
    jobs = jobs_of(output)
    assert sum(jobs.values()) > 2000 and jobs["train_encoder"] > 100 and jobs["prefetch_model"] == 3
    assert "results/paper/movies-tv" in output


def test_requests_follow_the_model(tmp_path):
    """GPUs, memory and runtime follow the model's size. The shipped cluster.yaml sets no partition or account."""
    output = dry(copy_of_repo(tmp_path / "repo", tmp_path / "nothing"), "langptune")
    blocks = [block for block in re.split(r"^ *rule ", output, flags=re.M) if block.startswith("train_encoder:")]
    assert all(" gpu=1," in block for block in blocks)
    asked = {
        model: {
            tuple(int(re.search(rf"\b{key}=(\d+)", block)[1]) for key in ("runtime", "mem_mb"))
            for block in blocks
            if f"models={model}" in block
        }
        for model in ("gemma-2b-it", "llama-3-8b-instruct")
    }
    (small,), (large,) = asked["gemma-2b-it"], asked["llama-3-8b-instruct"]
    assert large > small and large[1] > 3 * (small[1] - 6000)
    assert "slurm_partition" not in output and "slurm_account" not in output


def test_a_finished_run_has_nothing_to_do(repo):
    assert planned(repo) == {}


def test_a_rule_by_name(repo):
    """`--forcerun RULE` reruns the rule's jobs and all jobs that depend on them."""
    assert planned(repo, "--forcerun", "fit_baseline", "--", "all") == {
        "fit_baseline": 7,
        "evaluate": 7,
        "compare": 1,
        "slice_metrics": 1,
        "list_metrics": 1,
        "report_tuning": 1,
        "plot": 7,  # all figures but that of the training, which reads none of their outputs
        **AFTER_ALL,
    }


def test_a_survey_made_again_is_the_same_survey(smoke_run, tmp_path):
    """Its random salt is kept, because people may be answering the survey when the rule runs again."""
    repo = copy_of_run(smoke_run, tmp_path / "repo")
    # The training is too short to change a word, but a survey needs profiles that differ.
    for path in (repo / "results/smoke/ml-100k-small/phases").glob("*/*/cl+rlso-*/profiles/test.parquet"):
        pl.read_parquet(path).with_columns(pl.col("profile") + " And more.").write_parquet(path)
    asked = ["--configfile", "config/smoke.yaml", "--", "survey"]
    made = []
    for force in ([], ["--forcerun", "make_survey"]):
        done = snakemake(*force, *asked, cwd=repo)
        assert done.returncode == 0, done.stdout[-3000:]
        names = ("questionnaire.html", "codebook.json", "codebook.md")
        made.append({path: path.read_bytes() for name in names for path in (repo / DATA).rglob(f"survey/{name}")})
    assert jobs_of(done.stdout)["make_survey"] == len(made[0]) / 3 > 0
    assert made[0] == made[1]


def test_one_file(repo):
    """A single job can be requested by the file that it writes."""
    file = str(DATA / "sasrec/SASRec/seed1/ranks.parquet")
    assert planned(repo, "--forcerun", file, "--", file) == {"fit_baseline": 1}


def test_one_seed_deleted(repo, without):
    """Results of one seed are recomputed; results that seeds share are kept."""
    without("*/*/seed1")
    without("phases/*/seed1")
    assert planned(repo) == {
        "train_decoder": 2,  # on histories, and on profiles
        "embed_phase_items": 2,
        "choose_popularity": 1,  # for the decoder on profiles: the other's weight is set, the untrained one has no seed
        "train_encoder": 1,
        "write_profiles": 2,  # two shards
        "gather_profiles": 1,
        "rank_profiles": 3,  # of two methods, and of a control with shuffled profiles
        "rank_history_text": 1,
        "fit_baseline": 2,  # SASRec and random
        "evaluate": 6,
        "compare": 1,
        "slice_metrics": 1,
        "list_metrics": 1,
        "report_tuning": 1,
        "plot": 8,
        **AFTER_ALL,
    }


def test_one_key_of_a_recipe(repo):
    """Another learning rate of RLSO reruns its phases, their profiles and ranks, but no training of a decoder."""
    config = (repo / "config/smoke.yaml").read_text()
    assert "rlso: {" in config
    (repo / "config/other.yaml").write_text(config.replace("rlso: {", "rlso: {learning_rate: 0.001, "))
    assert jobs_of(dry(repo, "--configfile", "config/other.yaml")) == {
        "train_encoder": 2,
        "write_profiles": 4,
        "gather_profiles": 2,
        "rank_profiles": 2,
        "evaluate": 2,
        "show_profiles": 1,
        "compare": 1,
        "slice_metrics": 1,
        "list_metrics": 1,
        "report_tuning": 1,
        "plot": 7,
        **AFTER_ALL,
    }


def test_what_a_kill_left_half_done(repo):
    """Only the job that was killed with its driver is incomplete and runs again (`rerun-incomplete` of the profile)."""
    file = DATA / "history/minilm-l6/seed0/ranks.parquet"
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "1", "--configfile", "config/smoke.yaml"]
    killed = subprocess.Popen(
        [*command, "--forcerun", str(file), "--", str(file)],
        cwd=repo,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    lock = repo / file.with_name(".ranks.parquet.lock")
    before = lock.stat().st_mtime_ns
    while lock.stat().st_mtime_ns == before:  # until the job itself runs
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    # The process of the job is in the driver's group, and so gone too.
    assert planned(repo) == {"rank_history_text": 1, "evaluate": 1, **AFTER_RANKS}
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert planned(repo) == {}


def test_nothing_heavy_is_imported_by_the_driver(tmp_path):
    """It loads neither torch nor a module that imports it, because it runs on a login node for days."""
    repo = copy_of_repo(tmp_path / "repo", tmp_path / "nothing")
    command = [sys.executable, "-X", "importtime", "-m", "snakemake", "--profile", "slurm", "-n", "-q", "all"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "langptune.slurm" in loaded
    assert not loaded & {"torch", "transformers", "accelerate", "recbole", "sklearn", "datasets"}
