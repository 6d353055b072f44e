"""Exchange between the processes of one training: a flag that any has set, the first one's values, and their nodes.

Nothing is exchanged in a training of a single process.
"""

from __future__ import annotations

import os
import socket
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process: signals may arrive in different steps, but all must stop in the same."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    shared = torch.tensor(int(flag), device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared.item())


def agreed(value: T, device: torch.device) -> T:
    """The first process's value, in every process; ``value`` itself if there is only one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=device)
    return values[0]


def placement() -> str | None:
    """The number of processes and their nodes, as a line for the log; None for a single process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    names = list(dict.fromkeys(hosts))
    return f"{len(hosts)} processes on {len(names)} node{'s' * (len(names) > 1)}: {', '.join(names)}"
