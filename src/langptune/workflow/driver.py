"""How Snakemake runs jobs: the start of each shell line, environments, and retries."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langptune.errors import UserError
from langptune.processes import places
from langptune.stage import refused

IMAGE = "LANGPTUNE_IMAGE"
"""Environment variable with the container image, where it is not that of the checkout."""


def prepare_environment() -> None:
    """Set the variables that all jobs of this run inherit.

    ``places`` keeps jobs, and a Snakemake that runs in a job's allocation, from importing modules of the working
    directory. ``LANGPTUNE_RUN`` identifies the run on all machines: a job that the user must correct is tried only once
    per run (stage.py).
    """
    os.environ.update(places())
    os.environ.setdefault("LANGPTUNE_RUN", uuid.uuid4().hex)


def shell_prefix(root: Path, deployed: bool) -> str:
    """The start of each job's shell line, as Snakemake formats it.

    Jobs get the paths of scripts and interpreter from the environment and not from params, so that a moved checkout
    does not invalidate results. The library is that of this checkout, even if the environment was made for another one.

    Args:
        deployed: jobs run in containers or conda environments, which have their own interpreter.
    """
    parts = {
        "LANGPTUNE": shlex.quote(str(root)),
        "PYTHONPATH": shlex.quote(str(root / "src")),
        "PYTHONSAFEPATH": "1",
    }
    line = f"export {' '.join(f'{key}={value}' for key, value in parts.items())}; "
    if not deployed:  # the interpreter that runs Snakemake has the locked environment
        line += f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
    # Jobs may run without network: only the prefetch rules may use the hub, and only if the user allows it.
    line += 'export LANGPTUNE_HUB_OFFLINE="${HF_HUB_OFFLINE:-0}" HF_HUB_OFFLINE=1; '
    # Snakemake formats the prefix, so braces in a path must be doubled.
    return line.replace("{", "{{").replace("}", "}}")


def environments(root: Path, deployed: bool, in_containers: bool) -> tuple[str | None, str | None]:
    """The conda environment and the container image of jobs; Snakemake ignores them without ``--sdm``.

    None instead of a path with braces, which Snakemake would take for wildcards.

    Raises:
        UserError: such a path with ``--sdm``, or containers without their image.
    """
    image = os.environ.get(IMAGE, str(root / "envs" / "langptune.sif"))
    named = []
    for path in (str(root / "envs" / "jobs.yaml"), image):
        braces = not {"{", "}"}.isdisjoint(path)
        if braces and deployed:
            raise UserError(f"--sdm: {path}: Snakemake takes braces for wildcards; move the checkout to a path without")
        named.append(None if braces else path)
    if in_containers and "://" not in image and not Path(image).is_file():
        raise UserError(f"{image}: no such image; build it (docs/ecosystem.md), or `export {IMAGE}=file`")
    return named[0], named[1]


def restart_times(remote: bool, inform: Callable[[str], None]) -> property:
    """``Job.restart_times`` of Snakemake: the number of times that a failed job is started again.

    It is 0 where the user must correct something first. Snakemake reads this property after a job has failed, and
    does not use the exit status.

    Args:
        remote: whether this Snakemake runs in a job's own allocation. There it does not retry: the driver does, with
            more memory and time.
        inform: takes a line for the user.
    """

    def times_of(job: Any) -> int:
        times = job.rule.restart_times
        if not times or remote:
            return times
        name = f"{job.rule.name} (job {job.jobid}), attempt {job.attempt} of {times + 1}"
        if any(refused(file) for file in job.output):
            inform(f"{name}: ended with status 2, for its user to correct: it is not tried again")
            return 0
        if job.attempt <= times:
            inform(f"{name}: crashed or was stopped: it is tried again")
        return times

    return property(times_of)
