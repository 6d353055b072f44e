"""The samples of sessions that methods are trained, selected and compared on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from langptune.config.base import Strict

Size = Annotated[int, Field(ge=1)] | None


class Sample(Strict):
    """Which sessions are used, a fixed draw per split: the same for every method and seed.

    ``train`` and ``val`` bound what methods with phases see: ``val`` all of them, ``train`` the recipes with
    ``sessions: sample``, such as CL on profiles. RecBole baselines are trained and selected on all sessions of these
    splits.
    """

    test: Size = Field(None, description="test sessions that the methods are compared on; null takes all")
    train: Size = Field(None, description="train sessions for recipes with `sessions: sample`; null takes all")
    val: Size = Field(None, description="validation sessions for phases; null takes all")
    seed: int = 0
