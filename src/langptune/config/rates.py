"""Entries of ``config/rates.yaml``: speeds that a plan uses if none was measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from langptune.config.base import Strict, by_size

Speeds = dict[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]]


class Rate(Strict):
    """Speed of one script by the size of its model. It is stated, not measured; see ``scripts/plan.py``."""

    unit: str = Field(description="unit of the speeds; must be the unit that the plan counts for the script")
    cpu: Speeds = Field(
        {}, description="largest size in billions of weights -> units per second and core; empty: unknown"
    )
    gpu: Speeds = Field(
        {}, description="largest size in billions of weights -> units per second and GPU; empty: unknown"
    )
    start: Speeds = Field(
        {}, description="largest size in billions of weights -> seconds to start and load the model; empty: 0"
    )
    source: str = Field(description="origin of the numbers")

    def at(self, device: Literal["cpu", "gpu"], weights: int) -> float | None:
        """Units per second of a core or GPU for a model of ``weights`` weights; None if it is not stated."""
        return by_size(getattr(self, device), weights)

    def seconds_to_start(self, weights: int) -> float:
        """Seconds before each job starts its work."""
        return by_size(self.start, weights) or 0.0


class Rates(RootModel[dict[str, Rate]]):
    """Script (its name without ``.py``) -> speed; ``other`` applies to every script without an entry."""
