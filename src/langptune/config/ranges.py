"""Ranges of values, from which validation trials are drawn."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from langptune.config.base import Strict


class Range(Strict):
    """Values of a key between two bounds, from which trials are drawn at random (`trials` of the config).

    Two whole numbers as bounds give whole numbers; other values are rounded to three significant digits.
    """

    low: int | float = Field(description="smallest value")
    high: int | float = Field(description="largest value")
    scale: Literal["linear", "log"] = Field(
        "linear", description="linear: all values are equally probable; log: all orders of magnitude are"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError("low must be less than high, and both must be numbers")
        if self.scale == "log" and self.low <= 0:
            raise ValueError("a range with scale 'log' begins above 0")
        return self

    @property
    def bounds(self) -> list[int | float]:
        """Smallest and largest value."""
        return [self.low, self.high]

    def at(self, share: float) -> int | float:
        """The value below which lies this share of the range, 0 to 1, on its scale."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = self.low, self.high + whole  # a whole number stands for all values up to the next one
        value = low * (high / low) ** share if self.scale == "log" else low + (high - low) * share
        value = math.floor(value) if whole else float(f"{value:.3g}")
        return min(max(value, self.low), self.high)
