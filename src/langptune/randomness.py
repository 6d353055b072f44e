"""Every random stream of the library. No other module makes a generator: a test reads the source and says so.

Three families, none of which shares a stream with another one by accident:

- **Training** (``stream``, ``stream_seed``): a stream is named by (seed, phase, purpose) and whatever else tells it
  apart (a step, a session). The phase is what a chain trains and how often it has done so (``Phase.stream``): the
  second iteration sees other noise than the first one, while two methods that share a phase share its streams.
- **Profiles that are written for a data set** (``profile_seed``): named by seed and draw, session and sample.
- **All other draws** (``numbered``): samples of sessions, resampling, controls. Their numbers are fixed in the code of
  each, and stay, so that published tables can be made again.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _digest(parts: tuple[int | str, ...], size: int) -> int:
    # JSON keeps parts apart: (1, "2") and ("12",) and (1, 2) have different texts.
    told = json.dumps([part if isinstance(part, str) else int(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=size).digest(), "big")


def stream(seed: int, phase: str, purpose: str, *more: int | str) -> np.random.Generator:
    """The generator of one purpose in one training phase of one run; a function of its arguments alone."""
    return np.random.default_rng(_digest((seed, phase, purpose, *more), 16))


def stream_seed(seed: int, phase: str, purpose: str, *more: int | str) -> int:
    """The same name as a seed for torch: an integer of 63 bits."""
    return _digest((seed, phase, purpose, *more), 8) >> 1


def numbered(seed: int, *numbers: int) -> np.random.Generator:
    """The generator of a draw outside training, told apart by numbers where one seed serves several draws."""
    return np.random.default_rng([seed, *numbers])


def profile_seed(seed: int | str, session: int, sample: int) -> int:
    """A 63-bit seed that belongs to one profile of a draw.

    Args:
        seed: the run's seed; ``"{seed}/{number}"`` of a numbered draw.
    """
    digest = hashlib.blake2b(f"{seed}/{session}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def torch_stream(seed: int, device: torch.device) -> torch.Generator:
    """A torch generator that starts from a seed of this module."""
    import torch

    return torch.Generator(device).manual_seed(seed)


def seed_torch(seed: int) -> None:
    """Set the state of torch's own generators, which nothing of ours draws from: what a library draws is repeatable."""
    import torch

    torch.manual_seed(seed)
