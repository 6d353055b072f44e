"""One environment: the lock, the conda files, the container recipe, pyproject and the Makefile agree."""

from __future__ import annotations

import re
import tomllib

import yaml

from langptune.baselines.engine.recbole_catalogue import VERSION
from tests.conftest import ROOT

LOCK = dict(
    line.split("==")
    for name in ("lock.txt", "lock-nodeps.txt", "lock-dev.txt", "lock-dev-nodeps.txt")
    for line in (ROOT / "envs" / name).read_text().splitlines()
    if "==" in line
)

JOBS = yaml.safe_load((ROOT / "envs/jobs.yaml").read_text())


def pins(name: str) -> list[str]:
    return [line for line in (ROOT / "envs" / name).read_text().splitlines() if not line.startswith("#")]


def test_every_pin_is_exact_and_unique():
    names = []
    for file in sorted((ROOT / "envs").glob("lock*.txt")):
        for line in file.read_text().splitlines():
            if not line.startswith("#"):
                assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), f"{file.name}: {line}"
                names.append(line.split("==")[0].lower().replace("_", "-"))
    assert len(names) == len(set(names))


def test_torch_and_python_agree_everywhere():
    torch, recipe = LOCK["torch"], (ROOT / "envs/Containerfile").read_text()
    for text in (recipe, (ROOT / "Makefile").read_text(), (ROOT / "pyproject.toml").read_text()):
        assert re.findall(r"torch==([\d.]+)", text) == [torch]
    assert "python:3.11-" in recipe and "python3.11" in (ROOT / "Makefile").read_text()
    assert "python=3.11" in yaml.safe_load((ROOT / "envs/conda.yaml").read_text())["dependencies"]
    for lock in ("lock.txt", "lock-nodeps.txt"):
        assert f"envs/{lock}" in recipe and f"envs/{lock}" in (ROOT / "Makefile").read_text()


def test_direct_needs_are_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {name.lower().replace("_", "-") for name in LOCK}
    for need in project["dependencies"]:
        assert re.split(r"[=>\[]", need)[0].lower().replace("_", "-") in locked, need


def test_recbole_version_is_the_one_that_the_fixes_were_written_for():
    assert LOCK["recbole"] == VERSION


def test_conda_installs_what_is_locked():
    """`make lock` copies the locks into these files."""
    (pip,) = [need["pip"] for need in JOBS["dependencies"] if isinstance(need, dict)]
    assert pip == pins("lock.txt") and "python=3.11" in JOBS["dependencies"] and JOBS["channels"][-1] == "nodefaults"
    script = (ROOT / "envs/jobs.post-deploy.sh").read_text()
    (line,) = re.findall(r"^python -m pip install --no-deps (.*)$", script, re.M)
    assert line.split() == pins("lock-nodeps.txt") and script.startswith("#!/usr/bin/env bash\n")


def test_versions_and_licence_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert project["version"] == cited["version"] == released
    assert project["license"] == cited["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert (
        "Apache License\n                           Version 2.0, January 2004" in text and len(text.splitlines()) == 202
    )
    (paper,) = cited["references"]
    assert cited["cff-version"] == "1.2.0" and cited["authors"] and cited["title"] and cited["message"]
    assert [author["family-names"] for author in paper["authors"]] == ["Gao", "Zhou", "Dai", "Joachims"]
    assert paper["doi"] == "10.1145/3746252.3761369" and "arXiv:2410.18870" in str(paper["identifiers"])


def test_the_catalogue_finds_what_it_reads():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert not usage["mandatory-flags"]["flags"] and usage["report"] is True
    for name in ("workflow/Snakefile", "config/README.md", "LICENSE"):
        assert (ROOT / name).is_file(), name
