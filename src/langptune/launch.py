"""Starts a training script in several processes, on one machine or on the nodes of a SLURM allocation.

``python scripts/launch.py --config-file X.yaml script.py ...`` does what ``accelerate launch`` does with that file, and
handles what a cluster adds: node ranks, the rendezvous of the processes, separation of two jobs on a node, forwarding
SIGTERM to the training processes with enough time to stop, and returning their exit status.

With several machines, the first call finds the nodes and starts itself once per node by ``srun`` (with ``--main``);
each of those runs ``accelerate launch`` with one process per GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from langptune import gpus, processes
from langptune.config.base import read_yaml
from langptune.errors import EXIT_AGAIN, UserError

PORTS = range(20000, 32000)
"""The range of ports: below Linux's ephemeral ports, above those of common services."""
KEPT = {"SLURM_JOB_ID", "SLURM_CONF", "SLURM_CLUSTER_NAME"}
"""SLURM's variables that a nested srun keeps; the others describe tasks, memory and binding of another step."""

STORE = "LANGPTUNE_STORE"
"""Variable that names the file through which the processes of one machine find each other."""
ALONE = "alone"
"""Name of the rendezvous of a single machine, for torch."""

Ask = Callable[[list[str]], str]


class Shape(NamedTuple):
    """The resources that a file of config/accelerate requires."""

    machines: int
    processes: int
    """Number of processes on all machines together; one per GPU."""
    cpu: bool
    """Whether no GPU is used."""

    @property
    def per_machine(self) -> int:
        """Number of processes, and therefore GPUs, per machine."""
        return self.processes // self.machines


def shape(file: Path) -> Shape:
    """The machines and processes that a file for ``accelerate launch`` requires.

    Raises:
        UserError: the file does not exist, or a number in it is invalid.
    """
    settings = read_yaml(file)
    for key in ("num_machines", "num_processes"):
        value = settings.get(key, 1 if key == "num_machines" else None)
        if type(value) is not int or value < 1:
            raise UserError(f"{file}: key '{key}': give a whole number, at least 1 (found {value!r})")
        settings[key] = value
    machines, processes = settings["num_machines"], settings["num_processes"]
    if processes % machines:
        raise UserError(
            f"{file}: key 'num_processes': {processes} does not divide over {machines} machines; it counts the "
            "processes of all machines, one per GPU"
        )
    if (settings.get("deepspeed_config") or {}).get("zero_stage") == 3:
        raise UserError(
            f"{file}: key 'zero_stage': 3 shards the weights and was never tested; use fsdp.yaml, or stage 2"
        )
    if settings.get("distributed_type") == "FSDP" and (settings.get("fsdp_config") or {}).get("fsdp_version") != 2:
        raise UserError(f"{file}: key 'fsdp_version': only 2 is supported; set it to 2")
    return Shape(machines, processes, bool(settings.get("use_cpu", False)))


def nodes(job: str, ask: Ask) -> list[str]:
    """The nodes of an allocation in SLURM's order, from squeue: the executor's job steps lack most SLURM variables.

    Raises:
        UserError: SLURM does not know the job, or does not answer.
    """
    listed = ask(["squeue", "--noheader", f"--jobs={job}", "--format=%N"]).strip()
    if not listed:
        raise UserError(f"SLURM_JOB_ID {job}: squeue knows no nodes of it; run this inside its allocation")
    return ask(["scontrol", "show", "hostnames", listed]).split()


def address(node: str, ask: Ask) -> str:
    """The address of a node: its name or, if that does not resolve, SLURM's address for it."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        found = re.search(r"\bNodeAddr=(\S+)", ask(["scontrol", "show", "node", "--oneliner", node]))
        return found.group(1) if found else node


def pick_port(seed: str) -> int:
    """A free port on this machine; jobs with different seeds try different ports first.

    Raises:
        UserError: none is free.
    """
    start = int(hashlib.sha256(seed.encode()).hexdigest(), 16)
    for at in range(len(PORTS)):
        port = PORTS[(start + at) % len(PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(f"no port of {PORTS.start} to {PORTS.stop - 1} is free on {socket.gethostname()}")


def check_gpus(file: Path, wanted: Shape, env: Mapping[str, str]) -> None:
    """Check that SLURM gave this node one GPU per process.

    Raises:
        UserError: the numbers differ.
    """
    if wanted.cpu or "SLURM_JOB_ID" not in env:
        return
    visible = env.get("CUDA_VISIBLE_DEVICES")
    listed = str(len([gpu for gpu in visible.split(",") if gpu.strip()])) if visible is not None else "0"
    found = int(env.get("SLURM_GPUS_ON_NODE") or listed)
    if found != wanted.per_machine:
        node = env.get("SLURMD_NODENAME") or socket.gethostname()
        advice = f"set it to {found * wanted.machines}" if found else "use a launch file with use_cpu"
        raise UserError(
            f"{file}: key 'num_processes': {wanted.processes} on {wanted.machines} machines is {wanted.per_machine} a "
            f"node, one per GPU, but SLURM gave node {node} {found} GPUs; {advice}, or ask for {wanted.per_machine} "
            "GPUs a node"
        )


def srun(job: str, wanted: Shape, command: list[str], within: bool = False) -> list[str]:
    """The command that runs another one once per node of an allocation.

    The step takes all CPUs, memory and GPUs of the allocation on each node. If the launcher of a node fails, the others
    end too; otherwise they would wait for it until the time limit.

    Args:
        within: it is started from another step (an interactive shell), whose resources it must share. SLURM then gives
            only the requested GPUs.
    """
    machines = wanted.machines
    share = ["--overlap", *([] if wanted.cpu else [f"--gpus-per-node={wanted.per_machine}"])]
    return [
        "srun",
        f"--jobid={job}",
        f"--nodes={machines}",
        f"--ntasks={machines}",
        "--ntasks-per-node=1",
        *(share if within else []),
        "--cpu-bind=none",
        "--mpi=none",
        "--kill-on-bad-exit=1",
        "--wait=0",
        "--input=none",
        *command,
    ]


def arguments(file: Path, wanted: Shape, rank: int, main: str | None, command: list[str]) -> list[str]:
    """The arguments of ``accelerate launch`` on one machine. ``main`` is host:port; None for a single machine."""
    out = [f"--config_file={file}", f"--num_machines={wanted.machines}", f"--num_processes={wanted.processes}"]
    kind = read_yaml(file).get("distributed_type")
    if kind == "MULTI_CPU" and wanted.processes > 1:
        out.append("--multi_gpu")  # without it, accelerate expects mpirun to start the CPU processes
    if main is None:
        # Any free port: accelerate would replace our rendezvous if a given port were taken.
        out += ["--main_process_port=0", f"--rdzv_backend={ALONE}"]
    else:
        host, _, port = main.rpartition(":")
        # Static: ranks follow SLURM's order of nodes, so the main process is on the first one.
        out += [f"--main_process_ip={host}", f"--main_process_port={port}", f"--machine_rank={rank}"]
        out += ["--rdzv_backend=static", "--same_network"]
        if kind == "DEEPSPEED":
            out.append("--deepspeed_multinode_launcher=standard")
    return [*out, *command]


def status(codes: Iterable[int], rank: int, stopped: bool) -> int:
    """The exit status of one machine's launcher, from those of its failed processes.

    If one process exits with "run again" after a request to stop, so does the launcher: the others may have been killed
    while exiting. Only the first machine returns this status: if another returned it, srun would end the first one
    while it writes.
    """
    codes = list(codes)
    ended = stopped and codes and all(code == -signal.SIGTERM for code in codes)  # before training had begun
    if EXIT_AGAIN in codes or ended:
        return EXIT_AGAIN if rank == 0 else 0
    code = codes[0] if codes else 1
    return code if code >= 0 else 128 - code


@contextmanager
def private() -> Iterator[None]:
    """Give the processes of this machine a rendezvous that no other account can join, while the block runs.

    Torch's own store listens on all interfaces and accepts any client. Here the rendezvous is a file in a folder that
    only this account can enter (``join``), and the processes communicate over the loopback interface.
    """
    from torch.distributed import HashStore
    from torch.distributed.elastic.rendezvous import (
        RendezvousHandler,
        RendezvousInfo,
        RendezvousStoreInfo,
        rendezvous_handler_registry,
    )

    class Alone(RendezvousHandler):
        """The rendezvous of a single launcher: its store is in its own memory."""

        def __init__(self, name: str):
            self._name, self._store = name, HashStore()

        def get_backend(self) -> str:
            return ALONE

        def next_rendezvous(self) -> RendezvousInfo:
            return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo("127.0.0.1", pick_port(self._name)))

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            pass

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return self._name

        def shutdown(self) -> bool:
            return True

    rendezvous_handler_registry.register(ALONE, lambda params: Alone(params.run_id))
    with tempfile.TemporaryDirectory(prefix="langptune-") as folder:
        os.environ |= {STORE: f"{folder}/store", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        yield


def join(cpu: bool) -> None:
    """Join the other processes of this machine if our launcher started several; otherwise do nothing.

    Call it before accelerate initialises the process group itself.

    Args:
        cpu: the model is on the CPU.
    """
    if (file := os.environ.get(STORE)) is None:
        return
    from datetime import timedelta

    import torch.distributed as dist

    if dist.is_initialized():
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    divided = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    # The backend as in accelerate, the timeout as in transformers.
    backend = "gloo" if cpu else "cuda:nccl,cpu:gloo" if divided else "nccl"
    store = dist.FileStore(file, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=1800))


def run_here(file: Path, wanted: Shape, rank: int, main: str | None, command: list[str]) -> int:
    """Run ``accelerate launch`` in this process, and return the exit status of its processes.

    On SIGTERM, torch's agent gives its processes thirty seconds and exits with status 1. A training step may take
    longer, so SIGTERM is forwarded to the processes, which stop by themselves, and is hidden from the agent.
    """
    stopped = False

    def on_term(*_: object) -> None:
        nonlocal stopped
        stopped = True
        import psutil

        children = psutil.Process().children()
        if not children:
            sys.exit(status([EXIT_AGAIN], rank, stopped))
        for child in children:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_term)
    if wanted.cpu:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # scripts set their own number
    else:
        gpus.claim(wanted.per_machine, lambda line: print(line, file=sys.stderr, flush=True), str(file))
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = launch_command_parser().parse_args(arguments(file, wanted, rank, main, command))
    args.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"
    processes.forget()  # a training calls no endpoint
    try:
        with private() if wanted.machines == 1 else nullcontext():
            launch_command(args)
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        return status([failure.exitcode for failure in failures], rank, stopped)
    except subprocess.CalledProcessError as error:
        return status([error.returncode], rank, stopped)
    return 0


def _ask(command: list[str]) -> str:
    """The output of a SLURM command.

    Raises:
        UserError: the command is missing, or fails.
    """
    try:
        return processes.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise UserError(
            f"{command[0]}: no such command, and SLURM_JOB_ID is set; make SLURM's commands visible to the job (in a "
            "container: bind them), or use a launch file with num_machines: 1"
        ) from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"{' '.join(command)}: {error.stderr}") from None


def start(file: Path, main: str | None, command: list[str]) -> int:
    """Start a script as specified by a file of config/accelerate, and return its exit status.

    Args:
        main: host:port of the first process, if this is the launcher of one of several nodes; None for the first call.

    Raises:
        UserError: the file, the allocation and the GPUs do not agree.
    """
    wanted = shape(file)
    env = os.environ
    if main is not None:
        check_gpus(file, wanted, env)
        return run_here(file, wanted, int(env["SLURM_NODEID"]), main, command)
    settings = read_yaml(file)
    job = env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID")
    if wanted.machines == 1:
        check_gpus(file, wanted, env)
        return run_here(file, wanted, 0, None, command)
    if job is None:
        if settings.get("main_process_ip"):  # started by hand on each machine, with a file that gives its rank
            main = f"{settings['main_process_ip']}:{settings.get('main_process_port') or 29500}"
            return run_here(file, wanted, int(settings.get("machine_rank", 0)), main, command)
        raise UserError(
            f"{file}: key 'num_machines': {wanted.machines} machines need a SLURM allocation, and SLURM_JOB_ID is not "
            "set; run on a cluster, or use a launch file with num_machines: 1"
        )
    found = nodes(job, _ask)
    if len(found) != wanted.machines:
        raise UserError(
            f"{file}: key 'num_machines': {wanted.machines}, but job {job} has {len(found)} nodes "
            f"({', '.join(found)}); ask for {wanted.machines} nodes, or set num_machines to {len(found)}"
        )
    port = str(settings.get("main_process_port") or pick_port(f"{job} {socket.gethostname()} {os.getpid()}"))
    main = f"{settings.get('main_process_ip') or address(found[0], _ask)}:{port}"
    program = Path(sys.argv[0]).resolve()
    here = processes.python(program, f"--config-file={file.resolve()}", f"--main={main}", "--")
    environment = processes.environment()
    kept = {key: value for key, value in environment.items() if key in KEPT or not key.startswith(("SLURM_", "SRUN_"))}
    # Not a child: signals of the job reach srun, which forwards them to the nodes.
    try:
        processes.become(srun(job, wanted, [*here, *command], "SLURM_STEP_ID" in env), kept)
    except FileNotFoundError:
        raise UserError("srun: no such command; make SLURM's commands visible to the job") from None


def main() -> None:
    """The command line: exit with the status of the script, or with 2 after one line about what to fix."""
    parser = argparse.ArgumentParser(prog="launch.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--config-file", type=Path, required=True, help="a file of config/accelerate")
    parser.add_argument("--main", help="host:port of the first process: set by this program where it starts itself")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the script and its arguments")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("name the script to start")
    try:
        sys.exit(start(args.config_file, args.main, command))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
