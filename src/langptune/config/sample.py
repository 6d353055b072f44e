"""The sample of sessions that methods are compared on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from langptune.config.base import Strict


class Sample(Strict):
    """Which test sessions the methods are compared on. A fixed draw: the same for every method and seed."""

    test: Annotated[int, Field(ge=1)] | None = Field(None, description="test sessions to draw; null takes all")
    seed: int = 0
