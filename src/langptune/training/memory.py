"""Smaller batches when memory runs out, for the passes of a training and for the profiles that it generates."""

from __future__ import annotations

from collections.abc import Callable

import torch

from langptune.errors import UserError


def halved(micro: int, group: int, log: Callable[[str], None]) -> int:
    """The next smaller micro-batch, a multiple of ``group``.

    Raises:
        UserError: it cannot be smaller.
    """
    smaller = micro // 2 // group * group
    if smaller < group:
        raise UserError(
            f"out of memory with a micro-batch of {micro}, which cannot be halved; use shorter texts, a smaller model "
            "or a machine with more memory"
        )
    log(f"out of memory with a micro-batch of {micro}: repeating the step with {smaller}")
    return smaller


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )
