"""``slurm/cluster.yaml``: what a SLURM cluster calls its accounts, partitions and GPUs, and what jobs ask of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from langptune.config.base import Strict, by_size

Sized = str | dict[Annotated[float, Field(gt=0, strict=False)], str]
"""One value, or values by size: weights in billions, at most -> value."""
Kind = Literal["cpu", "gpu"]

DRIVER_MB = 500
"""Memory of the two Snakemake processes that the executor plugin starts inside each job (measured: up to 355 MB)."""


class Kinds(Strict):
    """One setting, for jobs on CPUs and for jobs on GPUs."""

    cpu: Sized | None = Field(None, description="for jobs that need no GPU")
    gpu: Sized | None = Field(None, description="for jobs that need one")


class Gpus(Strict):
    """How GPUs are asked for."""

    request: Literal["gpu", "gres", "none"] = Field(
        "gpu", description="gpu: sbatch --gpus; gres: sbatch --gres, for older sites; none: models run on CPUs"
    )
    type: Sized | None = Field(None, description="the cluster's name of a GPU type, as in --gpus=a100:1")


class Limits(Strict):
    """The most that a job may ask for; growing with attempts stops there."""

    hours: Annotated[float, Field(gt=0, strict=False)] | None = Field(None, description="of the longest partition")
    memory_mb: Annotated[int, Field(gt=0)] | None = Field(None, description="of the largest node")


class Cluster(Strict):
    """A site. What is null is not asked for: the cluster's own default holds, or a flag (docs/cluster.md)."""

    account: str | None = Field(None, description="sbatch --account")
    partition: Kinds = Field(Kinds(), description="sbatch --partition")
    qos: Kinds = Field(Kinds(), description="sbatch --qos")
    constraint: Kinds = Field(Kinds(), description="sbatch --constraint, node features")
    gpus: Gpus = Gpus()
    cpus_per_gpu: Annotated[int, Field(ge=1)] = Field(4, description="CPUs beside each GPU, for data and tokenizers")
    warn_seconds: Annotated[int, Field(ge=0)] = Field(
        120,
        description="so long before its time is up a job gets SIGTERM, and writes a checkpoint; 0: when it is up",
    )
    extra: str | None = Field(None, description="any further options of sbatch, as one text")
    time_factor: Annotated[float, Field(gt=0, strict=False)] = Field(
        1.0, description="runtimes are multiplied by this: above 1 for slow nodes"
    )
    memory_factor: Annotated[float, Field(gt=0, strict=False)] = Field(1.0, description="the same for memory")
    limits: Limits = Limits()


@dataclass(frozen=True)
class Demand:
    """What one job needs, whatever the cluster.

    memory: MB, of its own processes. minutes: of its first attempt. weights: of its largest model.
    gpus: in all, over ``machines`` nodes; with 0 it is a job for CPUs.
    """

    memory: float
    minutes: float
    weights: int = 0
    gpus: int = 0
    machines: int = 1


KEYS = (
    "runtime",
    "slurm_account",
    "slurm_partition",
    "qos",
    "constraint",
    "slurm_extra",
    "gpu",
    "gpu_model",
    "gres",
    "cpus_per_gpu",
    "nodes",
    "tasks",
    "tasks_per_gpu",
    "mpi",
)
"""Resources beside memory that ``resources`` may give a value."""


def sized(value: Sized | None, weights: int) -> str | None:
    """The value for a model of ``weights`` weights; of the largest size where it is larger than all."""
    if not isinstance(value, dict):
        return value
    fitting = by_size(value, weights)
    return value[max(value)] if fitting is None else fitting


def resources(cluster: Cluster, demand: Demand, attempt: int) -> dict[str, Any]:
    """Resources as the executor plugin reads them, ``mem_mb`` and any of ``KEYS``.

    Memory grows by half with each attempt and runtime by its whole, up to the site's limits: a job that died of either
    does not die of it again.
    """
    memory = (demand.memory * cluster.memory_factor) * (1 + (attempt - 1) / 2) + DRIVER_MB
    minutes = demand.minutes * cluster.time_factor * attempt
    if cluster.limits.memory_mb:
        memory = min(memory, cluster.limits.memory_mb)
    if cluster.limits.hours:
        minutes = min(minutes, cluster.limits.hours * 60)
    on_gpu = demand.gpus and cluster.gpus.request != "none"
    kind: Kind = "gpu" if on_gpu else "cpu"
    options = [f"--signal=TERM@{cluster.warn_seconds}" if cluster.warn_seconds else None, cluster.extra]
    out: dict[str, Any] = {
        "mem_mb": math.ceil(memory),
        "runtime": math.ceil(minutes),
        "slurm_account": cluster.account,
        "slurm_extra": " ".join(filter(None, options)) or None,
        "slurm_partition": sized(getattr(cluster.partition, kind), demand.weights),
        "qos": sized(getattr(cluster.qos, kind), demand.weights),
        "constraint": sized(getattr(cluster.constraint, kind), demand.weights),
    }
    if on_gpu:
        model = sized(cluster.gpus.type, demand.weights)
        out["cpus_per_gpu"] = cluster.cpus_per_gpu
        if cluster.gpus.request == "gres" or demand.machines > 1:
            # Counted by node, while --gpus is a sum that need not be shared out evenly.
            each = demand.gpus // demand.machines
            out["gres"] = f"gpu:{model}:{each}" if model else f"gpu:{each}"
        else:
            out |= {"gpu": demand.gpus, "gpu_model": model}
    if demand.machines > 1:
        # `mpi`: the plugin leaves srun to the job's own command (langptune.launch). `tasks_per_gpu`: else it would take
        # `tasks` for those of each GPU.
        out |= {"nodes": demand.machines, "tasks": demand.machines, "tasks_per_gpu": 0, "mpi": "srun"}
    return {key: value for key, value in out.items() if value is not None}
