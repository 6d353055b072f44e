"""The needs of a job, independent of the cluster; each script's ``needs`` returns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langptune.config.models import DecoderEntry, ModelEntry


@dataclass(frozen=True)
class Needs:
    """The needs of the first attempt of a job.

    memory: MB of one process, without its model. minutes: time, without what depends on the model. threads: CPU
    threads; the config sets them, because they affect rounding. gpus: GPUs of one process. model: the largest model
    that it loads. per_million: further MB per million weights. per_billion: further minutes per billion weights.
    per_sessions: further MB per MB of the prepared sessions that it reads (``sessions_in``, as the file is on disk;
    histories overlap, so that it compresses well). launch: file of ``config/accelerate`` that starts it in several
    processes.
    """

    memory: float
    minutes: float
    threads: int = 1
    gpus: int = 0
    model: ModelEntry | None = None
    per_million: float = 0
    per_billion: float = 0
    per_sessions: float = 80
    launch: str | None = None


def scoring(model: ModelEntry, threads: int) -> Needs:
    """The needs of a job that scores short texts with a model, without generating any."""
    return Needs(memory=3000, minutes=30, threads=threads, gpus=1, model=model, per_million=3, per_billion=60)


def embedding(decoder: DecoderEntry) -> Needs:
    """The needs of a job that embeds texts with a decoder."""
    return Needs(memory=2000, minutes=20, model=decoder, per_million=6, per_billion=100, gpus=1)
