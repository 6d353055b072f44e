"""What a stage needs, whatever the cluster; ``needs`` of each script says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langptune.config.models import DecoderEntry, ModelEntry


@dataclass(frozen=True)
class Needs:
    """What the first attempt of a job needs.

    memory: MB of one process, without a model. minutes: likewise. threads: CPU threads; a number of the config, because
    it takes part in rounding. gpus: of one process. model: the largest model that it loads. per_million, per_billion:
    MB and minutes more for so many weights. launch: file of ``config/accelerate`` that starts it in several processes.
    """

    memory: float
    minutes: float
    threads: int = 1
    gpus: int = 0
    model: ModelEntry | None = None
    per_million: float = 0
    per_billion: float = 0
    launch: str | None = None


def embedding(decoder: DecoderEntry) -> Needs:
    """What a job needs whose decoder embeds texts."""
    return Needs(memory=2000, minutes=20, model=decoder, per_million=6, per_billion=100, gpus=1)
