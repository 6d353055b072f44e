"""CL: train the decoder of one phase on texts and their target items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from langptune.workflow import amounts
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from langptune.plan import Sizes
    from langptune.training.contrastive import Pairs
    from langptune.workflow.amounts import Work
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


SELECTS = {"profiles": "profiles", "history": "history", "mixed": "profiles"}
"""Texts that a phase trains on -> the texts of validation sessions by which it selects."""


class Spec(stage.StageSpec):
    """Take texts of train sessions and their targets, and write a trained sentence-transformers folder.

    Checkpoints are kept under `checkpoints` until the phase is finished: a job that is killed or stopped resumes there.
    """

    decoder: DecoderEntry = Field(description="the decoder's registry entry")
    decoder_in: str = Field(description="its materialised folder, or the decoder of an earlier phase")
    recipe: ContrastiveRecipe = Field(description="with its history_items where it reads histories")
    train_fraction: float = Field(1.0, description="share of the train sessions", strict=False)
    seed: int = 0
    stream: str = Field("contrastive-1", description="name of the phase's random streams (Phase.stream)")
    threads: int = Field(2, description="CPU threads; part of the numerics")
    items_in: str
    sessions_in: str
    training_in: str = Field(description="training.parquet: the sampled train and val sessions")
    train_profiles_in: str | None = None
    val_profiles_in: str | None = None
    without_denials: bool = Field(False, description="denials are taken out of profiles: only the likes are trained on")
    taste_field: str | None = Field(
        None,
        description="item field of genres, for edited texts and denials; null: edited texts use tags mined from the "
        "items' texts, and no contradictions are looked for",
    )
    base: str = Field(description="for the model card: name of the untrained decoder")
    licence: str = Field("", description="for the model card: of the untrained decoder")
    phase: str = Field(description="for the model card: the phase's name")
    dataset: str = Field(description="for the model card: the dataset's title and licence")
    checkpoints: str | None = Field(None, description="folder of checkpoints; null: beside the output")
    decoder_out: str
    curve_out: str

    def needs_gpu(self) -> bool:
        """Always true: models run on a GPU where there is one."""
        return True


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    phase = job.phase
    return {
        "decoder": job.used_decoder(),
        "recipe": phase.recipe,
        "train_fraction": phase.train_fraction,
        "seed": job.seed,
        "stream": phase.stream,
        "threads": project.config.training.threads,
        **job.likes_alone(),
        **({"taste_field": project.taste_field(job.dataset)} if phase.recipe.edited_share else {}),
        **job.card(job.decoder),
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(
        memory=3000,
        minutes=60,
        threads=project.config.training.threads,
        gpus=1,
        model=project.models[job.decoder],
        per_million=24,
        per_billion=1000,
        launch=job.phase.recipe.launch,
    )


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """Texts through the decoder.

    A training text counts four times (two forward passes and a backward one, GradCache), and with an anchor a row's
    text once more. Each validation embeds the catalogue again, and one text per session and kind.
    """
    recipe = spec["recipe"]
    trained = 4 * recipe["batches"] * (2 * recipe["batch_size"] + recipe["uniform_negatives"])
    trained += recipe["batches"] * recipe["batch_size"] if recipe.get("anchor") else 0
    kinds = 2 if recipe.get("texts") == "mixed" else 1
    sessions = amounts.product(sizes.sessions(spec["training_in"], "val"), kinds)
    validated = amounts.product(amounts.total(sizes.items(spec["items_in"]), sessions), amounts.validations(recipe))
    disk = spec["decoder"]["parameters"] * amounts.FLOAT32
    return amounts.texts(spec["decoder"], amounts.total(trained, validated), disk)


def work(spec: Spec, record: Record, log: stage.Log) -> Callable[[], None]:
    """Read the data, train (or resume), keep the state with the best validation."""
    stage.set_threads(spec.threads)
    import torch

    from langptune.models.load import load_decoder, pick_device, pick_dtype
    from langptune.ranking.decoder import embed_items
    from langptune.ranking.scoring import text_alone
    from langptune.training.card import card
    from langptune.training.checkpoints import Checkpoints
    from langptune.training.contrastive import ContrastiveTrainer, Kind, Pairs
    from langptune.training.reward import Reward, validation_metrics

    device = pick_device()
    bf16 = pick_dtype(spec.recipe.precision, device) == torch.bfloat16
    seed_torch(stream_seed(spec.seed, spec.stream, "libraries"))
    items = contracts.read(spec.items_in, "items")
    item_texts = items["text"].to_list()
    sessions = contracts.read(spec.sessions_in, "sessions")
    prefix = spec.decoder.query_prefix
    train = _train(spec, sessions, item_texts, prefix)
    val = _validation(spec, sessions, item_texts)
    counts = {kind: len(texts) for kind, (texts, _, _) in train.items()}
    trained = len({session for _, _, ids in train.values() for session in ids})
    val_sessions = len(next(iter(val.values())))
    share, edited = spec.recipe.profile_share, bool(spec.recipe.edited_share)
    shares = {"history": 1 - share, "profiles": share} if len(counts) > 1 else dict.fromkeys(counts, 1.0)
    names = {"history": "histories", "profiles": "profiles"}
    pairs = Pairs(
        _Joined([texts for texts, _, _ in train.values()]),
        np.concatenate([targets for _, targets, _ in train.values()]),
        [spec.decoder.item_prefix + text for text in item_texts],
        tuple(Kind(names[kind], rows, shares[kind]) for kind, rows in counts.items() if edited or len(counts) > 1),
    )
    if edited:
        pairs = _edited(spec, pairs, items)
        counts["edited"] = len(pairs.edited)
    record.note(train_sessions=trained, rows=counts, val_sessions=val_sessions, bf16=bf16)
    model = load_decoder(Path(spec.decoder_in), spec.decoder, device)

    def validate(model: SentenceTransformer) -> dict[str, float]:
        """Validation metrics by the texts of ``SELECTS``; those by another kind have its name as a prefix."""
        training = model.training
        model.eval()
        vectors, _ = embed_items(model, item_texts, spec.decoder.item_prefix)
        reward = Reward(model, text_alone(vectors), prefix)
        metrics: dict[str, float] = {}
        for kind, rows in val.items():
            ranks = reward.ranks(rows["text"].to_list(), rows["target"].to_list(), rows["seen"].to_list())
            values = validation_metrics(ranks)
            prefixed = kind != SELECTS[spec.recipe.texts]
            metrics |= {f"{kind}_{name}" if prefixed else name: value for name, value in values.items()}
        model.train(training)
        return metrics

    inputs = {str(path): provenance.input_hash(path) for path in spec.paths("_in")}
    what = spec.model_dump(mode="json", include={"decoder", "train_fraction", "seed", "stream", "taste_field"})
    identity = {**what, "recipe": spec.recipe.identity(), "inputs": inputs, "bf16": bf16}
    checkpoints = Checkpoints(Path(spec.checkpoints or Path(spec.decoder_out).parent / ".checkpoints"), identity, log)
    rows = " and ".join(f"{count} rows of {kind}" for kind, count in counts.items() if kind != "edited")
    rows += f", {counts['edited']} of them also edited," if edited else ""
    log(
        f"{spec.recipe.title}: {rows} of {trained} train sessions, {val_sessions} validation sessions, {device}, "
        f"bfloat16 {bf16}"
    )
    trainer = ContrastiveTrainer(model, pairs, spec.recipe, checkpoints, validate, spec.seed, spec.stream, bf16, log)
    trainer.run()
    if not trainer.accelerator.is_main_process:
        return lambda: None
    state = trainer.watch.snapshot()
    facts = card(spec.base, spec.phase, spec.dataset, spec.licence, spec.recipe, state, spec.seed, "decoder", trained)
    whole_folder(trainer.watch.best, Path(spec.decoder_out), facts)
    write_lines(spec.curve_out, state["curve"])
    record.note(
        best_batch=state["best_step"], best_ndcg=state["best"], resumed=state["resumed"], train_seconds=state["seconds"]
    )
    return checkpoints.clear


class _Histories(Sequence[str]):
    """The texts of histories, each made when it is read: those of all train sessions would not fit into memory."""

    def __init__(self, histories: pl.Series, item_texts: list[str], shown: int, prefix: str):
        """``histories``: items, oldest first; ``shown``: the number of most recent items in a text."""
        self._histories, self._item_texts, self._shown, self._prefix = histories, item_texts, shown, prefix

    def __len__(self) -> int:
        return len(self._histories)

    def __getitem__(self, row: int) -> str:
        from langptune.profiles import text

        return self._prefix + text.history_text(self._histories[int(row)].to_list(), self._item_texts, self._shown)


class _Joined(Sequence[str]):
    """Texts of several kinds, one kind after the other."""

    def __init__(self, parts: list[Sequence[str]]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, row: int) -> str:
        for part in self._parts:
            if row < len(part):
                return part[row]
            row -= len(part)
        raise IndexError(row)


def _edited(spec: Spec, pairs: Pairs, items: pl.DataFrame) -> Pairs:
    """The pairs with their edited rows.

    Raises:
        UserError: the dataset has no tastes, or no text admits an edit.
    """
    from langptune.language.claims import Titles
    from langptune.language.tastes import tastes_of
    from langptune.training.contrastive import with_edits
    from langptune.training.edits import Edits

    tastes = tastes_of(items, spec.taste_field)
    if not tastes.names:
        what = "no tag can be mined from its texts" if spec.taste_field is None else "no value of it has five items"
        raise UserError(
            f"{spec.items_in}: field '{spec.taste_field or 'text'}': {what}, and edited rows need tastes; name a field "
            "of genres or categories in `lists` of the dataset in datasets.yaml, or set the recipe's edited_share to 0"
        )
    titles, recipe = Titles(items["title"].to_list()), spec.recipe
    edits = Edits(pairs.texts, pairs.targets, tastes, titles, recipe.edits, spec.decoder.query_prefix)
    return with_edits(pairs, edits, recipe.edited_share)


def _kinds(spec: Spec) -> Iterator[str]:
    """The kinds of text that the recipe trains on, histories first."""
    if spec.recipe.texts != "profiles":
        if spec.recipe.history_items is None:
            raise UserError(
                "train_decoder.py --spec: key 'recipe.history_items' is missing; say how many items a history shows"
            )
        yield "history"
    if spec.recipe.texts != "history":
        yield "profiles"


def _sampled(spec: Spec, split: str, sessions: pl.DataFrame) -> pl.DataFrame:
    """The sampled sessions of a split, sorted by session.

    Raises:
        UserError: there are none.
    """
    chosen = contracts.read(spec.training_in, "evaluation").filter(pl.col("split") == split)
    rows = sessions.join(chosen, on="session", how="semi").sort("session")
    if rows.is_empty():
        raise UserError(f"{spec.training_in}: no {split} session; use a protocol that has some")
    return rows


def _train(
    spec: Spec, sessions: pl.DataFrame, item_texts: list[str], prefix: str
) -> dict[str, tuple[Sequence[str], np.ndarray, list[int]]]:
    """Kind of text -> its training rows: texts with their prefix, targets int64 ``[R]``, sessions."""
    out: dict[str, tuple[Sequence[str], np.ndarray, list[int]]] = {}
    for kind in _kinds(spec):
        if kind == "history" and spec.recipe.sessions != "sample":
            rows = sessions.filter(pl.col("split") == "train").sort("session")
        else:
            rows = _sampled(spec, "train", sessions)
        kept = sample.fraction(rows["session"].to_list(), spec.train_fraction, spec.seed)
        rows = rows.filter(pl.col("session").is_in(kept)) if len(kept) < len(rows) else rows
        if kind == "history":
            assert spec.recipe.history_items is not None
            texts: Sequence[str] = _Histories(rows["history"], item_texts, spec.recipe.history_items, prefix)
        else:
            rows = _with_profiles(spec, "train", rows)
            texts = [prefix + text for text in rows["profile"]]
        out[kind] = texts, rows["target"].to_numpy().astype("int64"), rows["session"].to_list()
    return out


def _validation(spec: Spec, sessions: pl.DataFrame, item_texts: list[str]) -> dict[str, pl.DataFrame]:
    """Kind of text that is trained on -> columns target, seen, text of the sampled validation sessions."""
    rows, out = _sampled(spec, "val", sessions), {}
    for kind in _kinds(spec):
        if kind == "history":
            assert spec.recipe.history_items is not None
            texts: Sequence[str] = list(_Histories(rows["history"], item_texts, spec.recipe.history_items, ""))
            table = rows
        else:
            table = _with_profiles(spec, "val", rows)
            texts = table["profile"].to_list()
        out[kind] = table.select("target", "seen").with_columns(pl.Series("text", texts, dtype=pl.String))
    return out


def _with_profiles(spec: Spec, split: str, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with a column profile; a session with several profiles has a row for each.

    Raises:
        UserError: a session has no profile.
    """
    from langptune.ranking.queries import splitter_of

    path = spec.train_profiles_in if split == "train" else spec.val_profiles_in
    if path is None:
        raise UserError(f"train_decoder.py --spec: texts '{spec.recipe.texts}' need '{split}_profiles_in'")
    profiles = contracts.read(path, "profiles").select("session", "sample", "profile")
    out = rows.join(profiles, on="session", how="left", maintain_order="left").sort("session", "sample")
    if missing := out["profile"].null_count():
        raise UserError(f"{path}: {missing} of {len(rows)} {split} sessions have no profile; rerun the profiles")
    if not spec.without_denials:
        return out
    splitter = splitter_of(contracts.read(spec.items_in, "items"), spec.taste_field)
    return out.with_columns(
        pl.Series("profile", [splitter.parts(text).likes for text in out["profile"]], dtype=pl.String)
    )


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
