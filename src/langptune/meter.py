"""Time and energy of inference in one job, without its start and the loading of models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

NOTE = "inference"
"""The key in a manifest's notes under which a job records what its meter measured."""


class Meter:
    """Adds up what the work inside ``running`` takes, without the work inside ``paused``.

    seconds: wall time. cpu_seconds: CPU time of all threads of this process. gpu_joules: energy of the visible GPU;
    None without a GPU, or where NVIDIA's driver does not report energy.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.gpu_joules: float | None = None

    def running(self) -> AbstractContextManager[None]:
        """Measures the work in its block. Blocks must not be nested."""
        return self._adding(1)

    def paused(self) -> AbstractContextManager[None]:
        """Leaves the work in its block, which lies in one of ``running``, out."""
        return self._adding(-1)

    @contextmanager
    def _adding(self, sign: int) -> Iterator[None]:
        wall, cpu, joules = time.perf_counter(), time.process_time(), _gpu_joules()
        try:
            yield
        finally:
            after = _gpu_joules()  # first: it waits for the GPU to end its work
            self.seconds += sign * (time.perf_counter() - wall)
            self.cpu_seconds += sign * (time.process_time() - cpu)
            if joules is not None and after is not None:
                self.gpu_joules = (self.gpu_joules or 0.0) + sign * (after - joules)

    def note(self, sessions: float, **more: Any) -> dict[str, Any]:
        """The note for a manifest; ``sessions``: the number of sessions that the measured work was for."""
        joules = None if self.gpu_joules is None else round(self.gpu_joules, 3)
        times = {"seconds": round(self.seconds, 6), "cpu_seconds": round(self.cpu_seconds, 6)}
        return {NOTE: {"sessions": sessions, **times, "gpu_joules": joules, **more}}


def _gpu_joules() -> float | None:
    """Joules that the process's GPU has used since its driver was loaded, after all work on it has ended."""
    import sys

    torch = sys.modules.get("torch")
    # Without torch, or before it has used a GPU, no work of this process is on one.
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    torch.cuda.synchronize()
    try:
        pynvml.nvmlInit()
        name = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(name)) / 1000
    except (pynvml.NVMLError, AttributeError):
        return None
