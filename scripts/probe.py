"""Ask an encoder for rows of a dataset that its training data may have had: titles, fields, next items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from pydantic import Field

from langptune import stage
from langptune.config.models import EncoderEntry
from langptune.data import contracts
from langptune.provenance import Record
from langptune.workflow.needs import Needs, scoring

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """An untrained encoder and a dataset in; how likely true and invented continuations of rows are, out."""

    encoder: EncoderEntry = Field(description="the encoder's registry entry")
    encoder_in: str = Field(description="its materialised folder")
    items_in: str
    sessions_in: str
    evaluation_in: str
    items: int = Field(description="items that are asked for")
    sessions: int = Field(description="test sessions whose next item is asked for")
    shown: int = Field(description="interactions that a question on the next item shows")
    seed: int = Field(0, description="of all draws")
    threads: int = Field(2, description="CPU threads")
    dtype: str = "auto"
    answers_out: str

    def needs_gpu(self) -> bool:
        """Always true: models run on a GPU where there is one."""
        return True


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    how, generation = project.config.memorisation, project.config.generation
    sizes = {"items": how.items, "sessions": how.sessions, "shown": how.shown, "seed": how.seed}
    return {"encoder": job.used_encoder(), **sizes, "threads": generation.threads, "dtype": generation.dtype}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return scoring(project.models[job.encoder], project.config.generation.threads)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Draw rows, ask, write the answers."""
    stage.set_threads(spec.threads)
    from langptune import memorisation
    from langptune.interpretability.inputs import drawn
    from langptune.models.load import load_encoder, pick_device, pick_dtype

    test = contracts.read(spec.evaluation_in, "evaluation").filter(pl.col("split") == "test")
    kept = drawn(test["session"].to_list(), spec.sessions, spec.seed)
    sessions = contracts.read(spec.sessions_in, "sessions").filter(pl.col("session").is_in(kept)).sort("session")
    asked = memorisation.questions(contracts.read(spec.items_in, "items"), sessions, spec.items, spec.shown, spec.seed)
    device = pick_device()
    model, tokenizer = load_encoder(Path(spec.encoder_in), device, pick_dtype(spec.dtype, device))
    found = []
    for start in range(0, len(asked), 100):
        found.append(memorisation.answers(model, tokenizer, asked[start : start + 100]))
        log(f"{min(start + 100, len(asked))}/{len(asked)} rows asked for")
    answers = pl.concat(found) if found else pl.DataFrame(schema=memorisation.SCHEMA)
    contracts.write_parquet(answers, spec.answers_out)
    record.note(questions=len(answers), exact=answers["exact"].mean())


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
