"""The launcher of several processes: its requests to SLURM, what it refuses, and its exit status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from langptune import launch
from langptune.errors import EXIT_AGAIN, UserError
from langptune.launch import Shape, shape
from tests.conftest import ROOT

FILES = sorted((ROOT / "config" / "accelerate").glob("*.yaml"))
TWO = ROOT / "config" / "accelerate" / "cpu-2.yaml"
TWO_NODES = ROOT / "config" / "accelerate" / "cpu-2-nodes.yaml"


def written(folder: Path, **keys) -> Path:
    file = folder / "some.yaml"
    file.write_text(yaml.safe_dump({"num_machines": 2, "num_processes": 8, "distributed_type": "MULTI_GPU", **keys}))
    return file


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_has_a_shape_and_names_no_host(file):
    assert shape(file).per_machine >= 1
    assert not {"main_process_ip", "main_process_port"} & set(yaml.safe_load(file.read_text()))


def test_shape(tmp_path):
    assert shape(TWO) == Shape(1, 2, True) and shape(TWO_NODES) == Shape(2, 2, True)
    wanted = shape(written(tmp_path))
    assert wanted == Shape(2, 8, False) and wanted.per_machine == 4


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"num_processes": 7}, "key 'num_processes': 7 does not divide over 2 machines"),
        ({"num_processes": None}, "key 'num_processes': give a whole number, at least 1 (found None)"),
        ({"num_machines": "2"}, "key 'num_machines': give a whole number, at least 1 (found '2')"),
        ({"num_machines": 0}, "key 'num_machines': give a whole number"),
        ({"deepspeed_config": {"zero_stage": 3}}, "key 'zero_stage': 3 shards the weights and was never tested"),
        ({"distributed_type": "FSDP"}, "key 'fsdp_version': only 2 is supported"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "key 'fsdp_version': only 2 is supported"),
    ],
)
def test_shapes_that_cannot_be(tmp_path, keys, message):
    with pytest.raises(UserError) as error:
        shape(written(tmp_path, **keys))
    assert message in str(error.value) and "some.yaml" in str(error.value)


def answers(**known):
    """Simulated SLURM commands, which answer from a table by their name and last argument."""
    return lambda command: known[command[0] + "_" + command[-1].replace("-", "").replace("[", "").replace("]", "")]


def test_nodes_are_asked_for_as_the_steps_of_the_executor_do_not_know_them():
    nodes = launch.nodes("7", answers(**{"squeue_format=%N": "n[1-2]\n", "scontrol_n12": "n1\nn2\n"}))
    assert nodes == ["n1", "n2"]
    with pytest.raises(UserError, match="SLURM_JOB_ID 7: squeue knows no nodes"):
        launch.nodes("7", answers(**{"squeue_format=%N": "\n"}))


def test_a_node_is_reached_by_name_or_as_slurm_does(monkeypatch):
    def resolve(name, port):
        if name != "known":
            raise socket.gaierror("no such name")

    monkeypatch.setattr(launch.socket, "getaddrinfo", resolve)
    ask = answers(scontrol_n1="NodeName=n1 Arch=x NodeAddr=10.0.0.1 NodeHostName=h\n", scontrol_n2="NodeName=n2\n")
    assert [launch.address(node, ask) for node in ("known", "n1", "n2")] == ["known", "10.0.0.1", "n2"]


def test_jobs_look_at_different_ports_and_pass_over_taken_ones():
    ports = {launch.pick_port(f"job {number}") for number in range(20)}
    assert len(ports) > 15 and all(port in launch.PORTS for port in ports)
    free = launch.pick_port("job")
    with socket.socket() as taken:
        taken.bind(("", free))
        assert launch.pick_port("job") != free


@pytest.mark.parametrize("env", [{"SLURM_GPUS_ON_NODE": "2"}, {"CUDA_VISIBLE_DEVICES": "0,1"}])
def test_one_process_per_gpu(tmp_path, env):
    file = written(tmp_path)
    with pytest.raises(UserError) as error:
        launch.check_gpus(file, shape(file), {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", **env})
    message = str(error.value)
    assert "some.yaml: key 'num_processes': 8 on 2 machines is 4 a node" in message
    assert "SLURM gave node n1 2 GPUs; set it to 4, or ask for 4 GPUs a node" in message
    with pytest.raises(UserError, match="0 GPUs; use a launch file with use_cpu, or ask for 4 GPUs a node"):
        launch.check_gpus(file, shape(file), {"SLURM_JOB_ID": "7"})
    launch.check_gpus(file, Shape(2, 4, False), {"SLURM_JOB_ID": "7", **env})
    launch.check_gpus(file, Shape(2, 8, True), {"SLURM_JOB_ID": "7", **env})
    launch.check_gpus(file, Shape(2, 8, False), env)  # these GPUs are not assigned by SLURM


def test_arguments_of_one_machine_and_of_several(tmp_path):
    file = written(tmp_path, distributed_type="DEEPSPEED")
    found = launch.arguments(file, shape(file), 1, "n1:2345", ["s.py", "--log", "x"])
    assert found[-3:] == ["s.py", "--log", "x"]
    assert {"--main_process_ip=n1", "--main_process_port=2345", "--machine_rank=1", "--rdzv_backend=static"} < set(
        found
    )
    assert {"--num_machines=2", "--num_processes=8", "--deepspeed_multinode_launcher=standard"} < set(found)
    alone = launch.arguments(TWO, shape(TWO), 0, None, ["s.py"])
    assert {"--main_process_port=0", "--multi_gpu", "--rdzv_backend=alone"} < set(alone)
    assert not [argument for argument in alone if argument.startswith("--main_process_ip")]


def test_a_step_that_fails_on_one_node_ends_on_all():
    command = launch.srun("7", Shape(2, 8, False), ["x"])
    assert command[-1] == "x" and command[0] == "srun" and "--overlap" not in command
    assert {"--jobid=7", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} < set(command)
    assert {"--overlap", "--gpus-per-node=4"} < set(launch.srun("7", Shape(2, 8, False), ["x"], within=True))


@pytest.mark.parametrize(
    "codes, rank, stopped, expected",
    [
        ([75, 75], 0, True, EXIT_AGAIN),
        ([-15, 75], 0, True, EXIT_AGAIN),
        ([75], 1, True, 0),  # the first machine decides
        ([-15, -15], 0, True, EXIT_AGAIN),
        ([-15], 1, True, 0),
        ([-15], 0, False, 143),
        ([2, -15], 0, False, 2),
        ([-9, 1], 1, False, 137),
        ([], 0, False, 1),
    ],
)
def test_status(codes, rank, stopped, expected):
    assert launch.status(codes, rank, stopped) == expected


def test_several_machines_need_an_allocation_of_as_many(tmp_path, monkeypatch):
    for key in ("SLURM_JOB_ID", "SLURM_JOBID"):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(UserError, match="num_machines': 2 machines need a SLURM allocation"):
        launch.start(TWO_NODES, None, ["x.py"])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(launch, "nodes", lambda job, ask: ["n1"])
    with pytest.raises(UserError, match=r"job 7 has 1 nodes \(n1\); ask for 2 nodes, or set num_machines to 1"):
        launch.start(TWO_NODES, None, ["x.py"])


def test_the_step_starts_this_program_on_each_node(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setattr(launch, "nodes", lambda job, ask: ["n1", "n2"])
    monkeypatch.setattr(launch, "address", lambda node, ask: "10.0.0.1")
    started = []
    monkeypatch.setattr(os, "execvpe", lambda *args: started.extend(args))
    launch.start(TWO_NODES, None, ["x.py", "--log", "y"])
    program, command, env = started
    assert program == "srun" and command[-4:] == ["--", "x.py", "--log", "y"]
    main = next(part for part in command if part.startswith("--main="))
    assert main.startswith("--main=10.0.0.1:") and int(main.rpartition(":")[2]) in launch.PORTS
    assert env["SLURM_JOB_ID"] == "7" and env["NCCL_SOCKET_IFNAME"] == "ib0" and "SLURM_NTASKS" not in env


def started(file: Path, script: Path, *args: str, **kwargs) -> subprocess.Popen:
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "launch.py"), "--config-file", str(file), str(script), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**env, "PYTHONPATH": str(ROOT / "src")},
        **kwargs,
    )


# Each line is one write: the two processes share a stream, and print may write in parts.
TELLS = """
import os, sys
os.write(1, f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}\\n".encode())
sys.exit(2)
"""


def test_two_processes_start_and_their_status_comes_back(tmp_path):
    script = tmp_path / "s.py"
    script.write_text(TELLS)
    child = started(TWO, script)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 2, err
    # The first process to end may stop the other before it prints.
    lines = set(out.splitlines())
    assert lines and lines <= {"rank 0 of 2", "rank 1 of 2"} and "Traceback" not in err


SLOW = """
import os, signal, sys, time
from pathlib import Path
def stop(*_):
    time.sleep(3)  # a step that goes on
    Path(sys.argv[1], "stopped-" + os.environ["RANK"]).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
Path(sys.argv[1], "ready-" + os.environ["RANK"]).touch()
time.sleep(100)
"""


def test_sigterm_reaches_the_processes_and_the_status_to_run_again_comes_back(tmp_path):
    script = tmp_path / "s.py"
    script.write_text(textwrap.dedent(SLOW))
    child = started(TWO, script, str(tmp_path))
    while child.poll() is None and len(list(tmp_path.glob("ready-*"))) < 2:
        signal.sigtimedwait([], 0.1)
    child.terminate()
    err = child.communicate(timeout=60)[1]
    assert child.returncode == EXIT_AGAIN, err
    assert len(list(tmp_path.glob("stopped-*"))) == 2, "both had the time to save"
