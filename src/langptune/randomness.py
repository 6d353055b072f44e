"""All random streams of the library. No other module creates a generator, which a test of the source checks.

There are three families, which cannot share a stream by accident:

- **Training** (``stream``, ``stream_seed``): a stream is identified by (seed, phase, purpose) and further parts (a
  step, a session). The phase is the trained model and its iteration (``Phase.stream``): the second iteration has other
  noise than the first, while two methods that share a phase share its streams.
- **Profiles for a dataset** (``profile_seed``): identified by seed and draw, session and sample.
- **All other draws** (``numbered``): samples of sessions, resampling, controls. Their numbers are constants in the code
  and do not change, so that published tables are reproducible.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _digest(parts: tuple[int | str, ...], size: int) -> int:
    # JSON is unambiguous: (1, "2"), ("12",) and (1, 2) have different texts.
    text = json.dumps([part if isinstance(part, str) else int(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")


def stream(seed: int, phase: str, purpose: str, *more: int | str) -> np.random.Generator:
    """The generator of one purpose in one training phase of one run; a function of its arguments only."""
    return np.random.default_rng(_digest((seed, phase, purpose, *more), 16))


def stream_seed(seed: int, phase: str, purpose: str, *more: int | str) -> int:
    """The seed of a stream for torch: an integer of 63 bits."""
    return _digest((seed, phase, purpose, *more), 8) >> 1


def numbered(seed: int, *numbers: int) -> np.random.Generator:
    """The generator of a draw outside training; numbers distinguish several draws of one seed."""
    return np.random.default_rng([seed, *numbers])


def profile_seed(seed: int | str, session: int, sample: int) -> int:
    """The 63-bit seed of one profile of a draw.

    Args:
        seed: the run's seed; ``"{seed}/{number}"`` of a numbered draw.
    """
    digest = hashlib.blake2b(f"{seed}/{session}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def torch_stream(seed: int, device: torch.device) -> torch.Generator:
    """A torch generator from a seed of this module."""
    import torch

    return torch.Generator(device).manual_seed(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's global generators, which only libraries use, so that their draws are reproducible."""
    import torch

    torch.manual_seed(seed)
