"""GPUs: their number, and those that a job may use if no scheduler assigns them.

A job with one process uses one GPU: a trainer that sees several would spread its batch over them, and concurrent jobs
would all take the first one. SLURM assigns GPUs to each job; elsewhere ``claim`` picks one by a lock.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO

from langptune import processes
from langptune.errors import UserError
from langptune.files import Held, hold, own_folder

COUNT = "LANGPTUNE_GPUS"
"""Environment variable: the number of GPUs of the machine, if it cannot be detected (or for a test)."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible(env: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that a process may use, each as ``CUDA_VISIBLE_DEVICES`` names it; torch is not imported.

    Raises:
        UserError: ``LANGPTUNE_GPUS`` is not a number.
    """
    there = [str(number) for number in range(_count(env.get(COUNT)))]
    listed = env.get(VISIBLE)
    if listed is None or not there:
        return there
    out = []
    for name in (part.strip() for part in listed.split(",")):
        # CUDA uses the list up to the first unknown entry. A GPU that is named twice is still one.
        if not name or name == "-1" or name in out or (name.isdecimal() and name not in there):
            break
        out.append(name)
    return out


def _count(stated: str | None) -> int:
    if stated is None:
        return _found()
    if not stated.isdecimal():
        raise UserError(f"{COUNT}: give the number of GPUs, such as 2, or unset it (found {stated!r})")
    return int(stated)


@cache
def _found() -> int:
    """GPUs of this machine or container that the installed torch can use."""
    try:
        if metadata.version("torch").endswith("+cpu"):
            return 0
    except metadata.PackageNotFoundError:
        return 0
    if devices := list(Path("/dev").glob("nvidia[0-9]*")):
        return len(devices)
    try:
        listed = processes.run(["nvidia-smi", "-L"], capture_output=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())  # parts of a GPU (MIG) are indented


_held: list[IO[str]] = []
"""Open lock files of the GPUs that this process uses; the kernel releases the locks when it ends."""


def claim(wanted: int, say: Callable[[str], None], what: str = "this job", every: float = 1.0) -> None:
    """Restrict this process and its children to ``wanted`` GPUs that no other job uses, while it lives.

    Call before torch is imported. Only visible GPUs are used, so ``CUDA_VISIBLE_DEVICES`` of the user or of SLURM
    applies. Waits while too few are free. Does nothing if one GPU is wanted on a machine without GPUs, or in a SLURM
    job that sees no more than it needs.

    Args:
        what: name of the job, for messages.
        every: seconds between two attempts.

    Raises:
        UserError: there are fewer GPUs than wanted.
    """
    there, job = visible(), os.environ.get("SLURM_JOB_ID")
    if (job and len(there) <= wanted) or (not there and wanted == 1):
        return
    if len(there) < wanted:
        raise UserError(
            f"{what}: {wanted} GPUs are needed, one per process, and {len(there)} are visible on this machine; use a "
            f"launch file with fewer processes, or look at {VISIBLE}"
        )
    # On a cluster, two jobs of a node may both see their GPU as number 0.
    folder = own_folder(Path(tempfile.gettempdir()) / f"langptune-gpus-{os.getuid()}{f'-{job}' if job else ''}")
    waiting = False
    while len(free := _locked(folder, there, wanted)) < wanted:
        if not waiting:
            say(f"waiting for {wanted} of the GPUs {', '.join(there)}: other jobs use them")
            waiting = True
        time.sleep(every)
    os.environ[VISIBLE] = ",".join(free)


def _locked(folder: Path, names: list[str], wanted: int) -> list[str]:
    """Lock and return the first ``wanted`` free GPUs; none if fewer are free."""
    taken: dict[str, IO[str]] = {}
    for name in names:
        try:
            taken[name] = hold(folder / f"{name.replace('/', '_')}.lock")
        except Held:
            continue
        if len(taken) == wanted:
            _held.extend(taken.values())
            return list(taken)
    for lock in taken.values():
        lock.close()
    return []


def refuse_several(seen: int) -> None:
    """Refuse to train in one process on several GPUs.

    Args:
        seen: GPUs that the trainer would use (``TrainingArguments.n_gpu``).

    Raises:
        UserError: there are several; transformers would multiply the batch size by their number.
    """
    if seen > 1:
        raise UserError(
            f"{VISIBLE}: one process of a training uses one GPU, and {seen} are visible; name one, or give the recipe "
            f"a launch file with num_processes: {seen}"
        )
