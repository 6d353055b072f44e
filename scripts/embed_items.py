"""Embed the catalogue once per decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from langptune import stage
from langptune.config.models import DecoderEntry
from langptune.data import contracts
from langptune.provenance import Record
from langptune.workflow import amounts
from langptune.workflow.needs import Needs, embedding

if TYPE_CHECKING:
    from langptune.plan import Sizes
    from langptune.workflow.amounts import Work
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Item texts to unit vectors (safetensors: `vectors`, `row_of_item`)."""

    decoder: DecoderEntry = Field(description="the decoder's registry entry")
    decoder_in: str = Field(description="its materialised folder")
    items_in: str
    vectors_out: str

    def needs_gpu(self) -> bool:
        """Always true: models run on a GPU where there is one."""
        return True


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    return {"decoder": job.used_decoder()}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return embedding(project.models[job.decoder])


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """Texts of the catalogue."""
    items = sizes.items(spec["items_in"])
    return amounts.texts(spec["decoder"], items, amounts.product(items, spec["decoder"]["dimensions"], amounts.FLOAT32))


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Load, embed, write."""
    from langptune.models.load import load_decoder, pick_device
    from langptune.ranking.decoder import embed_items

    items = contracts.read(spec.items_in, "items")
    model = load_decoder(Path(spec.decoder_in), spec.decoder, pick_device())
    vectors, cut = embed_items(model, items["text"].to_list(), spec.decoder.item_prefix)
    vectors.save(Path(spec.vectors_out))
    record.note(items=len(items), distinct_texts=len(vectors.vectors), texts_cut_at_limit=cut)
    log(f"{len(items)} items, {len(vectors.vectors)} distinct texts, {cut} cut at {spec.decoder.max_tokens} tokens")


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
