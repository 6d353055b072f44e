"""Join the shards of one run's profiles, and check that they cover the sample exactly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from pydantic import Field

from langptune import stage
from langptune.data import contracts
from langptune.data.sample import sampled
from langptune.errors import UserError
from langptune.provenance import Record
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Shards in, profiles.parquet out."""

    shards_in: list[str] = Field(description="the shards' files")
    evaluation_in: str
    split: str = Field("test", description="whose sessions: train, val or test")
    samples: int = Field(1, description="profiles per session")
    profiles_out: str


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    return {"shards_in": project.shards(job.written), "split": job.draw.split, "samples": job.draw.samples}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=500, minutes=10)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Concatenate, compare with the sample, write."""
    profiles = pl.concat([contracts.read(path, "profiles") for path in spec.shards_in]).sort("session", "sample")
    wanted = sampled(spec.evaluation_in, spec.split)["session"]
    sessions = profiles["session"].unique().sort()
    if not sessions.equals(wanted) or len(profiles) != len(wanted) * spec.samples:
        raise UserError(
            f"{spec.shards_in[0]} and the other shards hold {len(profiles)} profiles of {len(sessions)} sessions, the "
            f"sample has {len(wanted)} sessions with {spec.samples} each; "
            "delete the folder with the shards and rerun"
        )
    contracts.write(profiles, spec.profiles_out, "profiles")
    share = profiles["finished"].mean()
    record.note(profiles=len(profiles), finished_share=share, mean_tokens=profiles["tokens"].mean())
    for path in spec.shards_in:
        # Removed only now: a shard that is killed after its last batch needs its journal to resume.
        shutil.rmtree(Path(path).with_suffix(".journal"), ignore_errors=True)
    log(f"{len(profiles)} profiles, {share:.0%} ended within the limit")


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
