"""A folder as a registry, and the figures of a comparison, which are such a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from langptune import provenance, registry
from langptune.errors import UserError
from langptune.figures import comparison
from langptune.provenance import ROOT

ENTRY = 'CAPTION = "On {dataset}."\nREADS = ("table",)\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A registry of figures in an empty folder."""
    own = registry.Registry("langptune.figures.comparison")
    own.folder = tmp_path
    monkeypatch.setattr(comparison, "REGISTRY", own)
    return tmp_path


def test_names_are_those_of_the_files(folder):
    for name in ("__init__", "b", "a"):
        (folder / f"{name}.py").write_text(ENTRY)
    assert comparison.REGISTRY.names() == ["a", "b"]
    assert comparison.REGISTRY.module("a") == "langptune.figures.comparison.a"
    with pytest.raises(UserError, match=r"langptune\.figures\.comparison: no entry 'c'"):
        comparison.REGISTRY.module("c")


def test_constants_are_read_without_running_the_file(folder):
    (folder / "a.py").write_text(f"import nothing_of_this_name\n{ENTRY}COMPUTED = len(READS)\n")
    assert comparison.REGISTRY.constants("a") == {"CAPTION": "On {dataset}.", "READS": ("table",)}
    assert comparison.entry("a") == comparison.Entry("a", "On {dataset}.", ("table",), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("READS = ()", "CAPTION is missing"),
        ('CAPTION = "On {data}."\nREADS = ()', r"the only name in braces is \{dataset\}"),
        ('CAPTION = "{"\nREADS = ()', r"the only name in braces is \{dataset\}"),
        ('CAPTION = ""', "READS must be a literal tuple of table, gains"),
        ('CAPTION = ""\nREADS = ("tables",)', "READS must be"),
        (f'{ENTRY}ONLY_WITH = "contrast"', "ONLY_WITH 'contrast' is not one of contrasts, published"),
        ("def", "line 1: invalid syntax"),
    ],
)
def test_a_file_that_is_not_a_figure_is_named(folder, text, message):
    (folder / "odd.py").write_text(text)
    with pytest.raises(UserError, match=message) as found:
        comparison.drawn({"contrasts": True, "published": True})
    assert str(found.value).startswith(str(folder / "odd.py"))


def test_a_figure_that_the_config_does_not_ask_for_is_not_drawn(folder):
    (folder / "a.py").write_text(ENTRY)
    (folder / "b.py").write_text(f'{ENTRY}ONLY_WITH = "contrasts"')
    assert list(comparison.drawn({"contrasts": True, "published": False})) == ["a", "b"]
    assert list(comparison.drawn({"contrasts": False, "published": True})) == ["a"]


def test_a_figure_depends_on_its_own_file_and_on_no_other_figure():
    entries = comparison.drawn({"contrasts": True, "published": True})
    assert {"means", "gains", "ranks", "curves", "training", "contrasts", "published"} <= set(entries)
    script, folder = ROOT / "scripts" / "plot.py", ROOT / "src/langptune/figures/comparison"
    for name, entry in entries.items():
        files = provenance.code_files(script, loads=(entry.module,))
        assert {path.stem for path in files if path.parent == folder} == {"__init__", name}
        assert ROOT / "src/langptune/figures/style.py" in files
    hashes = {provenance.code_hash(script, loads=(entry.module,)) for entry in entries.values()}
    assert len(hashes) == len(entries)


def test_one_new_file_is_an_algorithm(tmp_path):
    """Recipes may use its name and its settings; its file is part of the code of those trainings only."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    entry = (ROOT / "src/langptune/training/algorithms/rloo.py").read_text().replace('{"clip": 0.2}', '{"bound": 0.3}')
    (tmp_path / "src/langptune/training/algorithms/mine.py").write_text(entry.replace('"clip"', '"bound"'))
    asked = """
import torch
from langptune import provenance
from langptune.config.base import read_yaml
from langptune.config.recipes import ALGORITHMS, ReinforcementRecipe
from langptune.training.algorithms import algorithm
recipe = {key: value for key, value in read_yaml(ROOT / "config/recipes.yaml")["rlso"].items() if key != "like"}
recipe = ReinforcementRecipe.model_validate({**recipe, "algorithm": "mine", "settings": {"bound": 0.5}})
ones = torch.ones(2, 1)
loss = algorithm("mine", recipe.settings).loss(ones, ones, ones.flatten(), 2)
files = [provenance.code_files(provenance.ROOT / "scripts/train_encoder.py", (), [ALGORITHMS.module(name)])
         for name in ("mine", "rebel")]
print(round(float(loss), 6), [any(path.stem == "mine" for path in found) for found in files])
"""
    asked = f"from pathlib import Path\nROOT = Path({str(ROOT)!r})\n{asked}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "-1.5 [True, False]\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def (", r"broken\.py: line 1: invalid syntax"),
        ("import nosuchpackage", r"broken\.py: No module named"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(content, message, tmp_path, monkeypatch):
    package = tmp_path / f"p{abs(hash(content))}"
    package.mkdir()
    (package / "broken.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    entries = registry.Registry(package.name)
    entries.folder = package
    with pytest.raises(UserError, match=message):
        entries.load("broken")
