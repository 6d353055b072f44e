"""What the encoders know of a dataset by heart, and whether users gain where they do: tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from langptune import stage
from langptune.provenance import Record
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Answers of each encoder in, tables out."""

    title: str = Field(description="the dataset's title")
    encoders: list[str] = Field(description="names of the encoders, in the order of `answers_in`")
    answers_in: list[str]
    gains_in: str | None = Field(None, description="gains.parquet of the comparison; null: no correlation with gains")
    shown: int = Field(description="interactions that a question on the next item shows")
    bootstrap: int
    confidence: float
    seed: int
    known_out: str = Field(description="CSV: a row per encoder and question")
    gains_out: str = Field(description="CSV: a row per encoder and method")
    page_out: str = Field(description="both for people (Markdown)")


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    how = project.config.comparison
    return {
        "title": project.datasets[job.dataset].title,
        "encoders": project.workflow.local_encoders,
        "shown": project.config.memorisation.shown,
        "bootstrap": how.bootstrap,
        "confidence": how.confidence,
        "seed": how.seed,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=1000, minutes=10)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Compute and write."""
    import polars as pl

    from langptune import memorisation
    from langptune.data import contracts
    from langptune.files import whole

    columns = list(memorisation.SCHEMA)
    found = {
        name: contracts.read_parquet(path, columns) for name, path in zip(spec.encoders, spec.answers_in, strict=True)
    }
    known = memorisation.table(found, spec.bootstrap, spec.confidence, spec.seed)
    gains = pl.DataFrame(schema=memorisation.GAINS)
    if spec.gains_in is not None:
        gains = memorisation.against_gains(
            found, contracts.read_parquet(spec.gains_in), spec.bootstrap, spec.confidence, spec.seed
        )
    text = memorisation.page(spec.title, known, gains, spec.confidence, spec.shown)
    for path, content in (
        (spec.known_out, known.write_csv()),
        (spec.gains_out, gains.write_csv()),
        (spec.page_out, text),
    ):
        with whole(path) as part:
            part.write_text(content, encoding="utf-8")
    log(text)


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
