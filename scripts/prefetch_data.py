"""Download the raw files of one dataset of config/datasets.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from langptune import stage
from langptune.config.datasets import DatasetEntry
from langptune.data.fetch import fetch
from langptune.processes import HUB_TOKENS
from langptune.provenance import Record
from langptune.workflow import amounts
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.plan import Sizes
    from langptune.workflow.amounts import Work
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Bring a dataset's files from the hub (at its pinned revision) or an address to a local folder."""

    name: str = Field(description="the dataset's name in config/datasets.yaml")
    dataset: DatasetEntry = Field(description="its registry entry; only source, sha256 and licence matter")
    folder_out: str

    def secrets(self) -> tuple[str, ...]:
        """The hub's token."""
        return HUB_TOKENS


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    name = project.downloads[job.wildcards["slug"]]
    return {"name": name, "dataset": project.downloaded(name)}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=500, minutes=30)


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """Downloads."""
    return amounts.Work("downloads", 1)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Download and check the files, and note their source."""
    record.note(**fetch(spec.dataset, spec.name, Path(spec.folder_out), log))


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
