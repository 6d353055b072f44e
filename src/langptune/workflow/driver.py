"""What Snakemake runs jobs with: the start of each shell line, environments, and which jobs it tries again."""

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
"""Variable with the container image, where it is not that of the checkout."""


def prepare_environment() -> None:
    """Set the variables that all jobs of this run inherit.

    Jobs, and Snakemake where it starts itself for them (on a cluster for all), find nothing in the working directory.
    All know the run by one name, wherever they run: what the user must correct is tried once a run (stage.py).
    """
    os.environ.update(places())
    os.environ.setdefault("LANGPTUNE_RUN", uuid.uuid4().hex)


def shell_prefix(root: Path, deployed: bool) -> str:
    """The start of each job's shell line, as Snakemake formats it.

    Jobs find scripts and interpreter by environment, not by params: the place of the checkout does not invalidate
    results. The library is that of this checkout, whichever one the environment was made for.

    Args:
        deployed: jobs run in containers or conda environments, which bring their own interpreter.
    """
    parts = {
        "LANGPTUNE": shlex.quote(str(root)),
        "PYTHONPATH": shlex.quote(str(root / "src")),
        "PYTHONSAFEPATH": "1",
    }
    line = f"export {' '.join(f'{key}={value}' for key, value in parts.items())}; "
    if not deployed:  # the interpreter that runs Snakemake has the locked environment
        line += f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
    # Jobs may run where there is no network: only the prefetch rules may ask the hub, and only if the user lets them.
    line += 'export LANGPTUNE_HUB_OFFLINE="${HF_HUB_OFFLINE:-0}" HF_HUB_OFFLINE=1; '
    # Snakemake formats the prefix: braces in a path are doubled, so that they come out as they are.
    return line.replace("{", "{{").replace("}", "}}")


def environments(root: Path, deployed: bool, in_containers: bool) -> tuple[str | None, str | None]:
    """The conda environment and the container image of jobs; without ``--sdm`` they are not looked at.

    None stands for a path with braces, which Snakemake would take for wildcards.

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
    """``Job.restart_times`` of Snakemake: how often a job that failed is started again.

    It is not at all where the user must correct something first. Snakemake asks this where a job has failed, and knows
    no exit status.

    Args:
        remote: in a job's own allocation, which has no more memory or time than the attempt that failed: there the
            driver retries, with more of both.
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
