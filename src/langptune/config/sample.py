"""The samples of sessions on which methods are trained, selected and compared."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from langptune.config.base import Strict

Size = Annotated[int, Field(ge=1)] | None


class Sample(Strict):
    """Sizes of the samples of sessions. Each split has one fixed sample, the same for every method and seed.

    ``train`` and ``val`` limit the sessions of methods with phases: ``val`` applies to all of them, ``train`` to
    recipes with ``sessions: sample``, such as CL on profiles. Baselines are trained and selected on all sessions of
    these splits.
    """

    test: Size = Field(None, description="test sessions on which methods are compared; null: all")
    train: Size = Field(None, description="train sessions for recipes with `sessions: sample`; null: all")
    val: Size = Field(None, description="validation sessions for phases; null: all")
    seed: int = Field(0, description="seed of the samples")
