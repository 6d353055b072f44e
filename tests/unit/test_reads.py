"""Reading in folders that others may write to: pipes do not block, and invalid JSON causes no traceback."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from langptune import cost, files, plan, processes, provenance, reading, stage
from langptune.config.models import ModelSource
from langptune.endpoint.answers import Request
from langptune.endpoint.client import Client
from langptune.errors import UserError
from tests.conftest import ROOT

DEEP = "[" * 100_000
SOURCES = [file for folder in ("src", "scripts", "workflow") for file in (ROOT / folder).rglob("*.py")]
READS = {"read_text", "read_bytes"}
HERE = {"provenance.py", "doctor.py", "recbole_catalogue.py", "serve.py", "stage.py", "tiny.py", "cells.py"}
"""These modules read parts of this program and of Python, files that they wrote, the spec that a person names, and
tables, whose reader checks what they are."""


def planted(path: Path, kind: str) -> None:
    """Create what another user may put where a file is expected."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(reading.LARGEST + 1)
    else:
        path.write_text(kind)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_only_a_plain_file_of_a_bounded_size_is_read(tmp_path, kind):
    planted(tmp_path / "x", kind)
    with pytest.raises(OSError):
        reading.read_plain(tmp_path / "x")


def test_the_content_of_a_plain_file_is_read(tmp_path):
    files.write_lines(tmp_path / "x", [{"a": 1}])
    (tmp_path / "link").symlink_to("x")
    assert reading.read_plain(tmp_path / "link") == b'{"a": 1}\n' and reading.read_json(tmp_path / "x") == {"a": 1}
    with pytest.raises(OSError, match="more than 3 bytes"):
        reading.read_plain(tmp_path / "x", 3)


@pytest.mark.parametrize("text", [DEEP, "", "nul", "\udc00"])
def test_no_json_is_a_value_error(tmp_path, text):
    (tmp_path / "x").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError):
        reading.read_json(tmp_path / "x")


@pytest.mark.parametrize("name", ["json", "unusable.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "device", DEEP])
def test_a_cache_that_others_can_write_holds_no_job_up(tmp_path, name, kind):
    """Requests follow from public data and config, so a neighbour can predict the file names of future answers."""
    client = Client(ModelSource(endpoint="http://127.0.0.1:9/v1", model="m", input_price=0, output_price=0), tmp_path)
    asked = Request((("user", "x"),), 4)
    key = client.cache.key_of(asked)
    planted(tmp_path / key[:2] / f"{key}.{name}", kind)
    assert client.cache.known(asked) is None and client.estimate([asked]).requests == 1
    assert client.cache.charges(key) in ([], [(0, 0)])


@pytest.mark.parametrize("kind", ["pipe", "device", DEEP, "3", '{"run": []}'])
def test_a_planted_refusal_is_none(tmp_path, monkeypatch, kind):
    """The driver looks for a refusal after each job that failed."""
    monkeypatch.setenv("LANGPTUNE_RUN", "r")
    planted(tmp_path / ".x.refused", kind)
    assert not stage.refused(tmp_path / "x")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_an_input_is_a_file_or_a_folder(tmp_path, kind):
    planted(tmp_path / "best.json", kind)
    spec = {"trials_in": [str(tmp_path / "best.json")], "best_out": str(tmp_path / "out.json")}
    command = [sys.executable, str(ROOT / "scripts" / "select_baseline.py"), "--spec", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=processes.environment())
    assert done.returncode == 2 and "is neither a file nor a folder" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


MANIFEST = {"output": "a.parquet", "script": "x.py", "spec": {}, "notes": {}, "device": "c", "wall_seconds": 1.0}


@pytest.mark.parametrize(
    "kind",
    [
        *("pipe", "device", DEEP, "[]"),
        *(json.dumps(MANIFEST | {"output": name}) for name in ("../../x", "", "b.parquet", 3)),
        *(json.dumps(MANIFEST | odd) for odd in ({"wall_seconds": "1"}, {"device": None}, {"notes": []}, {"spec": 1})),
        json.dumps(MANIFEST).replace("1.0", "NaN"),
    ],
)
def test_a_plan_skips_invalid_manifests(tmp_path, kind):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.parquet.manifest.json").write_text(json.dumps(MANIFEST))
    planted(tmp_path / "a.parquet.manifest.json", kind)
    assert [path for path, _ in plan.manifests([tmp_path])] == [tmp_path / "b" / "a.parquet"]


@pytest.mark.parametrize("inputs", [[3], [None, []], {"x": 1}, 7])
def test_costs_skip_invalid_inputs(tmp_path, inputs):
    manifest = MANIFEST | {"inputs": inputs}
    (tmp_path / "a.parquet.manifest.json").write_text(json.dumps(manifest))
    assert cost.reached([str(tmp_path / "a.parquet")])[0] is not None


@pytest.mark.parametrize(
    "kind", ["pipe", DEEP, "[]", "{}", '{"sha256": "x", "notes": 3}', '{"sha256": 1, "notes": {}}']
)
def test_an_invalid_manifest_of_a_model_is_one_line(tmp_path, kind):
    planted(tmp_path / "m" / "manifest.json", kind)
    if kind == "pipe":  # as before, a folder without one
        provenance.input_hash(tmp_path / "m")
        return
    for read in (provenance.input_hash, lambda path: provenance.model_revisions([path])):
        with pytest.raises(UserError, match=r"manifest\.json: no manifest"):
            read(tmp_path / "m")


def test_nothing_else_reads_files_whole():
    found = []
    for file in SOURCES:
        if file.name in HERE:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS:
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not found
