"""Started programs import nothing from their working directory, get no secrets, and accept no other account."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from langptune import allowed, processes, slurm
from tests.conftest import ROOT
from tests.neighbour import LOOPBACK, listening, plant, stranger

SECRETS = {
    "OPENAI_API_KEY": "s3cret-openai",
    "OPENAI_ORG_ID": "s3cret-organisation",
    "AWS_SECRET_ACCESS_KEY": "s3cret-aws",
    "HF_TOKEN": "s3cret-hub",
    "PGPASSWORD": "s3cret-database",
    "MYSQL_PWD": "s3cret-mysql",
    "SSH_AUTH_SOCK": "/s3cret",
    "GITHUB_TOKEN": "s3cret-git",
    "MY_GATEWAY": "s3cret-of-an-allowed-endpoint",
}
KEPT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "NCCL_DEBUG": "INFO", "MONKEY": "x", "KEYBOARD": "y"}


@pytest.fixture
def secrets(monkeypatch):
    """An environment that contains keys."""
    for name, value in {**SECRETS, **KEPT}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(allowed.VARIABLE, "https://gateway.example=MY_GATEWAY")


def test_no_secret_is_handed_on_but_those_that_are_needed(secrets, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "beside", "/somewhere", ""]))
    environment = processes.environment()
    assert not SECRETS.keys() & environment.keys() and environment.items() >= KEPT.items()
    assert environment["PATH"] == os.environ["PATH"] and environment["PYTHONSAFEPATH"] == "1"
    # An empty or relative entry means the working directory, even with the safe path.
    assert environment["PYTHONPATH"] == os.pathsep.join([str(ROOT / "src"), "/somewhere"])
    assert processes.environment(["HF_TOKEN"]).keys() & SECRETS.keys() == {"HF_TOKEN"}


STARTS = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp"},
    "pty": {"spawn"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
    "multiprocessing": {"Process", "Pool", "get_context"},
}


def starting(text: str) -> list[str]:
    """The calls in a source that start another program."""
    out = []
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = getattr(node.func.value, "id", ""), node.func.attr
        if name in STARTS.get(owner, ()) or (owner == "os" and name.startswith(("exec", "spawn"))):
            out.append(f"{owner}.{name}")
    return out


def test_one_module_starts_programs():
    files = [file for folder in ("src", "scripts") for file in (ROOT / folder).rglob("*.py")]
    found = {file.stem: calls for file in files if (calls := starting(file.read_text(encoding="utf-8")))}
    assert found == {"processes": ["subprocess.run", "subprocess.Popen", "os.execvpe"]}
    for file in files:  # not under any other name
        assert "from subprocess" not in file.read_text(encoding="utf-8"), file
    makefile = (ROOT / "Makefile").read_text()
    assert "RUN := $(BIN)/python -P\n" in makefile
    left = [line for line in makefile.splitlines() if "$(BIN)/python -m" in line]
    assert all("-m pip" in line or "-m pytest" in line for line in left), left
    assert starting("os.execv(a, b)\nsubprocess.run(a)") == ["os.execv", "subprocess.run"]


def test_programs_and_libraries_are_not_looked_for_in_the_working_directory(tmp_path, monkeypatch):
    """`PATH=$PATH:` and `LD_LIBRARY_PATH=/x:$LD_LIBRARY_PATH` have an empty entry: the working directory."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho planted\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f":.:{tmp_path.name}:/usr/bin:/bin:")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/x:")
    environment = processes.environment()
    assert environment["PATH"] == "/usr/bin:/bin" and environment["LD_LIBRARY_PATH"] == "/opt/x"
    assert subprocess.run(["scontrol"], capture_output=True).stdout == b"planted\n", (
        "what happens where nobody sees to it"
    )
    monkeypatch.setenv("PATH", ":/nowhere")
    with pytest.raises(FileNotFoundError):
        processes.run(["scontrol"], capture_output=True)


def test_python_is_started_with_the_safe_path(tmp_path, monkeypatch, secrets):
    """Start as a module and as code, with a PYTHONPATH entry that means the working directory; and start children."""
    folder, marker = plant(tmp_path / "data", tmp_path / "imported"), tmp_path / "imported"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(ROOT / "src")]))
    code = "import json, subprocess, sys; print(subprocess.check_output([sys.executable, '-c', 'import json']))"
    done = processes.run(processes.python("-m", "langptune.config.document"), cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    done = processes.run(processes.python("-c", code), cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not marker.exists(), marker.read_text()
    subprocess.run([sys.executable, "-c", "import json"], cwd=folder)
    assert marker.exists(), "what is planted here is imported where nobody sees to it"


def test_a_driver_that_restarts_itself_imports_nothing_from_its_folder(tmp_path, monkeypatch):
    folder, marker, lines = plant(tmp_path / "run", tmp_path / "imported"), tmp_path / "imported", []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["snakemake", "--version"])
    monkeypatch.setattr(slurm, "wait_for_orphans", lambda *_: True)
    monkeypatch.setattr(slurm.processes, "become", lambda *args: lines.append(args) or sys.exit())
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with pytest.raises(SystemExit):
        slurm.guard(folder, print)
    (command, env), *_ = lines
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().startswith("9."), done.stderr
    assert not marker.exists(), marker.read_text()


STAGE = """
import json, os, sys
from pathlib import Path
from langptune import stage

class Spec(stage.StageSpec):
    '''Writes its environment.'''
    needs: list[str]
    environment_out: str

    def secrets(self):
        return tuple(self.needs)

def work(spec, record, log):
    Path(spec.environment_out).write_text(json.dumps(dict(os.environ)))

if __name__ == "__main__":
    stage.run(Spec, work, ROOT + "/scripts/draw_sample.py")  # a manifest names a script of the repository
"""


@pytest.mark.parametrize("needs", [[], ["MY_GATEWAY"]])
def test_a_job_knows_the_secrets_that_it_needs(tmp_path, secrets, needs):
    script, out = tmp_path / "s.py", tmp_path / "environment.json"
    script.write_text(f"ROOT = {str(ROOT)!r}\n{STAGE}")
    spec = json.dumps({"needs": needs, "environment_out": str(out)})
    done = subprocess.run([sys.executable, str(script), "--spec", spec], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = json.loads(out.read_text())
    assert environment.keys() & SECRETS.keys() == set(needs) and environment["PYTHONSAFEPATH"] == "1"


CONNECT = """
for act in (lambda: os.listdir(sys.argv[1]), lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1] + "/socket")):
    try:
        act()
        print("in")
    except PermissionError:
        print("refused")
"""


@pytest.mark.models
def test_a_model_server_is_this_accounts_alone(real_models, tmp_path, secrets, monkeypatch):
    """It imports nothing from the models' folder, has no secrets, opens no port, and other accounts cannot connect."""
    from langptune.config.models import ModelSource
    from langptune.endpoint.answers import Request
    from langptune.endpoint.client import Client
    from langptune.endpoint.serve import served

    models, marker = plant(tmp_path / "models", tmp_path / "imported"), tmp_path / "imported"
    shutil.copytree(real_models / "smollm2-135m", models / "smollm2-135m", copy_function=os.link)
    plant(models / "smollm2-135m", marker)
    monkeypatch.chdir(models)
    long = tmp_path / ("x" * 100)  # too long for the path of a socket
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(ROOT / "src")]))
    with served(models / "smollm2-135m", tmp_path / "log", 1, "float32") as address:
        model = ModelSource(
            endpoint="http://127.0.0.1/v1", model="smollm2-135m", input_price=0, output_price=0, timeout=600
        )
        (answer,) = Client(model, tmp_path / "answers", socket=address).ask([Request((("user", "Say yes."),), 2)])
        assert answer.text and not answer.fault
        # Tests that run before this one in the same process may share a server that is still up.
        (server,) = (one for one in psutil.Process().children() if address in one.cmdline())
        assert not marker.exists(), marker.read_text()
        assert not SECRETS.keys() & server.environ().keys() and Path(server.cwd()) != models
        assert listening({server.pid}) == []
        private = Path(address).parent
        assert private.stat().st_mode & 0o777 == 0o700 and private.stat().st_uid == os.geteuid()
        if os.geteuid() == 0:
            done = stranger(CONNECT, str(private))
            assert done.stdout.split() == ["refused", "refused"], done.stdout + done.stderr
    assert not private.exists()


TRAINS = """
import json, os, sys
sys.path[:0] = [{root!r}]
from pathlib import Path
import torch, torch.distributed as dist
torch.set_num_threads(1)
from tests import planted as p
from tests.neighbour import listening

out = Path(sys.argv[1])
trainer = p.decoder_trainer(out / "run", p.contrastive(batches=2, select="last"), model=p.tiny_decoder())
trainer.run()
store = os.environ["LANGPTUNE_STORE"]
recorded = {{
    "world": dist.get_world_size(),
    "listening": listening({{os.getpid(), os.getppid()}}),
    "environment": dict(os.environ),
    "modes": [oct(Path(store).parent.stat().st_mode), Path(store).exists()],
    "path": sys.path,
    "cwd": os.getcwd(),
}}
(out / f"recorded-{{os.environ['RANK']}}.json").write_text(json.dumps(recorded))
dist.barrier()
"""


def test_a_training_in_two_processes_is_this_accounts_alone(tmp_path, secrets):
    """The launcher's processes do not import planted modules, have no secrets, and listen only on this machine."""
    folder, marker = plant(tmp_path / "data", tmp_path / "imported"), tmp_path / "imported"
    (tmp_path / "own").mkdir()
    script = tmp_path / "own" / "s.py"
    script.write_text(TRAINS.format(root=str(ROOT)))
    command = [sys.executable, str(ROOT / "scripts" / "launch.py"), "--config-file"]
    command += [str(ROOT / "config" / "accelerate" / "cpu-2.yaml"), str(script), str(tmp_path)]
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not marker.exists(), marker.read_text()
    for rank in (0, 1):
        recorded = json.loads((tmp_path / f"recorded-{rank}.json").read_text())
        assert recorded["world"] == 2 and recorded["cwd"] == str(folder) and str(folder) not in recorded["path"]
        assert recorded["listening"] and set(recorded["listening"]) <= LOOPBACK, recorded["listening"]
        assert not SECRETS.keys() & recorded["environment"].keys()
        assert recorded["modes"] == [oct(0o40700), True]


def test_a_listening_socket_is_seen():
    with socket.socket() as everywhere, socket.socket() as here:
        everywhere.bind(("", 0))
        here.bind(("127.0.0.1", 0))
        everywhere.listen()
        here.listen()
        assert set(listening({os.getpid()})) >= {"00000000", "0100007F"}
