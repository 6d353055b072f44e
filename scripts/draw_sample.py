"""Draw the sessions that methods are compared on, or trained and selected on."""

from __future__ import annotations

from pydantic import Field

from langptune import stage
from langptune.config.sample import Sample
from langptune.data import contracts, sample
from langptune.provenance import Record


class Spec(stage.StageSpec):
    """Draw a fixed sample of sessions: evaluation.parquet (test) or training.parquet (train and val)."""

    sample: Sample = Field(description="how many, and the seed")
    splits: list[str] = Field(["test"], description="which splits to draw from")
    sessions_in: str
    sample_out: str


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
