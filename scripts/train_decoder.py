"""CL: train the decoder of one phase on texts and their target items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from pydantic import Field

from langptune import provenance, stage
from langptune.config.models import DecoderEntry
from langptune.config.recipes import ContrastiveRecipe
from langptune.data import contracts, sample
from langptune.errors import UserError
from langptune.files import whole_folder, write_lines
from langptune.provenance import Record
from langptune.randomness import seed_torch, stream_seed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Spec(stage.StageSpec):
    """Texts of train sessions and their targets in, a trained sentence-transformers folder out.

    Checkpoints lie under `checkpoints` until the phase is finished: a job that is killed or stopped goes on from there.
    """

    decoder: DecoderEntry = Field(description="the decoder's registry entry")
    decoder_in: str = Field(description="its materialised folder, or the decoder of an earlier phase")
    recipe: ContrastiveRecipe
    view: Literal["profiles", "history"] = Field(description="what the texts are")
    history_items: int = Field(10, description="for `history`: most recent items")
    train_fraction: float = Field(1.0, description="share of the sampled train sessions", strict=False)
    seed: int = 0
    stream: str = Field("contrastive-1", description="name of the phase's random streams (Phase.stream)")
    threads: int = Field(2, description="CPU threads; part of the numerics")
    items_in: str
    sessions_in: str
    training_in: str = Field(description="training.parquet: the sampled train and val sessions")
    train_profiles_in: str | None = None
    val_profiles_in: str | None = None
    base: str = Field(description="for the model card: name of the untrained decoder")
    licence: str = Field("", description="for the model card: of the untrained decoder")
    phase: str = Field(description="for the model card: the phase's name")
    dataset: str = Field(description="for the model card: the dataset's title and licence")
    checkpoints: str = Field(description="folder of checkpoints")
    decoder_out: str
    curve_out: str

    def needs_gpu(self) -> bool:
        """Models run on one."""
        return True


def work(spec: Spec, record: Record, log: stage.Log) -> Callable[[], None]:
    """Read, train (or resume), keep the state that was best on validation."""
    stage.set_threads(spec.threads)
    import torch

    from langptune.models.load import load_decoder, pick_device, pick_dtype
    from langptune.ranking.decoder import embed_items
    from langptune.ranking.scoring import Scoring
    from langptune.training.card import card
    from langptune.training.checkpoints import Checkpoints
    from langptune.training.contrastive import ContrastiveTrainer, Pairs
    from langptune.training.reward import Reward, validation_metrics

    device = pick_device()
    bf16 = pick_dtype(spec.recipe.precision, device) == torch.bfloat16
    seed_torch(stream_seed(spec.seed, spec.stream, "libraries"))
    item_texts = contracts.read(spec.items_in, "items")["text"].to_list()
    sessions = contracts.read(spec.sessions_in, "sessions")
    train, val = (_texts(spec, split, sessions, item_texts) for split in ("train", "val"))
    kept = sample.fraction(train["session"].to_list(), spec.train_fraction, spec.seed)
    train = train.filter(pl.col("session").is_in(kept))
    record.note(train_sessions=len(train), val_sessions=len(val), bf16=bf16)

    model = load_decoder(Path(spec.decoder_in), spec.decoder, device)
    prefix = spec.decoder.query_prefix
    pairs = Pairs(
        [prefix + text for text in train["text"]],
        train["target"].to_numpy().astype("int64"),
        [spec.decoder.item_prefix + text for text in item_texts],
    )

    no_popularity = np.zeros(len(item_texts), dtype=np.float32)

    def validate(model: SentenceTransformer) -> dict[str, float]:
        training = model.training
        model.eval()
        vectors, _ = embed_items(model, item_texts, spec.decoder.item_prefix)
        ranks = Reward(model, Scoring(vectors, no_popularity), prefix).ranks(
            val["text"].to_list(), val["target"].to_list(), val["seen"].to_list()
        )
        model.train(training)
        return validation_metrics(ranks)

    inputs = {str(path): provenance.input_hash(path) for path in spec.paths("_in")}
    what = spec.model_dump(
        mode="json", include={"decoder", "view", "history_items", "train_fraction", "seed", "stream"}
    )
    identity = {**what, "recipe": spec.recipe.identity(), "inputs": inputs, "bf16": bf16}
    checkpoints = Checkpoints(Path(spec.checkpoints), identity, log)
    log(f"{spec.recipe.title}: {len(train)} train and {len(val)} validation sessions, {device}, bfloat16 {bf16}")
    trainer = ContrastiveTrainer(model, pairs, spec.recipe, checkpoints, validate, spec.seed, spec.stream, bf16, log)
    trainer.run()
    if not trainer.accelerator.is_main_process:
        return lambda: None
    state = trainer.watch.snapshot()
    facts = card(
        spec.base, spec.phase, spec.dataset, spec.licence, spec.recipe, state, spec.seed, "decoder", len(train)
    )
    whole_folder(trainer.watch.best, Path(spec.decoder_out), facts)
    write_lines(spec.curve_out, state["curve"])
    record.note(
        best_batch=state["best_step"], best_ndcg=state["best"], resumed=state["resumed"], train_seconds=state["seconds"]
    )
    return checkpoints.clear


def _texts(spec: Spec, split: str, sessions: pl.DataFrame, item_texts: list[str]) -> pl.DataFrame:
    """Columns session, text, target, seen of the sampled sessions of a split, by session."""
    from langptune.baselines import text

    chosen = contracts.read(spec.training_in, "evaluation").filter(pl.col("split") == split)
    rows = chosen.select("session").join(sessions, on="session").sort("session")
    if rows.is_empty():
        raise UserError(f"{spec.training_in}: no {split} session to work with; raise sample.{split}")
    if spec.view == "history":
        texts = [text.history_text(history, item_texts, spec.history_items) for history in rows["history"].to_list()]
    else:
        path = spec.train_profiles_in if split == "train" else spec.val_profiles_in
        if path is None:
            raise UserError(f"train_decoder.py --spec: view profiles needs '{split}_profiles_in'")
        told = contracts.read(path, "profiles").filter(pl.col("sample") == 0)
        texts = rows.select("session").join(told, on="session", how="left", maintain_order="left")["profile"]
        if missing := texts.null_count():
            raise UserError(f"{path}: {missing} of {len(rows)} {split} sessions have no profile; rerun the profiles")
    return rows.select("session", "target", "seen").with_columns(pl.Series("text", texts, dtype=pl.String))


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
