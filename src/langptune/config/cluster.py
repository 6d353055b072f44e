"""``slurm/cluster.yaml``: accounts, partitions and GPU types of a SLURM cluster, and requests of jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from langptune.config.base import Strict, by_size

Sized = str | dict[Annotated[float, Field(gt=0, strict=False)], str]
"""One value, or values by model size: largest size in billions of weights -> value."""
Kind = Literal["cpu", "gpu"]

DRIVER_MB = 500
"""Memory of the two Snakemake processes that the executor plugin starts inside each job (measured: up to 355 MB)."""


class Kinds(Strict):
    """One setting for CPU jobs and for GPU jobs."""

    cpu: Sized | None = Field(None, description="value for jobs without a GPU; null: not requested")
    gpu: Sized | None = Field(None, description="value for jobs with a GPU; null: not requested")


class Gpus(Strict):
    """How GPUs are requested."""

    request: Literal["gpu", "gres", "none"] = Field(
        "gpu", description="gpu: sbatch --gpus; gres: sbatch --gres, for older clusters; none: models run on CPUs"
    )
    type: Sized | None = Field(None, description="the cluster's name of a GPU type, as in --gpus=a100:1")


class Limits(Strict):
    """Upper limits of requests. Requests grow with each attempt, up to these limits."""

    hours: Annotated[float, Field(gt=0, strict=False)] | None = Field(
        None, description="time limit of the longest partition; null: unlimited"
    )
    memory_mb: Annotated[int, Field(gt=0)] | None = Field(
        None, description="memory of the largest node; null: unlimited"
    )


class Cluster(Strict):
    """A cluster. Null values are not requested; the cluster's default or a flag applies (docs/cluster.md)."""

    account: str | None = Field(None, description="sbatch --account")
    partition: Kinds = Field(Kinds(), description="sbatch --partition")
    qos: Kinds = Field(Kinds(), description="sbatch --qos")
    constraint: Kinds = Field(Kinds(), description="sbatch --constraint, node features")
    gpus: Gpus = Field(Gpus(), description="how GPUs are requested")
    cpus_per_gpu: Annotated[int, Field(ge=1)] = Field(4, description="CPUs per GPU, for data and tokenizers")
    warn_seconds: Annotated[int, Field(ge=0)] = Field(
        120,
        description="a job gets SIGTERM this long before its time limit, and writes a checkpoint; 0: at the time limit",
    )
    extra: str | None = Field(None, description="further options of sbatch, as one string")
    time_factor: Annotated[float, Field(gt=0, strict=False)] = Field(
        1.0, description="factor of all requested runtimes; above 1 for slow nodes"
    )
    memory_factor: Annotated[float, Field(gt=0, strict=False)] = Field(1.0, description="factor of all memory requests")
    limits: Limits = Field(Limits(), description="upper limits of requests")


@dataclass(frozen=True)
class Demand:
    """What one job needs, independent of the cluster.

    memory: MB, for its own processes. minutes: for its first attempt. weights: number of weights of its largest model.
    gpus: total over ``machines`` nodes; 0: a CPU job.
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
"""Resources, other than memory, that ``resources`` may set."""


def sized(value: Sized | None, weights: int) -> str | None:
    """The value for a model of ``weights`` weights; that of the largest size if the model is larger than every size."""
    if not isinstance(value, dict):
        return value
    fitting = by_size(value, weights)
    return value[max(value)] if fitting is None else fitting


def resources(cluster: Cluster, demand: Demand, attempt: int) -> dict[str, Any]:
    """Resources of one job for the executor plugin: ``mem_mb`` and any of ``KEYS``.

    Each further attempt adds half of the first attempt's memory and all of its runtime, up to the
    cluster's limits: a job that exceeded its memory or its time limit is not stopped by the same value again.
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
            # --gres counts per node; --gpus is a total that SLURM may divide unevenly among nodes.
            each = demand.gpus // demand.machines
            out["gres"] = f"gpu:{model}:{each}" if model else f"gpu:{each}"
        else:
            out |= {"gpu": demand.gpus, "gpu_model": model}
    if demand.machines > 1:
        # `mpi`: the plugin leaves srun to the job's own command (langptune.launch). `tasks_per_gpu`: without it, the
        # plugin would read `tasks` as tasks per GPU.
        out |= {"nodes": demand.machines, "tasks": demand.machines, "tasks_per_gpu": 0, "mpi": "srun"}
    return {key: value for key, value in out.items() if value is not None}
