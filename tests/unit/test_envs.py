"""One environment: the lock, the conda file, the container recipe, pyproject and the Makefile say the same."""

from __future__ import annotations

import re
import tomllib

import yaml

from langptune.baselines.recbole_catalogue import VERSION
from tests.conftest import ROOT

LOCK = dict(
    line.split("==")
    for name in ("lock.txt", "lock-nodeps.txt", "lock-dev.txt", "lock-dev-nodeps.txt")
    for line in (ROOT / "envs" / name).read_text().splitlines()
    if "==" in line
)


def test_every_pin_is_exact_and_stands_once():
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
