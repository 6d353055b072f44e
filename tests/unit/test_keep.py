"""Copying files for git from a folder of results that may belong to another user (scripts/keep.py)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.errors import UserError
from tests.conftest import ROOT

CONFIG = ROOT / "config" / "smoke.yaml"
RESULTS, TO = Path("results/smoke/ml-100k-small"), Path("results/reference/smoke")
RUN = RESULTS / "random/tiny/seed0"
TABLES = {"table_csv_out": f"{RESULTS}/comparison/table.csv", "sessions_in": f"{RESULTS}/data/sessions.parquet"}
FIGURES = {"figures_out": [f"{RESULTS}/comparison/means.png"], "items_in": "elsewhere/items.parquet", "phases": []}


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """The script, set up for a temporary repository with one finished run."""
    spec = importlib.util.spec_from_file_location("keep", ROOT / "scripts" / "keep.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "keep", module)  # pydantic looks up annotations there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path / "repo")
    (tmp_path / "repo").mkdir()
    monkeypatch.chdir(tmp_path / "repo")
    for folder in (RUN, RESULTS / "comparison"):
        (tmp_path / "repo" / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "repo" / RUN / "metrics.parquet").write_text("numbers")
    (tmp_path / "repo" / RESULTS / "comparison" / "means.png").write_text("a figure")
    (tmp_path / "repo" / RUN / "metrics.parquet.manifest.json").write_text(json.dumps({"notes": {"items": 3}}))
    return module


def manifests(repo: Path, run: dict | None = None, tables: dict | None = None, figures: dict | None = None) -> None:
    entry = {"method": "random", "models": "tiny", "seed": 0, "title": "T", "group": "baselines", "trials": 0}
    entry |= {"metrics_path": f"{RUN}/metrics.parquet", **(run or {})}
    for name, notes in (("table.csv", TABLES | (tables or {})), ("means.png", FIGURES | (figures or {}))):
        text = json.dumps({"spec": {"runs": [entry], **notes}})
        (repo / RESULTS / "comparison" / f"{name}.manifest.json").write_text(text)


def run(module) -> None:
    workflow = load(read_yaml(CONFIG), ROOT, str(CONFIG))
    module.keep(RESULTS, CONFIG, TO, workflow)


def refused(module, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(module)
    assert "\n" not in str(error.value)


def test_what_is_finished_is_copied(keep, tmp_path):
    manifests(tmp_path / "repo")
    measures = tmp_path / "repo" / RESULTS / "interpretability"
    measures.mkdir()
    for name in ("table.csv", "frontier.png", "frontier.pdf"):
        (measures / name).write_text(name)
    refused(keep, "not carried out")  # there is no compare.py in this repository
    found = sorted(path.name for path in (tmp_path / "repo" / TO / "interpretability").iterdir())
    assert found == ["frontier.png", "table.csv"], "figures are kept as PNG"
    copied = tmp_path / "repo" / TO / "random/tiny/seed0/metrics.parquet"
    assert copied.read_text() == "numbers"
    assert json.loads((tmp_path / "repo" / TO / "compare.json").read_text())["sessions_in"] is None


@pytest.mark.parametrize("kind", ["link", "folder that is a link", "pipe"])
def test_no_file_of_this_user_is_kept_by_way_of_a_link(keep, tmp_path, kind):
    """Otherwise a key in a private file would be added to git and published."""
    repo, secret = tmp_path / "repo", tmp_path / "private"
    secret.mkdir(mode=0o700)
    (secret / "metrics.parquet").write_text("hunter2")
    (repo / RUN / "metrics.parquet").unlink()
    if kind == "link":
        (repo / RUN / "metrics.parquet").symlink_to(secret / "metrics.parquet")
    elif kind == "pipe":
        os.mkfifo(repo / RUN / "metrics.parquet")
    else:
        (repo / RESULTS / "away").symlink_to(secret)
    manifests(repo, {"metrics_path": f"{RESULTS}/away/metrics.parquet"} if kind.startswith("folder") else {})
    refused(keep, "not kept: it is not a plain file, or a link is in its path")
    assert not any("hunter2" in file.read_text() for file in (repo / "results/reference").rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "places",
    [
        {"run": {"weight_path": f"{RESULTS}/../../../../outside.json"}},
        {"run": {"weight_path": f"{RESULTS}/x/../../../reference/other.json"}},
        {"run": {"metrics_path": "/etc/metrics.parquet"}},
        {"run": {"metrics_path": "results/other/metrics.parquet"}},
        {"tables": {"table_csv_out": "src/langptune/errors.py"}},
        {"figures": {"figures_out": [f"{RESULTS}/comparison/means.png", "../outside.png"]}},
        {"figures": {"phases": [{"key": "k", "path": "../outside/curve.jsonl", "title": "t"}]}},
        {"figures": {"table_in": "/etc/passwd"}},
    ],
)
def test_specs_of_others_name_nothing_outside_their_results(keep, tmp_path, places):
    """Files are read from these paths, written to their counterparts in the kept folder, and passed to two scripts."""
    (tmp_path / "outside.json").write_text("{}")
    manifests(tmp_path / "repo", **places)
    refused(keep, r"spec: '.*' lies outside results/smoke/ml-100k-small")
    assert not (tmp_path / "repo" / TO).exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "null",
        "[" * 100_000,
        '{"spec": 3}',
        '{"spec": {"runs": []}}',
        '{"spec": {"runs": [{"method": "random"}]}}',
        '{"spec": {"runs": {}, "phases": [[]]}}',
        '{"spec": {"runs": [], "figures": NaN}}',
    ],
)
def test_invalid_manifests_are_one_line(keep, tmp_path, text):
    manifests(tmp_path / "repo")
    (tmp_path / "repo" / RESULTS / "comparison" / "table.csv.manifest.json").write_text(text)
    refused(keep, r"table\.csv\.manifest\.json")


def test_methods_of_another_config_are_one_line(keep, tmp_path):
    manifests(tmp_path / "repo", {"method": "acme"})
    refused(keep, "method 'acme' is not one of this config")


def test_a_file_too_large_for_git_is_not_kept(keep, tmp_path):
    with (tmp_path / "repo" / RUN / "metrics.parquet").open("wb") as file:
        file.truncate(keep.LARGEST + 1)
    manifests(tmp_path / "repo")
    refused(keep, "more than 100,000,000 bytes")


def test_only_locks_of_what_was_made_here_go(keep):
    """TO may contain other locks, such as the lock of a run."""
    spec = {"table_csv_out": f"{TO}/table.csv", "figures_out": [f"{TO}/means.png"], "items_in": "x", "runs": []}
    assert sorted(keep.outputs(spec)) == [f"{TO}/means.png", f"{TO}/table.csv"]


def test_figures_of_an_older_version_are_one_line(keep, tmp_path):
    manifests(tmp_path / "repo", figures={"figures_out": []})
    refused(keep, r"comparison/means\.png: drawn by an older version; draw it again")
