"""Entries of ``config/rates.yaml``: speeds that a plan falls back on where nothing was measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from langptune.config.base import Strict, by_size

Speeds = dict[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]]


class Rate(Strict):
    """How fast one script is, by the size of its model. Stated, not measured; see ``scripts/plan.py``."""

    unit: str = Field(description="what is counted; must be the unit that the plan counts for the script")
    cpu: Speeds = Field({}, description="weights in billions, at most -> units per second and core; none: unknown")
    gpu: Speeds = Field({}, description="the same per GPU")
    start: Speeds = Field({}, description="weights in billions, at most -> seconds to start and load; none: 0")
    source: str = Field(description="where the numbers come from")

    def at(self, device: Literal["cpu", "gpu"], weights: int) -> float | None:
        """Units per second of a core or GPU for a model of ``weights`` weights; None where nothing is stated."""
        return by_size(getattr(self, device), weights)

    def seconds_to_start(self, weights: int) -> float:
        """Seconds that each job takes before its work begins."""
        return by_size(self.start, weights) or 0.0


class Rates(RootModel[dict[str, Rate]]):
    """Script (its name without ``.py``) -> speed; ``other`` stands for every script that is not named."""
