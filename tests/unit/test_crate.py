"""An RO-Crate of results is complete, and the validator of its profile accepts it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
import rocrate
from requests.adapters import HTTPAdapter
from requests_cache import CachedSession
from rocrate_validator import services
from rocrate_validator.models import ValidationSettings
from urllib3 import HTTPResponse

from langptune.provenance import file_hash
from tests.conftest import ROOT

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


class Shipped(HTTPAdapter):
    """Answers without a network: with the context in the package rocrate, a later version with the same terms."""

    def send(self, request, **_):
        text = (Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld").read_bytes()
        headers = {"Content-Type": "application/ld+json"}
        answer = HTTPResponse(io.BytesIO(text), headers=headers, status=200, preload_content=False)
        return self.build_response(request, answer)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "http"
    with CachedSession(str(path), backend="sqlite") as session:
        session.mount(CONTEXT, Shipped())
        assert session.get(CONTEXT).status_code == 200
    return path


def crate(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "scripts/crate.py", "--folder", str(folder), *args]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


@pytest.fixture
def results(tmp_path) -> Path:
    """Real results: the kept results of the demo."""
    shutil.copytree(ROOT / "results/reference/ml-100k-demo", tmp_path / "demo")
    return tmp_path / "demo"


def entities(folder: Path) -> dict[str, dict]:
    metadata = json.loads((folder / "ro-crate-metadata.json").read_text(encoding="utf-8"))
    return {entity["@id"]: entity for entity in metadata["@graph"]}


def issues(folder: Path, cache: Path) -> list[str]:
    settings = ValidationSettings(
        rocrate_uri=str(folder), offline=True, cache_path=cache, profile_identifier="process-run-crate"
    )
    return [issue.message for issue in services.validate(settings).get_issues()]


def test_it_is_valid_and_whole(results, cache):
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    (results / ".checkpoints").mkdir()
    (results / ".checkpoints/state").write_text("left over")
    done = crate(results)
    assert done.returncode == 0, done.stderr
    assert issues(results, cache) == []
    found = entities(results)
    assert {path: path.read_bytes() for path in before} == before
    files = {path.relative_to(results).as_posix(): path for path in before}
    assert {unquote(part["@id"]) for part in found["./"]["hasPart"]} == set(files)
    for name, path in files.items():
        entity = found[quote(name)]
        assert (entity["sha256"], entity["contentSize"]) == (file_hash(path), str(path.stat().st_size))
    # The action of the table has its script, the metrics as inputs, and the times from its manifest.
    (job,) = [
        one for one in found.values() if one["@type"] == "CreateAction" and {"@id": "table.csv"} in _all(one["result"])
    ]
    manifest = json.loads((results / "table.csv.manifest.json").read_text())
    assert job["startTime"].startswith(manifest["started"].rstrip("Z"))
    assert found[job["instrument"]["@id"]]["name"] == "scripts/compare.py"
    read = {one["@id"] for one in job["object"]}
    assert any(name.endswith("metrics.parquet") for name in read) and read <= set(found)
    again = (results / "ro-crate-metadata.json").read_bytes()
    assert crate(results).returncode == 0 and (results / "ro-crate-metadata.json").read_bytes() == again


def _all(value: object) -> list:
    return value if isinstance(value, list) else [value]


def test_the_validator_sees_what_is_wrong(results, cache):
    assert crate(results, "--licence", "https://spdx.org/licenses/CC-BY-4.0").returncode == 0
    assert entities(results)["./"]["license"] == {"@id": "https://spdx.org/licenses/CC-BY-4.0"}
    (results / "table.csv").unlink()
    assert any("table.csv" in message for message in issues(results, cache))


def test_a_folder_without_results_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "gone", "no such folder"), (tmp_path / "empty", "no output with a manifest")):
        done = crate(folder)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    (tmp_path / "empty/a.csv").write_text("a\n")
    (tmp_path / "empty/a.csv.manifest.json").write_text("{}")
    done = crate(tmp_path / "empty")
    assert done.returncode == 2 and "a.csv.manifest.json: not a job's manifest" in done.stderr, done.stderr
