"""The command `langptune`, and the exit status and messages of the scripts that people call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from langptune import cli
from langptune.errors import UserError
from tests.conftest import ROOT

CALL = "from langptune.cli import main; main()"


def run(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != cli.VARIABLE}
    environment |= {"PYTHONPATH": str(ROOT / "src")} | env
    return subprocess.run(
        [sys.executable, "-P", "-c", CALL, *args], cwd=cwd, env=environment, text=True, capture_output=True
    )


def test_it_is_installed_under_its_name():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"langptune": "langptune.cli:main"} and callable(cli.main)


def test_a_wheel_holds_the_command(tmp_path):
    """Build the wheel as `pip install .` does, in a separate folder."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for file in (ROOT / "src/langptune").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            (copy / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(ROOT)).write_bytes(file.read_bytes())
    subprocess.run([*command, str(tmp_path / "site"), str(copy)], check=True)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), cli.VARIABLE: str(ROOT)}
    done = subprocess.run(
        [str(tmp_path / "site/bin/langptune"), "stage", "fit_baseline", "--help"],
        cwd=tmp_path,
        env=env,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and "spec fields:" in done.stdout, done.stderr
    env[cli.VARIABLE] = str(tmp_path)
    done = subprocess.run([str(tmp_path / "site/bin/langptune"), "plan"], env=env, text=True, capture_output=True)
    assert done.returncode == 2 and "not a checkout of LangPTune" in done.stderr


def test_it_needs_a_checkout(tmp_path):
    done = run("plan", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"error: {tmp_path}: not a checkout of LangPTune; run it in one, or `export LANGPTUNE=/path/to/checkout`\n"
    )
    done = run("doctor", cwd=ROOT, LANGPTUNE=str(tmp_path / "gone"))  # LANGPTUNE precedes the current folder
    assert done.returncode == 2 and f"LANGPTUNE={tmp_path / 'gone'}: not a checkout" in done.stderr


def test_it_runs_the_scripts_of_the_checkout(tmp_path):
    done = run("show", "tables", "--config", "gone.yaml", cwd=tmp_path, LANGPTUNE=str(ROOT))
    assert done.returncode == 2 and done.stderr.startswith("error: gone.yaml"), done.stderr
    done = run("stage", "fit_baseline", "--help", cwd=ROOT)
    assert done.returncode == 0 and "spec fields:" in done.stdout, done.stderr
    done = run("stage", "fit_baselin", "--help", cwd=ROOT)
    assert done.returncode == 2 and "did you mean 'fit_baseline'" in done.stderr, done.stderr
    assert run("stage", cwd=ROOT).returncode == 2


def test_every_script_is_a_tool_or_a_stage():
    for path in (ROOT / "scripts").glob("*.py"):
        text = path.read_text()
        assert (path.stem in cli.stages(ROOT)) == bool(re.search(r"^    (stage\.)?run\(", text, re.M)), path.name
        assert (path.stem in cli.TOOLS) == ("\n    finish(main)\n" in text), path.name
    assert set(cli.TOOLS) <= {path.stem for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.parametrize("tool", ["doctor", "explore", "plan", "show", "keep"])
def test_a_tool_reports_a_user_error_in_one_line(tool, tmp_path):
    needed = {"show": ["tables"], "keep": ["--to", "kept"]}.get(tool, [])
    command = [sys.executable, f"scripts/{tool}.py", *needed, "--config", str(tmp_path / "gone.yaml")]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and re.fullmatch(r"error: \S*gone\.yaml: .*\n", done.stderr), done.stderr


def test_finish(capsys):
    def wrong() -> int:
        raise UserError("config.yaml: key 'a'")

    def interrupted() -> int:
        raise KeyboardInterrupt

    for main, status in ((lambda: 1, 1), (wrong, 2), (interrupted, 130)):
        with pytest.raises(SystemExit) as end:
            cli.finish(main)
        assert end.value.code == status
    assert capsys.readouterr().err == "error: config.yaml: key 'a'\ninterrupted\n"
