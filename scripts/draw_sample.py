"""Draw the test sessions that all methods are compared on."""

from __future__ import annotations

from pydantic import Field

from langptune import stage
from langptune.config.sample import Sample
from langptune.data import contracts, sample
from langptune.provenance import Record


class Spec(stage.StageSpec):
    """Draw a fixed sample of sessions (evaluation.parquet)."""

    sample: Sample = Field(description="how many, and the seed")
    sessions_in: str
    evaluation_out: str


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Draw and write."""
    sessions = contracts.read(spec.sessions_in, "sessions", ["session", "split"])
    drawn = sample.draw(sessions, spec.sample)
    contracts.write(drawn, spec.evaluation_out, "evaluation")
    there = int((sessions["split"] == "test").sum())
    record.note(sampled=len(drawn), of=there)
    log(f"comparing on {len(drawn)} of {there} test sessions")


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
