"""Draw the sessions for the comparison of methods, or for training and selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from langptune import stage
from langptune.config.sample import Sample
from langptune.data import contracts, sample
from langptune.provenance import Record
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Draw a fixed sample of sessions: evaluation.parquet (test) or training.parquet (train and val)."""

    sample: Sample = Field(description="how many, and the seed")
    splits: list[str] = Field(["test"], description="which splits to draw from")
    sessions_in: str
    sample_out: str


def spec(project: Project, job: Job, splits: tuple[str, ...] = ()) -> dict[str, object]:
    """Settings of a job; ``splits``: the splits of a sample other than the test sessions."""
    sizes = project.config.sample
    taken = {split: getattr(sizes, split) for split in splits or ("test",)}
    return {"sample": {**taken, "seed": sizes.seed}, **({"splits": splits} if splits else {})}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=500, minutes=30, per_sessions=5)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Draw and write."""
    sessions = contracts.read(spec.sessions_in, "sessions", ["session", "split"])
    drawn = sample.draw(sessions, spec.sample, tuple(spec.splits))
    contracts.write(drawn, spec.sample_out, "evaluation")
    for split in spec.splits:
        there, taken = int((sessions["split"] == split).sum()), int((drawn["split"] == split).sum())
        record.note(**{split: {"sampled": taken, "of": there}})
        log(f"{split}: {taken} of {there} sessions")


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
