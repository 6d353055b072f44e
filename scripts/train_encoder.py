"""RLSO: train the encoder of one phase, with rewards from the ranks by its profiles."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import Field

from langptune import provenance, stage
from langptune.config.models import DecoderEntry, EncoderEntry
from langptune.config.prompts import Prompt
from langptune.config.recipes import ALGORITHMS, ReinforcementRecipe
from langptune.config.rewards import parse
from langptune.data import contracts, sample
from langptune.errors import UserError
from langptune.files import whole_folder, write_lines
from langptune.provenance import Record
from langptune.workflow import amounts
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.plan import Sizes
    from langptune.workflow.amounts import Work
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Take train sessions and a frozen decoder, and write a PEFT adapter of the encoder.

    Checkpoints are kept under `checkpoints` until the phase is finished: a job that is killed or stopped resumes there.
    """

    encoder: EncoderEntry = Field(description="the encoder's registry entry")
    encoder_in: str = Field(description="its materialised folder")
    start_in: str | None = Field(None, description="the adapter of an earlier phase")
    decoder: DecoderEntry = Field(description="the decoder's registry entry")
    decoder_in: str = Field(description="its folder: materialised, or trained by an earlier phase")
    vectors_in: str = Field(description="the catalogue as this decoder embeds it")
    weight: float = Field(
        0.0, description="of popularity in the score, where there is no `popularity_in`", strict=False
    )
    popularity_in: str | None = Field(None, description="the weight that was chosen on validation (choose_popularity)")
    denials: float = Field(
        0.0, description="weight of denials in texts, where there is no `denials_in`; 0: texts are whole", strict=False
    )
    denials_in: str | None = Field(None, description="the weight of denials that was chosen on validation, likewise")
    recipe: ReinforcementRecipe
    prompt: str = Field(description="name of the prompt")
    prompt_entry: Prompt = Field(description="its entry in prompts.yaml")
    history_items: int = Field(description="most recent items shown")
    max_tokens: int = Field(description="longest profile in tokens")
    train_fraction: float = Field(1.0, description="share of the train sessions", strict=False)
    seed: int = 0
    stream: str = Field("reinforcement-1", description="name of the phase's random streams (Phase.stream)")
    threads: int = Field(2, description="CPU threads; part of the numerics")
    batch_size: int = Field(32, description="profiles per generation batch in validation")
    items_in: str
    sessions_in: str
    users_in: str
    training_in: str = Field(description="training.parquet: the sampled train and val sessions")
    taste_field: str | None = Field(None, description="item field of genres, for terms and denials")
    base: str = Field(description="for the model card: name of the untrained encoder")
    licence: str = Field("", description="for the model card: of the untrained encoder")
    phase: str = Field(description="for the model card: the phase's name")
    dataset: str = Field(description="for the model card: the dataset's title and licence")
    checkpoints: str | None = Field(None, description="folder of checkpoints; null: beside the output")
    encoder_out: str
    curve_out: str

    def needs_gpu(self) -> bool:
        """Always true: models run on a GPU where there is one."""
        return True

    def loads(self) -> tuple[str, ...]:
        """The module of the algorithm."""
        return (ALGORITHMS.module(self.recipe.algorithm),)


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    phase = job.phase
    return {
        "encoder": job.used_encoder(),
        "decoder": job.used_decoder(),
        **job.number_of_weight(),
        **job.reading(),
        "recipe": phase.recipe,
        **job.prompt(),
        "history_items": phase.history_items,
        "max_tokens": phase.max_tokens,
        "train_fraction": phase.train_fraction,
        "seed": job.seed,
        "stream": phase.stream,
        "threads": project.config.training.threads,
        "batch_size": project.config.generation.batch_size,
        "taste_field": project.taste_field(job.dataset),
        **job.card(job.encoder),
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(
        memory=6000,
        minutes=60,
        threads=project.config.training.threads,
        gpus=1,
        model=project.models[job.encoder],
        per_million=8,
        per_billion=240,
        launch=job.phase.recipe.launch,
    )


def loads(project: Project, job: Job) -> tuple[str, ...]:
    """The result of ``Spec.loads``, for the rule."""
    return (ALGORITHMS.module(job.phase.recipe.algorithm),)


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """Profile tokens, each counted when it is written and for each pass over it, and those of validation."""
    recipe = spec["recipe"]
    profiles = recipe["batches"] * recipe["sessions_per_batch"] * recipe["samples"]
    written = profiles * (recipe["max_tokens"] or spec["max_tokens"])
    sessions = sizes.sessions(spec["training_in"], "val")
    validated = amounts.product(sessions, amounts.validations(recipe), spec["max_tokens"])
    return amounts.tokens(spec["encoder"], amounts.total(written * (1 + recipe["epochs"]), validated), None)


def work(spec: Spec, record: Record, log: stage.Log) -> Callable[[], None]:
    """Read the data, train (or resume), keep the state with the best validation."""
    stage.set_threads(spec.threads)
    # PEFT uses names that are deprecated in transformers.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import torch

    from langptune.models.load import load_decoder, load_encoder, pick_device, pick_dtype
    from langptune.prompts import PromptWriter, encode_sessions
    from langptune.ranking.decoder import ItemVectors
    from langptune.ranking.queries import denials_of
    from langptune.ranking.scoring import read_weight, scoring_of
    from langptune.training.card import card
    from langptune.training.checkpoints import Checkpoints
    from langptune.training.loop import PolicyTrainer
    from langptune.training.reward import Reward, Sessions, futures
    from langptune.training.terms import TERMS, facts_of

    device = pick_device()
    dtype = pick_dtype(spec.recipe.precision, device)
    if dtype == torch.float16:
        raise UserError("this GPU has no bfloat16, and float16 is not stable here: set the recipe's precision: float32")
    model, tokenizer = load_encoder(Path(spec.encoder_in), device, dtype)
    limit = spec.encoder.prompt_limit(spec.max_tokens)
    writer = PromptWriter(spec.prompt_entry, spec.prompt, tokenizer, limit)
    items, users = contracts.read(spec.items_in, "items"), contracts.read(spec.users_in, "users")
    sessions = contracts.read(spec.sessions_in, "sessions")
    chosen = contracts.read(spec.training_in, "evaluation")

    def prompted(split: str, share: float) -> Sessions:
        rows = every = sessions.filter(pl.col("split") == split).sort("session")
        if split == "val" or spec.recipe.sessions == "sample":
            rows = rows.join(chosen, on="session", how="semi", maintain_order="left")
        rows = rows.filter(pl.col("session").is_in(sample.fraction(rows["session"].to_list(), share, spec.seed)))
        if split == "train" and spec.recipe.sessions == "all":
            # The trainer passes once over its sessions, so prompts are made only for as many as it needs.
            needed = spec.recipe.batches * spec.recipe.sessions_per_batch
            rows = rows.filter(pl.col("session").is_in(sample.drawn(rows["session"], needed, spec.seed, spec.stream)))
        if rows.is_empty():
            raise UserError(f"{spec.training_in}: no {split} session; use a protocol that has some")
        prompts = encode_sessions(writer, rows, items, users, spec.history_items)
        dropped = [prompt.dropped_items for prompt in prompts]
        shown, ratings = (
            [own[-spec.history_items :][cut:] for own, cut in zip(rows[key].to_list(), dropped, strict=True)]
            for key in ("history", "ratings")
        )
        targets = rows["target"].to_list()
        own = [[target] for target in targets]
        if split == "train":
            # Train sessions that `train_fraction` leaves out are no targets of a reward either.
            kept = {*sample.fraction(every["session"].to_list(), share, spec.seed), *rows["session"].to_list()}
            known = every.filter(pl.col("session").is_in(kept))
            own = futures(known, rows["session"].to_list(), spec.recipe.targets)
        return Sessions(
            sessions=rows["session"].to_list(),
            prompts=[prompt.ids for prompt in prompts],
            targets=targets,
            seen=rows["seen"].to_list(),
            futures=own,
            histories=shown,
            ratings=ratings,
            users=rows["user_id"].to_list(),
        )

    train, val = prompted("train", spec.train_fraction), prompted("val", 1.0)
    weight = read_weight(spec.weight, spec.popularity_in)
    reward = Reward(
        load_decoder(Path(spec.decoder_in), spec.decoder, device),
        scoring_of(ItemVectors.load(Path(spec.vectors_in)), sessions, weight),
        spec.decoder.query_prefix,
        spec.recipe,
        facts=facts_of(items, spec.taste_field) if any(TERMS[name].items for name in spec.recipe.terms) else None,
        limit=spec.recipe.max_tokens or spec.max_tokens,
        reader=_reader(spec, items["title"].to_list(), device, dtype),
        seed=spec.seed,
        phase=spec.stream,
        denials=denials_of(items, spec.taste_field, read_weight(spec.denials, spec.denials_in, "denials")),
    )

    inputs = {str(path): provenance.input_hash(path) for path in spec.paths("_in")}
    what = ["encoder", "decoder", "prompt_entry", "history_items", "max_tokens", "train_fraction", "batch_size"]
    what += ["taste_field", "seed", "stream", "weight", "denials"]
    identity = {
        **spec.model_dump(mode="json", include=set(what)),
        "recipe": spec.recipe.identity(),
        "inputs": inputs,
        "dtype": str(dtype),
    }
    checkpoints = Checkpoints(Path(spec.checkpoints or Path(spec.encoder_out).parent / ".checkpoints"), identity, log)
    log(
        f"{spec.recipe.title} ({spec.recipe.algorithm}): {len(train.sessions)} train and {len(val.sessions)} "
        f"validation sessions, popularity weight {weight:g}, {device}, {dtype}"
    )
    trainer = PolicyTrainer(
        model=model,
        tokenizer=tokenizer,
        train=train,
        validation=val,
        reward=reward,
        recipe=spec.recipe,
        checkpoints=checkpoints,
        max_tokens=spec.max_tokens,
        seed=spec.seed,
        phase=spec.stream,
        bf16=dtype == torch.bfloat16,
        log=log,
        start=Path(spec.start_in) if spec.start_in else None,
        validation_batch=spec.batch_size,
        starts=writer.starts,
    )
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    log(f"{trained:,} weights train")
    trainer.run()
    if not trainer.accelerator.is_main_process:
        return lambda: None
    state = trainer.watch.snapshot()
    facts = card(
        spec.base,
        spec.phase,
        spec.dataset,
        spec.licence,
        spec.recipe,
        state,
        spec.seed,
        "encoder",
        len(train.sessions),
    )
    whole_folder(trainer.watch.best, Path(spec.encoder_out), facts)
    write_lines(spec.curve_out, state["curve"])
    record.note(
        weight=weight,
        train_sessions=len(train.sessions),
        val_sessions=len(val.sessions),
        trained_weights=trained,
        dtype=str(dtype).removeprefix("torch."),
        best_batch=state["best_step"],
        best_ndcg=state["best"],
        collapsed=state["collapsed"],
        resumed=state["resumed"],
        train_seconds=state["seconds"],
        recipe=json.loads(spec.recipe.model_dump_json()),
    )
    return checkpoints.clear


def _reader(spec: Spec, titles: list[str], device: Any, dtype: Any) -> Any:
    """A frozen copy of the initial encoder as a reader of profiles; None where no reward needs one."""
    from langptune.models.likelihood import Reader
    from langptune.models.load import load_encoder

    if not any(parse(name)[1].reads == "reader" for name in spec.recipe.rewards):
        return None
    reader = Reader(*load_encoder(Path(spec.encoder_in), device, dtype))
    return lambda profiles, targets: reader.per_token(profiles, [titles[item] for item in targets])


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
