"""Write the profiles of one shard of sessions with an encoder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import Field

from langptune import provenance, stage
from langptune.config.models import EncoderEntry
from langptune.config.prompts import Prompt
from langptune.data import contracts
from langptune.endpoint import CLIENT
from langptune.errors import UserError
from langptune.meter import Meter
from langptune.provenance import Record
from langptune.randomness import profile_seed
from langptune.reading import read_json
from langptune.thinking import refuse_only_thoughts
from langptune.workflow import amounts
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.plan import Sizes
    from langptune.workflow.amounts import Work
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Prompts from histories, profiles from prompts.

    Each finished batch is written to `journal` at once (each answer of an endpoint to `cache`), so that a job that is
    killed resumes there.
    """

    encoder: EncoderEntry = Field(description="the encoder's registry entry")
    encoder_in: str = Field(description="its materialised folder")
    adapter_in: str | None = Field(None, description="a trained adapter of it")
    prompt: str = Field(description="name of the prompt")
    prompt_entry: Prompt = Field(description="its entry in prompts.yaml")
    history_items: int = Field(description="most recent items shown")
    max_tokens: int = Field(description="longest profile in tokens")
    temperature: float = Field(0.0, description="0 is greedy", strict=False)
    samples: int = Field(1, description="profiles per session")
    split: str = Field("test", description="whose sessions: train, val or test")
    seed: int = 0
    number: int = Field(0, description="which draw of this seed, for sampled profiles")
    batch_size: int = 32
    dtype: str = "auto"
    shard: int = Field(1, description="which shard, from 1")
    shards: int = Field(1, description="of how many")
    items_in: str
    sessions_in: str
    users_in: str
    evaluation_in: str
    threads: int = Field(2, description="CPU threads; part of the numerics, so not left to the scheduler")
    journal: str | None = Field(
        None, description="folder for finished batches, which gather_profiles.py removes; null: beside the output"
    )
    cache: str | None = Field(None, description="folder of an endpoint's answers, which stay")
    max_usd: float | None = Field(
        None, description="most that this job may cost at an endpoint, in US dollars", strict=False
    )
    profiles_out: str

    def unreached(self) -> tuple[str, ...]:
        """The modules of the endpoint client, where the model is local."""
        return CLIENT if self.encoder.source.endpoint is None else ()

    def secrets(self) -> tuple[str, ...]:
        """The key of an endpoint."""
        return (self.encoder.source.key,) if self.encoder.source.key else ()

    def needs_gpu(self) -> bool:
        """True for a local model."""
        return self.encoder.source.endpoint is None


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    phase, draw, how = job.phase, job.draw, project.config.generation
    # Answers of an endpoint are paid: they are kept when other results are removed.
    kept = {"cache": project.answers, "max_usd": how.max_usd} if project.is_remote(job.encoder) else {}
    return {
        "encoder": job.used_encoder(),
        **job.prompt(),
        "history_items": phase.history_items,
        "max_tokens": phase.max_tokens,
        "temperature": draw.temperature,
        "samples": draw.samples,
        "split": draw.split,
        "seed": job.seed,
        "number": draw.number,
        "batch_size": how.batch_size,
        "dtype": how.dtype,
        "shard": int(job.wildcards["shard"]),
        "shards": int(job.wildcards["shards"]),
        "threads": how.threads,
        **kept,
    }


def unreached(project: Project, job: Job) -> tuple[str, ...]:
    """The result of ``Spec.unreached``, for the rule."""
    return () if project.is_remote(job.encoder) else CLIENT


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(
        memory=4500,
        minutes=30,
        threads=project.config.generation.threads,
        gpus=1,
        model=project.models[job.encoder],
        per_million=3,
        per_billion=100,
    )


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """The maximum number of profile tokens."""
    sessions = sizes.sessions(spec["evaluation_in"], spec["split"])
    count = amounts.product(sessions, spec["samples"], spec["max_tokens"], 1 / spec["shards"])
    return amounts.tokens(spec["encoder"], count, amounts.product(count, amounts.BYTES_PER_TOKEN))


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Encode the prompts, generate batch by batch, gather the journal; or send the prompts to the endpoint."""
    stage.set_threads(spec.threads)
    if spec.encoder.source.endpoint is not None:
        return ask(spec, record, log)
    import torch

    from langptune.models.load import load_adapter, load_encoder, pick_device, pick_dtype
    from langptune.profiles.generate import generate_batch, plan_batches
    from langptune.prompts import PromptWriter, encode_sessions

    device = pick_device()
    dtype = pick_dtype(spec.dtype, device)
    model, tokenizer = load_encoder(Path(spec.encoder_in), device, dtype)
    if spec.adapter_in is not None:
        model = load_adapter(model, Path(spec.adapter_in))
    limit = spec.encoder.prompt_limit(spec.max_tokens)
    writer = PromptWriter(spec.prompt_entry, spec.prompt, tokenizer, limit)

    sessions, items, users = tables(spec)
    encoded = encode_sessions(writer, sessions, items, users, spec.history_items)
    # One row per profile; the samples of a session are adjacent.
    prompts = [prompt for prompt in encoded for _ in range(spec.samples)]
    rows = [(session, sample) for session in sessions["session"] for sample in range(spec.samples)]

    # Batches are planned over all sessions and then distributed, so the number of shards does not change a batch.
    plan = plan_batches([len(prompt.ids) for prompt in prompts], spec.batch_size)
    mine = plan[spec.shard - 1 :: spec.shards]
    journal = Path(spec.journal) if spec.journal else Path(spec.profiles_out).with_suffix(".journal")
    # The identity has everything that a text depends on, the code included, so that no other journal is resumed.
    made_with = [str(device), spec.threads, provenance.versions("torch", "transformers"), record.code]
    model_hash = provenance.input_hash(Path(spec.encoder_in))
    adapter_hash = provenance.input_hash(Path(spec.adapter_in)) if spec.adapter_in is not None else None
    drawn = [spec.max_tokens, spec.temperature, spec.seed, spec.number]
    identity = [*drawn, writer.starts, str(dtype), model_hash, adapter_hash, made_with]
    total, done, kept, written, start = sum(map(len, mine)), 0, 0, 0, time.monotonic()
    parts, thoughts, only, meter = [], 0, 0, Meter()
    for batch in mine:
        key = json.dumps([identity, [[rows[i], prompts[i].ids] for i in batch]])
        path = journal / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.parquet"
        aside = path.with_suffix(".json")  # counts that are no columns of the table
        if path.is_file():
            parts.append(contracts.read(path, "profiles"))
            counts = read_json(aside) if aside.is_file() else {}
            kept += len(batch)
        else:
            source = f"{spec.seed}/{spec.number}" if spec.number else spec.seed
            seeds = [profile_seed(source, *rows[i]) for i in batch]
            # The adapter is float32 and the model bfloat16; autocast converts between them.
            mixed = torch.autocast(device.type, dtype, enabled=spec.adapter_in is not None and dtype != torch.float32)
            with meter.running(), mixed:
                texts = generate_batch(
                    model,
                    tokenizer,
                    [prompts[i].ids for i in batch],
                    seeds,
                    spec.max_tokens,
                    spec.temperature,
                    writer.starts,
                )
            part = pl.DataFrame(
                {
                    "session": [rows[i][0] for i in batch],
                    "sample": [rows[i][1] for i in batch],
                    "profile": [t.text for t in texts],
                    "prompt_tokens": [len(prompts[i].ids) for i in batch],
                    "tokens": [t.tokens for t in texts],
                    "finished": [t.finished for t in texts],
                    "logprob": [t.logprob for t in texts],
                },
                schema=contracts.PROFILES,
            )
            counts = {
                "thoughts": sum(t.thought for t in texts),
                "only_thoughts": sum(t.thought and not t.text for t in texts),
            }
            if counts["thoughts"]:
                provenance.write_json(aside, counts)
            contracts.write(part, path, "profiles")
            parts.append(part)
            written += len(batch)
        done += len(batch)
        thoughts += counts.get("thoughts", 0)
        only += counts.get("only_thoughts", 0)
        refuse_only_thoughts(only, done, total, spec.encoder.title, spec.max_tokens)
        rate = written / (time.monotonic() - start) if written else 0.0
        left = f"{(total - done) / rate / 60:.1f} min left" if rate else "from the journal"
        log(f"profiles {done}/{total} (shard {spec.shard} of {spec.shards}): {rate:.2f} profiles/s, {left}")

    empty = pl.DataFrame(schema=contracts.PROFILES)  # with more shards than batches, a shard may have no batch
    profiles = pl.concat([empty, *parts]).sort("session", "sample")
    contracts.write(profiles, spec.profiles_out, "profiles")
    record.note(
        profiles=len(profiles),
        resumed=kept,
        finished_share=profiles["finished"].mean(),
        mean_tokens=profiles["tokens"].mean(),
        dtype=str(dtype).removeprefix("torch."),
        prompts_that_lost_items=sum(p.dropped_items > 0 for p in prompts),
        fields_cut=sum(p.cut_fields for p in prompts),
        **meter.note(written / spec.samples),
        **_counted(thoughts, only, log),
    )


def _counted(thoughts: int, only: int, log: stage.Log) -> dict[str, int]:
    """Notes on removed reasoning; empty where there was none."""
    if not thoughts:
        return {}
    log(f"{thoughts} profiles had reasoning, which was taken out; {only} were only reasoning, and are empty")
    return {"reasoning_removed": thoughts, "only_reasoning": only}


def tables(spec: Spec) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The sessions of the split, the items, the users."""
    chosen = contracts.read(spec.evaluation_in, "evaluation").filter(pl.col("split") == spec.split)
    sessions = contracts.read(spec.sessions_in, "sessions").join(chosen, on="session", how="semi").sort("session")
    return sessions, contracts.read(spec.items_in, "items"), contracts.read(spec.users_in, "users")


def ask(spec: Spec, record: Record, log: stage.Log) -> None:
    """Write profiles with an endpoint: messages instead of token ids, lengths by characters, no log-probabilities."""
    from langptune.endpoint.answers import Request
    from langptune.endpoint.client import Client, paced
    from langptune.endpoint.lengths import rough_tokens
    from langptune.prompts import MessageWriter, begun, encode_sessions

    if spec.adapter_in is not None or spec.cache is None:
        raise UserError(
            "write_profiles.py: an endpoint takes no adapter_in and needs 'cache', a folder for its answers"
        )
    limit = spec.encoder.prompt_limit(spec.max_tokens)
    writer = MessageWriter(spec.prompt_entry, spec.prompt, limit, rough_tokens)
    sessions, items, users = tables(spec)
    prompts = encode_sessions(writer, sessions, items, users, spec.history_items)
    # Shards are distributed by session, so that the samples of a session stay together.
    mine = list(zip(sessions["session"], prompts, strict=True))[spec.shard - 1 :: spec.shards]
    rows = [(session, sample, prompt) for session, prompt in mine for sample in range(spec.samples)]
    source = f"{spec.seed}/{spec.number}" if spec.number else spec.seed
    starts = spec.prompt_entry.starts

    def request(session: int, sample: int, text: str) -> Request:
        seed = 0
        if spec.temperature:  # greedy answers do not depend on the seed, so equal requests are sent and paid once
            seed = profile_seed(source, session, sample) % 2**31  # every server accepts 31 bits
        turns = (("user", text), ("assistant", starts)) if starts else (("user", text),)
        return Request(turns, spec.max_tokens, spec.temperature, seed)

    requests = [request(session, sample, prompt.text) for session, sample, prompt in rows]
    client = Client(spec.encoder.source, spec.cache, spec.max_usd)
    log(f"{spec.encoder.source.model}: {client.estimate(requests).line}")

    def progress(done: int, total: int, seconds: float) -> None:
        log(f"profiles {done}/{total} (shard {spec.shard} of {spec.shards}): {done / seconds:.2f} profiles/s")

    meter = Meter()
    with meter.running():
        answers = client.ask(requests, paced(progress))
    if empty := client.few_faults(answers):
        kinds = sorted({answer.fault for answer in empty})
        log(
            f"{len(empty)} of {len(answers)} profiles are empty ({', '.join(kinds)}; first: {empty[0].why}); they are "
            "in the file, unfinished and without a text; they are asked for again when the file is made again"
        )
    profiles = pl.DataFrame(
        {
            "session": [session for session, _, _ in rows],
            "sample": [sample for _, sample, _ in rows],
            "profile": ["" if answer.fault else begun(starts, answer.text).strip() for answer in answers],
            "prompt_tokens": [answer.prompt_tokens for answer in answers],
            "tokens": [answer.tokens for answer in answers],
            "finished": [answer.finished for answer in answers],
            "logprob": [None] * len(rows),
        },
        schema=contracts.PROFILES,
    ).sort("session", "sample")
    contracts.write(profiles, spec.profiles_out, "profiles")
    record.note(
        profiles=len(profiles),
        resumed=client.spent.cached,
        finished_share=profiles["finished"].mean(),
        mean_tokens=profiles["tokens"].mean(),
        prompts_that_lost_items=sum(prompt.dropped_items > 0 for _, prompt in mine),
        fields_cut=sum(prompt.cut_fields for _, prompt in mine),
        fields_with_special_tokens=writer.changed,
        tokens_by_characters=sum(not answer.counted for answer in answers),
        empty=len(empty),
        reasoning_removed=sum(answer.thought for answer in answers),
        not_sent=spec.encoder.source.omit,
        answered_by=sorted({answer.model for answer in answers}),
        asked=client.spent.requests,
        usd=round(client.spent.usd, 6),
        **meter.note(client.spent.requests / spec.samples, remote=True),
    )
    log(f"{spec.encoder.source.model}: {client.spent.line}")


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
