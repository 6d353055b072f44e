"""Bring one model of config/models.yaml to a local folder of safetensors and tokenizer files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from langptune import stage
from langptune.config.identity import identity
from langptune.config.models import ModelEntry
from langptune.models.materialise import materialise
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
    """Materialise a model from its package, the hub (at its pinned revision) or a folder; describe an endpoint."""

    name: str = Field(description="the model's name in config/models.yaml")
    model: ModelEntry = Field(description="its registry entry")
    folder_out: str

    def secrets(self) -> tuple[str, ...]:
        """The hub's token."""
        return HUB_TOKENS


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    name = job.wildcards["model"]
    return {"name": name, "model": project.fetched(name)}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    model = project.models[job.wildcards["model"]]
    return Needs(memory=2000, minutes=60, model=model, per_million=6, per_billion=30)


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """Weights."""
    weights = spec["model"]["parameters"]
    # Only weights count: entries that use them in several ways share their files.
    name = spec.get("name") or identity(spec["model"])
    return amounts.Work("weights", weights, name, weights, weights * amounts.FLOAT32)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Materialise the model, and note its source."""
    log(f"{spec.name}: materialising (once)")
    facts = materialise(spec.model, spec.name, Path(spec.folder_out))
    record.note(**facts)
    if prompts := facts.get("prompts_not_used"):
        log(
            f"{spec.name}: the model's own config names prompts that its entry does not use: {prompts}; to use one, "
            "write it as query_prefix (profiles, histories) or item_prefix (items) in models.yaml"
        )


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
