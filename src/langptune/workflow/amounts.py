"""The amount of work of a job, in one unit per script; each script's ``amount`` returns it.

Work is counted at the limits of the config: every profile has its maximum length, every training runs to its last
batch. So a plan tends to overestimate. An amount that is unknown before other jobs have run is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langptune.config.identity import identity

BYTES_PER_TOKEN = 5
FLOAT32 = 4
SMALL = 1e6
"""Bytes that are assumed for a job's outputs where they are tables, figures or ranks."""


@dataclass(frozen=True)
class Work:
    """The work of one job.

    amount: in units; None where it is unknown before other jobs have run.
    model: the model on which its speed depends; empty where there is none.
    weights: number of weights of that model; 0 without one.
    disk: bytes of its outputs, where they follow from the spec.
    accelerated: whether it runs on a GPU where there is one.
    """

    unit: str
    amount: float | None
    model: str = ""
    weights: int = 0
    disk: float | None = None
    accelerated: bool = False


def one_job() -> Work:
    """The work of a script that takes seconds."""
    return Work("jobs", 1, disk=SMALL)


def scores(sessions: float | None, items: float | None) -> float | None:
    """Bytes of the scores that a ranking job keeps for a fusion."""
    return product(sessions, items, FLOAT32)


def tokens(encoder: Mapping[str, Any], count: float | None, disk: float | None) -> Work:
    """Profile tokens that an encoder (its entry in a spec) writes or trains on."""
    return Work("profile tokens", count, identity(encoder), encoder["parameters"], disk, accelerated=True)


def texts(decoder: Mapping[str, Any], count: float | None, disk: float | None = SMALL) -> Work:
    """Texts that a decoder (its entry in a spec) embeds or trains on."""
    return Work("texts", count, identity(decoder), decoder["parameters"], disk, accelerated=True)


def validations(recipe: Mapping[str, Any]) -> int:
    """The number of validations of a phase, those at its start and end included."""
    return 1 + math.ceil(recipe["batches"] / recipe["validate_every"])


def product(*factors: float | None) -> float | None:
    """The product of numbers; None where one of them is None."""
    return None if None in factors else math.prod(factors)


def total(*parts: float | None) -> float | None:
    """The sum of numbers; None where one of them is None."""
    return None if None in parts else sum(parts)
