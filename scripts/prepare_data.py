"""Prepare items.parquet, sessions.parquet, users.parquet and funnel.csv from raw files, under one named protocol."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import Field

from langptune import stage
from langptune.config.datasets import DatasetEntry, Paper
from langptune.config.models import DecoderEntry, EncoderEntry
from langptune.config.prompts import Prompt
from langptune.data import contracts, protocols, readers
from langptune.data.limits import TokenLimits
from langptune.files import own_folder, whole
from langptune.provenance import Record, file_hash
from langptune.workflow import amounts
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.plan import Sizes
    from langptune.workflow.amounts import Work
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project

COUNTING = ("langptune.prompts", "langptune.models.load")
"""Modules that count the tokens of texts."""
FUNNEL = {"step": pl.String, "interactions": pl.Int64, "users": pl.Int64, "items": pl.Int64}


class Spec(stage.StageSpec):
    """Read a dataset, check it, and split it into sessions by its protocol."""

    name: str = Field(description="the dataset's name in config/datasets.yaml")
    dataset: DatasetEntry = Field(description="its registry entry")
    folder: str | None = Field(None, description="where downloaded files lie; null: where `source` says")
    encoder: EncoderEntry | None = Field(None, description="whose tokenizer counts prompts, with limits")
    encoder_in: str | None = None
    decoder: DecoderEntry | None = Field(None, description="whose tokenizer counts item texts, with limits")
    decoder_in: str | None = None
    prompt: Prompt | None = Field(None, description="the dataset's prompt, with limits")
    items_out: str
    sessions_out: str
    users_out: str = Field(description="user fields for prompts; only user_id where the dataset has none")
    funnel_out: str = Field(description="what each step of the protocol left")

    def unreached(self) -> tuple[str, ...]:
        """The modules that count tokens, where there are no token limits."""
        return () if self.encoder else COUNTING


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    entry = project.prepared(job.dataset)
    models = {role: project.used(name) for role, name in project.limit_models(job.dataset).items()}
    prompt = {"prompt": project.prompts[project.datasets[job.dataset].prompt]} if models else {}
    return {"name": job.dataset, "dataset": entry, "folder": project.raw_folder(job.dataset), **models, **prompt}


def unreached(project: Project, job: Job) -> tuple[str, ...]:
    """The result of ``Spec.unreached``, for the rule."""
    return () if project.limit_models(job.dataset) else COUNTING


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job.

    Sessions hold what a user saw before, so that they are larger than the raw file: MovieLens-1M takes 4 GB.
    """
    entry = project.datasets[job.dataset]
    if entry.reader == "amazon-2023":
        return Needs(memory=8000, minutes=360)
    interactions = entry.expect.interactions if entry.expect else 0
    return Needs(memory=1000 + 0.004 * interactions, minutes=30)


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """Raw interactions."""
    return amounts.Work("interactions", sizes.interactions(spec["items_out"]))


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Read, split, write."""
    scratch = Path(f"{spec.items_out}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    own_folder(scratch)
    try:
        raw = readers.read(spec.dataset, spec.name, scratch, Path(spec.folder) if spec.folder else None)
        for note in raw.notes:
            log(note)
        with ThreadPoolExecutor(1) as beside:  # hashing large files takes time
            hashes = {path.name: beside.submit(file_hash, path) for path in raw.files}
            done = protocols.prepare(raw, spec.dataset, spec.name, _limits(spec))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    contracts.write(done.items, spec.items_out, "items")
    contracts.write(done.sessions, spec.sessions_out, "sessions")
    users = done.users if done.users is not None else done.sessions.select("user_id").unique().sort("user_id")
    contracts.write(users, spec.users_out, "users")
    with whole(spec.funnel_out) as part:
        pl.DataFrame(done.facts["funnel"], schema=FUNNEL).write_csv(part)
    if spec.dataset.source.package is not None:
        record.packages.append(spec.dataset.source.package)
    record.note(
        raw={name: coming.result() for name, coming in hashes.items()},
        licence=spec.dataset.licence,
        notes=raw.notes,
        **done.facts,
    )
    for step in done.facts["funnel"]:
        counts = ", ".join(f"{value} {key}" for key, value in step.items() if key != "step")
        log(f"{spec.name}: {step['step']}: {counts}")
    for reason, count in done.facts["drops"].items():
        if count:
            log(f"{spec.name}: {count} {reason}")
    log(f"{spec.name}: {len(done.items)} items, sessions {done.facts['sessions']}")


def _limits(spec: Spec) -> TokenLimits | None:
    protocol = spec.dataset.protocol
    if not isinstance(protocol, Paper) or protocol.limits is None:
        return None
    # Imported here, because data without limits need no tokenizers.
    from langptune.models.load import load_tokenizer
    from langptune.prompts import PromptWriter

    assert spec.encoder and spec.encoder_in and spec.decoder and spec.decoder_in and spec.prompt
    items, prompts = load_tokenizer(spec.decoder_in), load_tokenizer(spec.encoder_in)
    writer = PromptWriter(spec.prompt, f"prompt of {spec.name}", prompts, spec.encoder.context)
    prefix = spec.decoder.item_prefix
    return TokenLimits(
        item_tokens_of=lambda texts: [len(ids) for ids in items([prefix + t for t in texts], verbose=False).input_ids],
        prompts_of=lambda histories: [writer.whole(history, {}) for history in histories],
        prompt_tokens_of=writer.lengths,
        item_limit=protocol.limits.item_tokens,
        prompt_limit=protocol.limits.prompt_tokens,
        item_special=items.num_special_tokens_to_add() + len(prefix.encode()),
        prompt_special=writer.frame,
    )


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
