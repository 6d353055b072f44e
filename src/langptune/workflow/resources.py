"""Resources of a job for Snakemake and its executors, from the needs of its script."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from langptune.config.cluster import KEYS, Cluster, Demand
from langptune.config.cluster import resources as requests
from langptune.launch import Shape
from langptune.workflow.needs import Needs


def demand(needs: Needs, shapes: Mapping[str, Shape], sessions: float = 0) -> Demand:
    """The demand of a whole job, over all its processes.

    Args:
        shapes: launch file -> the numbers of machines and processes that it starts.
        sessions: MB of the prepared sessions that it reads.
    """
    weights = needs.model.parameters if needs.model else 0
    remote = needs.model is not None and needs.model.source.endpoint is not None
    shape = shapes[needs.launch] if needs.launch else Shape(machines=1, processes=1, cpu=False)
    return Demand(
        memory=(needs.memory + needs.per_million * weights / 1e6 + needs.per_sessions * sessions) * shape.per_machine,
        minutes=needs.minutes + needs.per_billion * weights / 1e9,
        weights=weights,
        gpus=0 if remote or shape.cpu else needs.gpus * shape.processes,
        machines=shape.machines,
    )


def resources(
    needs: Callable[[Any], Needs], shapes: Mapping[str, Shape], cluster: Cluster | None, local_gpus: bool
) -> dict[str, Callable[..., Any]]:
    """The resources of a rule, each a function of its wildcards and inputs (on a cluster also of the attempt).

    Args:
        needs: wildcards -> needs of the job.
        cluster: the site; None for a local run.
        local_gpus: for a local run: whether GPUs of this machine are assigned to jobs.
    """
    if cluster is None:
        local: dict[str, Callable[..., Any]] = {
            "mem_mb": lambda w, input: math.ceil(demand(needs(w), shapes, megabytes(input)).memory)
        }
        return local | ({"gpu": lambda w: demand(needs(w), shapes).gpus} if local_gpus else {})

    def request(key: str) -> Callable[..., Any]:
        # Only memory depends on the sessions. A shared file system is not asked for their size once for each resource.
        sessions = megabytes if key == "mem_mb" else lambda input: 0.0
        return lambda w, input, attempt: requests(cluster, demand(needs(w), shapes, sessions(input)), attempt).get(key)

    return {key: request(key) for key in ("mem_mb", *KEYS)}


def megabytes(input: Any) -> float:
    """MB of the prepared sessions among a job's inputs; 0 where there are none yet.

    Snakemake computes resources again when a job's inputs are made.
    """
    path = input.get("sessions_in")
    try:
        return Path(str(path)).stat().st_size / 1e6 if path else 0.0
    except OSError:
        return 0.0


def launcher(launch: str | None) -> str:
    """The start of a training command: Python, or the launcher with a file of ``config/accelerate``."""
    if launch is None:
        return "python"
    return f'python "$LANGPTUNE/scripts/launch.py" --config-file "$LANGPTUNE"/config/accelerate/{shlex.quote(launch)}'
