"""Forward simulation: a reader that gets only a profile chooses the true next item among sampled ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from pydantic import Field

from langptune import stage
from langptune.config.models import DecoderEntry, EncoderEntry
from langptune.data import contracts
from langptune.interpretability.inputs import ProfileSpec
from langptune.provenance import Record
from langptune.workflow.needs import Needs, scoring

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(ProfileSpec):
    """Profiles in; per session, whether the reader chose the next item, and the place of that item (1 is best)."""

    reader: EncoderEntry | DecoderEntry = Field(discriminator="role", description="an encoder reads by likelihood")
    reader_in: str
    candidates: int = Field(description="items to choose from, the true one among them")
    threads: int = Field(2, description="CPU threads")
    dtype: str = "auto"
    simulation_out: str

    def needs_gpu(self) -> bool:
        """Always true: models run on a GPU where there is one."""
        return True


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    return {
        **job.subjects(),
        "reader": project.used(project.workflow.reader),
        "candidates": project.config.interpretability.candidates,
        "threads": project.config.generation.threads,
        "dtype": project.config.generation.dtype,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return scoring(project.models[project.workflow.reader], project.config.generation.threads)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Draw candidates by seed and session, score them with the reader, write the outcomes."""
    stage.set_threads(spec.threads)
    from langptune.interpretability import inputs, simulation

    items, rows = inputs.load(spec)
    texts = items["text"].to_list()
    choices = [
        simulation.candidates(row["target"], row["seen"], len(items), spec.candidates, spec.seed, row["session"])
        for row in rows.to_dicts()
    ]
    score = _reader(spec, texts, sorted({int(item) for choice in choices for item in choice}))
    outcomes = []
    for at, (profile, choice) in enumerate(zip(rows["profile"].to_list(), choices, strict=True), 1):
        outcomes.append(simulation.outcome(score(profile, choice)))
        if at % 20 == 0 or at == len(rows):
            log(f"{at}/{len(rows)} profiles read")
    frame = {"session": rows["session"], "chosen": [one[0] for one in outcomes], "place": [one[1] for one in outcomes]}
    contracts.write_parquet(
        pl.DataFrame(frame, schema={"session": pl.Int32, "chosen": pl.Float64, "place": pl.Int32}), spec.simulation_out
    )
    accuracy = float(np.mean(frame["chosen"]))
    record.note(sessions=len(rows), candidates=spec.candidates, accuracy=accuracy, reader=Path(spec.reader_in).name)
    log(f"chose {accuracy:.3f} of the next items among {spec.candidates}; chance is {1 / spec.candidates:.3f}")


def _reader(spec: Spec, texts: list[str], wanted: list[int]) -> Callable[[str, Sequence[int]], np.ndarray]:
    from langptune.models.load import load_decoder, load_encoder, pick_device, pick_dtype

    device, folder = pick_device(), Path(spec.reader_in)
    if isinstance(spec.reader, EncoderEntry):
        from langptune.models.likelihood import Reader

        reader = Reader(*load_encoder(folder, device, pick_dtype(spec.dtype, device)))
        return lambda profile, choice: reader.scores(profile, [texts[item] for item in choice])
    from langptune.ranking.decoder import embed

    model = load_decoder(folder, spec.reader, device)
    vectors = dict(zip(wanted, embed(model, [texts[i] for i in wanted], spec.reader.item_prefix).vectors, strict=True))
    return lambda profile, choice: (
        np.stack([vectors[int(item)] for item in choice]) @ embed(model, [profile], spec.reader.query_prefix).vectors[0]
    )


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
