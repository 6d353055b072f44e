"""Measure the profiles of one run: wording, drift from the untrained encoder, and claims that the history supports."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from pydantic import Field

from langptune import stage
from langptune.config.models import DecoderEntry, EncoderEntry, VerifierEntry
from langptune.config.prompts import Prompt
from langptune.data import contracts
from langptune.interpretability.faithfulness import Catalogue, Verifier, by_inference, by_similarity
from langptune.interpretability.inputs import ProfileSpec
from langptune.provenance import Record
from langptune.randomness import numbered
from langptune.workflow.needs import Needs, scoring

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(ProfileSpec):
    """Profiles in; measures per session and claims with their verdicts out (docs/interpretability.md)."""

    users_in: str
    encoder: EncoderEntry = Field(description="the untrained encoder, under which drift is measured")
    encoder_in: str | None = Field(description="its folder; null: it cannot be asked for likelihoods (an endpoint)")
    prompt: str = Field(description="name of the prompt that the profiles were written with")
    prompt_entry: Prompt
    max_tokens: int = Field(description="longest profile in tokens")
    verifier: VerifierEntry | DecoderEntry = Field(discriminator="role")
    verifier_in: str
    strangers: int = Field(description="other users' histories that each claim is tried on")
    threads: int = Field(2, description="CPU threads")
    dtype: str = "auto"
    measures_out: str
    claims_out: str

    def needs_gpu(self) -> bool:
        """Always true: models run on a GPU where there is one."""
        return True


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    how, remote = project.config.generation, project.is_remote(job.encoder)
    return {
        **job.subjects(),
        "encoder": job.used_encoder(),
        "encoder_in": None if remote else job.encoder_folder,
        **job.prompt(),
        "max_tokens": job.source.max_tokens,
        "verifier": project.used(project.workflow.verifier),
        "strangers": project.config.interpretability.strangers,
        "threads": how.threads,
        "dtype": how.dtype,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return scoring(project.models[job.encoder], project.config.generation.threads)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Measure wording, claims and drift, and write both tables."""
    stage.set_threads(spec.threads)
    from langptune.interpretability import faithfulness, inputs
    from langptune.language import claims, wording

    items, rows = inputs.load(spec)
    titles = items["title"].to_list()
    profiles = rows["profile"].to_list()
    prompts = _prompts(spec, items, rows)
    # Items that did not fit into a prompt were not shown to the encoder.
    shown, ratings = (
        [list(values[prompt.dropped_items :]) for values, prompt in zip(rows[key].to_list(), prompts, strict=True)]
        for key in ("shown", "shown_ratings")
    )
    wordings = [
        wording.measure(profile, [titles[item] for item in history])
        for profile, history in zip(profiles, shown, strict=True)
    ]
    catalogue = inputs.catalogue_of(items, spec.taste_field)
    known = claims.Titles(titles)
    extracted = [claims.extract(profile, catalogue.tastes, known) for profile in profiles]
    log(f"{len(rows)} profiles, {sum(map(len, extracted))} claims; verifier: {Path(spec.verifier_in).name}")
    texts = {faithfulness.statement(claim, catalogue) for own in extracted for claim in own} - {None}
    verify = _verifier(spec, sorted(texts), catalogue, titles)
    checked = []
    for at, own in enumerate(extracted):
        others = _strangers(rows["user_id"].to_list(), at, spec.strangers, spec.seed)
        strangers = [(shown[other], ratings[other]) for other in others]
        checked.append(faithfulness.check(own, shown[at], ratings[at], strangers, catalogue, verify))
    drift = _drift(spec, profiles, prompts, log)
    share = [[one.supported for one in own] for own in checked]
    common = [[one.strangers for one in own if one.strangers is not None] for own in checked]
    contracts.write_parquet(
        pl.DataFrame({"session": rows["session"], "profile": profiles})
        .hstack(pl.DataFrame([asdict(one) for one in wordings]))
        .with_columns(
            sameness=pl.Series(wording.sameness(profiles)),
            nats_per_token=pl.Series(drift),
            claims=pl.Series([len(own) for own in extracted]),
            supported=pl.Series([float(np.mean(own)) if own else None for own in share], dtype=pl.Float64),
            strangers=pl.Series([float(np.mean(own)) if own else None for own in common], dtype=pl.Float64),
        ),
        spec.measures_out,
    )
    lines = [
        {"session": session, **asdict(one.claim), "supported": one.supported, "strangers": one.strangers}
        for session, own in zip(rows["session"].to_list(), checked, strict=True)
        for one in own
    ]
    schema = {"session": pl.Int32, "kind": pl.String, "text": pl.String, "value": pl.String, "liked": pl.Boolean}
    schema |= {"supported": pl.Boolean, "strangers": pl.Float64}
    contracts.write_parquet(pl.DataFrame(lines, schema=schema), spec.claims_out)
    record.note(
        sessions=len(rows),
        claims=len(lines),
        tastes=catalogue.tastes.names,
        prompts_that_lost_items=sum(prompt.dropped_items > 0 for prompt in prompts),
    )


def _strangers(users: list[str], own: int, count: int, seed: int) -> list[int]:
    """Random sessions of other users than that of session ``own``; the draw depends on ``seed`` and ``own``."""
    others = [at for at, user in enumerate(users) if user != users[own]]
    return numbered(seed, 2, own).permutation(others)[:count].tolist()


def _verifier(spec: Spec, statements: list[str], catalogue: Catalogue, titles: list[str]) -> Verifier:
    from langptune.models.load import load_decoder, load_verifier, pick_device
    from langptune.ranking.decoder import embed

    folder = Path(spec.verifier_in)
    if isinstance(spec.verifier, VerifierEntry):
        score = load_verifier(folder, spec.verifier, pick_device())
        return by_inference(score, catalogue.texts, titles, spec.verifier.max_tokens)
    model = load_decoder(folder, spec.verifier, pick_device())
    items = embed(model, catalogue.texts, spec.verifier.item_prefix).vectors
    queries = embed(model, statements, spec.verifier.query_prefix).vectors if statements else []
    return by_similarity(dict(zip(statements, queries, strict=True)), items)


def _prompts(spec: Spec, items: pl.DataFrame, rows: pl.DataFrame) -> list[Any]:
    """The prompts of the encoder, equal to those of scripts/write_profiles.py."""
    from langptune.prompts import MessageWriter, PromptWriter, encode_sessions

    limit = spec.encoder.prompt_limit(spec.max_tokens)
    if spec.encoder_in is None:
        from langptune.endpoint.lengths import rough_tokens

        writer = MessageWriter(spec.prompt_entry, spec.prompt, limit, rough_tokens)
    else:
        from langptune.models.load import load_tokenizer

        writer = PromptWriter(spec.prompt_entry, spec.prompt, load_tokenizer(spec.encoder_in), limit)
    return encode_sessions(writer, rows, items, contracts.read(spec.users_in, "users"), spec.history_items)


def _drift(spec: Spec, profiles: list[str], prompts: list[Any], log: stage.Log) -> list[float | None]:
    """Mean negative log-likelihood per token of each profile, in nats, under the untrained encoder."""
    if spec.encoder_in is None:
        return [None] * len(profiles)
    from langptune.models.likelihood import text_logprobs
    from langptune.models.load import load_encoder, pick_device, pick_dtype

    device = pick_device()
    model, tokenizer = load_encoder(Path(spec.encoder_in), device, pick_dtype(spec.dtype, device))
    form = {"add_special_tokens": False, "split_special_tokens": True}
    # The prompts end with the fixed beginning of profiles, so the encoder did not write it.
    own = [profile.removeprefix(spec.prompt_entry.starts) for profile in profiles]
    texts = [ids[: spec.max_tokens] for ids in tokenizer(own, **form).input_ids]
    logprobs = text_logprobs(model, [prompt.ids for prompt in prompts], texts)
    log(f"drift: {sum(map(len, texts))} tokens under {Path(spec.encoder_in).name}")
    return [float(-value / len(text)) if text else None for value, text in zip(logprobs, texts, strict=True)]


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
