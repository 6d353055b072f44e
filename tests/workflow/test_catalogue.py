"""The workflow as others use it: through both Snakefiles, as a module, with few packages, with `--sdm`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from tests.conftest import PLAIN_PYTHON, ROOT, jobs_of

pytestmark = pytest.mark.workflow
CONFIG = {"datasets": ["ml-100k-small"], "methods": ["pop", "ease", "sasrec"], "results": "results/alone"}
OUTER = """
configfile: "outer.yaml"

rule all:
    input: "mine.txt"

module langptune:
    snakefile: {snakefile}
    config: config["benchmark"]

use rule * from langptune as langptune_*

onstart:
    langptune.onstart()

rule mine:
    input: "results/alone/ml-100k-small/comparison/table.csv"
    output: "mine.txt"
    shell: "cp {{input}} {{output}}"
"""


def run(*args: str, cwd: Path, python: str = sys.executable, **env: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "snakemake", "--nolock", "--cores", "1", *args]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, cwd=cwd, env=os.environ | env, text=True, **streams)


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return str(tmp_path / "config.yaml")


def test_both_snakefiles_run_the_same_jobs(config):
    runs = [run("-n", "-s", name, "--configfile", config, cwd=ROOT) for name in ("Snakefile", "workflow/Snakefile")]
    assert [one.returncode for one in runs] == [0, 0], runs[0].stdout[-2000:] + runs[1].stdout[-2000:]
    files = [sorted(re.findall(r"^ +output: (.*)", one.stdout, re.M)) for one in runs]
    assert files[0] == files[1] and jobs_of(runs[0].stdout)["evaluate"] == len(CONFIG["methods"])


def outer(folder: Path, snakefile: str) -> Path:
    """Another workflow, which uses this one as a module; its folder contains nothing of this repository."""
    folder.mkdir()
    (folder / "Snakefile").write_text(OUTER.format(snakefile=snakefile))
    (folder / "outer.yaml").write_text(yaml.safe_dump({"benchmark": CONFIG}))
    return folder


def test_as_a_module(tmp_path):
    folder = outer(tmp_path / "outer", repr(str(ROOT / "workflow/Snakefile")))
    done = run("-n", "--config", "mine=1", cwd=folder)  # the outer workflow's own key
    jobs = jobs_of(done.stdout)
    assert done.returncode == 0 and jobs["langptune_evaluate"] == len(CONFIG["methods"]), done.stdout[-3000:]
    assert jobs["mine"] == jobs["all"] == 1 and "langptune_all" not in jobs
    # A job finds the scripts of its checkout, and writes to the folder of the outer workflow.
    wanted = "results/alone/ml-100k-small/data/items.parquet"
    done = run("--", wanted, cwd=folder, PYTHONPATH="")
    assert done.returncode == 0 and (folder / wanted).is_file(), done.stdout[-3000:]
    assert (folder / "results/alone/benchmarks").is_dir()  # onstart's
    (folder / "outer.yaml").write_text("benchmark: {}\n")
    assert "module langptune: no config" in run("-n", cwd=folder).stdout


def test_as_a_module_from_a_host_of_repositories(tmp_path):
    """Use the module by a commit of the clone that Snakemake keeps after a first fetch, without contacting the host."""
    folder, clone = tmp_path / "outer", tmp_path / "cache/snakemake/snakemake/source-cache/snakemake-git-cache"
    subprocess.run(["git", "init", "-q", str(tmp_path / "work")], check=True)
    work = ["git", "-C", str(tmp_path / "work"), "-c", "user.name=a", "-c", "user.email=a@b"]
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, text=True, capture_output=True).stdout.splitlines():
        if not name.startswith(("tests/", "results/")) and (ROOT / name).is_file():
            (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "work" / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*work, "add", "-A"], check=True)
    subprocess.run([*work, "commit", "-qm", "all"], check=True)
    commit = subprocess.run([*work, "rev-parse", "HEAD"], check=True, text=True, capture_output=True).stdout.strip()
    target = clone / "github.com/someone/langptune"
    subprocess.run(["git", "clone", "-q", "--bare", str(tmp_path / "work"), str(target)], check=True)
    outer(folder, f'github("someone/langptune", path="workflow/Snakefile", commit="{commit}")')
    wanted = "results/alone/ml-100k-small/data/items.parquet"
    done = run("--", wanted, cwd=folder, PYTHONPATH="", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0 and (folder / wanted).is_file(), done.stdout[-3000:]
    assert (folder / ".snakemake/langptune" / commit / "scripts").is_dir()


HIDE = """
import pkgutil, sys

HIDDEN = set({names!r})
listed = pkgutil.iter_modules
pkgutil.iter_modules = lambda *args, **kwargs: (one for one in listed(*args, **kwargs) if one.name not in HIDDEN)


class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
READING = {"snakemake", "pydantic", "pyyaml", "jinja2", "numpy", "psutil"}
"""The packages that docs/ecosystem.md names, and psutil, which Snakemake itself needs."""


def hidden(tmp_path: Path, kept: set[str]) -> dict[str, str]:
    """An environment without the library's direct dependencies, except those that are kept."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = {re.split(r"[=>\[]", need)[0].lower().replace("_", "-") for need in needs} - kept
    modules = packages_distributions()
    names = [name for name, dists in modules.items() if {d.lower().replace("_", "-") for d in dists} & wanted]
    assert {"torch", "polars", "transformers"} <= set(names)
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(names=[*names, "recbole"]))
    return {"PYTHONPATH": str(tmp_path)}


def test_reading_needs_few_packages(tmp_path, config):
    env = hidden(tmp_path, READING)
    done = run("--lint", "--configfile", config, cwd=ROOT, python=PLAIN_PYTHON, **env)
    assert done.returncode == 0 and "good condition" in done.stdout, done.stdout[-3000:]
    done = run("-n", "--configfile", config, cwd=ROOT, python=PLAIN_PYTHON, **env)
    assert done.returncode == 0 and jobs_of(done.stdout)["cost"] == 1, done.stdout[-3000:]


def test_a_missing_package_is_one_line(tmp_path, config):
    env = hidden(tmp_path, READING - {"numpy"})
    done = run("--lint", "--configfile", config, cwd=ROOT, python=PLAIN_PYTHON, **env)
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "numpy is not installed: `pip install pydantic Jinja2 PyYAML numpy`" in done.stdout, done.stdout[-2000:]
    page = (ROOT / "docs/ecosystem.md").read_text()
    assert "pip install snakemake pydantic Jinja2 PyYAML numpy" in page


def test_every_job_names_an_environment(config, tmp_path):
    """The environments that `--sdm` would use. Listing them needs neither conda nor apptainer."""
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert rules.count("    conda:\n        ENVIRONMENT\n") == len(re.findall(r"^    shell:$", rules, re.M)) > 30
    done = run("-n", "--sdm", "apptainer", "--configfile", config, cwd=ROOT, LANGPTUNE_IMAGE=str(tmp_path / "no.sif"))
    assert done.returncode and "no.sif: no such image" in done.stdout and "docs/ecosystem.md" in done.stdout
