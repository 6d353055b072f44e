"""No shell runs paths and values of a YAML file; a config that has only baselines needs no model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, copy_of_repo, jobs_of, snakemake
from tests.neighbour import plant

pytestmark = pytest.mark.workflow
ODD = """x {a} {{b}} $(touch made) `touch made` 'q' "d" ; touch made; [1] %s $HOME é"""
BASELINES = {"datasets": ["ml-100k-small"], "methods": ["pop", "ease"], "results": "results/alone"}


def config(path: Path, **keys) -> Path:
    path.write_text(yaml.safe_dump({**BASELINES, **keys}))
    return path


def test_a_checkout_may_lie_anywhere(tmp_path):
    """A dry run of everything, and a real job, whose shell line begins with the path of the checkout."""
    repo = copy_of_repo(tmp_path / ODD, tmp_path / "nothing")
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "1"]
    command += ["--configfile", str(config(repo / f"config/{ODD}.yaml"))]
    done = subprocess.run([*command, "-n"], cwd=repo, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-3000:]
    jobs = jobs_of(done.stdout)
    assert (jobs["evaluate"], jobs["compare"], jobs["plot"]) == (2, 1, 7) and "embed_items" not in jobs
    wanted = "results/alone/ml-100k-small/data/items.parquet"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # the job finds its own checkout
    done = subprocess.run([*command, "--", wanted], cwd=repo, env=env, text=True, capture_output=True)
    assert done.returncode == 0 and (repo / wanted).is_file(), done.stderr[-3000:]
    assert not list(tmp_path.rglob("made"))


@pytest.mark.parametrize(
    "keys",
    [
        {"methods": ["pop", "history"], "decoders": ["minilm-l6"]},
        {"methods": ["pop"], "encoders": ["smollm2-135m"]},
    ],
)
def test_a_config_needs_only_the_models_of_its_methods(tmp_path, keys):
    done = snakemake("--configfile", str(config(tmp_path / "config.yaml", **keys)), "-n")
    assert done.returncode == 0 and jobs_of(done.stdout)["evaluate"] == len(keys["methods"]), done.stdout[-3000:]


def test_baselines_alone_have_a_plan_and_a_doctor(tmp_path):
    path = config(tmp_path / "config.yaml")
    for script, expected in (("plan", "evaluate"), ("doctor", "2 runs on 1 dataset(s), 8 validation trials")):
        command = [sys.executable, f"scripts/{script}.py", "--config", str(path)]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert expected in done.stdout and "Traceback" not in done.stderr, done.stdout + done.stderr


@pytest.fixture
def make(tmp_path):
    """A function that runs `make` in a folder with the Makefile, the scripts and this environment."""
    folder = tmp_path / "make"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / ".venv/bin/python").chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "scripts", "config", "envs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv/.ready").touch()

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **env}
        return subprocess.run(["make", *args], cwd=folder, env=environment, text=True, capture_output=True)

    return run


@pytest.mark.parametrize("door", ["argument", "environment"])
def test_make_hands_no_value_to_a_shell(make, tmp_path, door):
    """The name of the config, and the results folder that it names."""
    results = tmp_path / "r $(touch made) `touch made`'; touch made; '$(shell touch made) 'q'"
    path = config(tmp_path / "$(touch made) `touch made`; touch made 'q' \"d\".yaml", results=str(results))
    (results / "ml-100k-small/comparison").mkdir(parents=True)
    (results / "ml-100k-small/comparison/table.md").write_text("| a table |\n")
    (results / "report.html").write_text("newer than the table")
    env, args = ({}, [f"CONFIG={path}"]) if door == "argument" else ({"CONFIG": str(path)}, [])
    done = make("report", *args, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    dry = make("-n", "demo", *args, **env)
    assert dry.returncode == 0 and str(results) not in dry.stdout, dry.stdout + dry.stderr
    assert not list(tmp_path.rglob("made"))
    done = make("report", "CONFIG=config/nowhere.yaml")
    assert done.returncode == 2 and "no such config file: config/nowhere.yaml" in done.stderr


def test_a_run_imports_nothing_from_its_folder(make, tmp_path):
    """This holds for the driver that make starts, for its jobs, and for the processes that these start."""
    folder, marker = tmp_path / "make", tmp_path / "imported"
    for name in ("Snakefile", "workflow", "src", "slurm", "profiles"):
        (folder / name).symlink_to(ROOT / name)
    for place in (folder, folder / "results", folder / "results/alone/ml-100k-small/data"):
        plant(place, marker)
    path = config(tmp_path / "config.yaml")
    done = make("prefetch", f"CONFIG={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = "results/alone/ml-100k-small/data/items.parquet"
    command = [".venv/bin/python", "-P", "-m", "snakemake", "--nolock", "--cores", "1"]
    command += ["--configfile", str(path), "--", wanted]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OPENAI_API_KEY": "s3cret"}
    done = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True)
    assert done.returncode == 0 and (folder / wanted).is_file(), done.stderr[-3000:]
    assert not marker.exists(), marker.read_text()


def test_show_prints_the_tables_of_a_config(tmp_path):
    path = config(tmp_path / "config.yaml", results=str(tmp_path / "r"))
    command = [sys.executable, "scripts/show.py", "tables", "--config", str(path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "run the config first" in done.stderr
    (tmp_path / "r/ml-100k-small/comparison").mkdir(parents=True)
    (tmp_path / "r/ml-100k-small/comparison/table.md").write_text("| a table |\n")
    assert "| a table |" in subprocess.run(command, cwd=ROOT, text=True, capture_output=True).stdout


def test_a_group_writes_nowhere_that_snakemake_writes_by_itself(tmp_path):
    """Snakemake follows links when it writes benchmark files, and with umask 002 the group could plant links there."""
    repo = copy_of_repo(tmp_path / "repo", tmp_path / "nothing")
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "1"]
    command += ["--configfile", str(config(repo / "config/own.yaml")), "--"]
    wanted = "results/alone/ml-100k-small/data/items.parquet"
    done = subprocess.run([*command, wanted], cwd=repo, text=True, capture_output=True, umask=0o002)
    made = list((repo / "results/alone/benchmarks").rglob("*"))
    assert done.returncode == 0 and made, done.stderr[-3000:]
    assert not [path for path in made if path.stat().st_mode & 0o022]
