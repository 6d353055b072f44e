"""Rank the catalogue by similarity to one text per session: a profile, a history, or the changed text of a control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field

from langptune import stage
from langptune.config.models import DecoderEntry
from langptune.data import contracts
from langptune.errors import UserError
from langptune.meter import Meter
from langptune.provenance import Record
from langptune.workflow import amounts
from langptune.workflow.needs import Needs, embedding

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from langptune.plan import Sizes
    from langptune.ranking.queries import Denials
    from langptune.ranking.scoring import Scoring
    from langptune.workflow.amounts import Work
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Embed the query texts, score every item, write the exact full-catalogue rank of each target."""

    source: Literal["profiles", "history", "last-item"] = Field(description="the query texts")
    change: Literal["shuffled", "mean-vector", "text-alone"] | None = Field(
        None,
        description="what a control changes: each session gets another user's profile, or the mean of all vectors, or "
        "its own text without popularity in the score; null: nothing",
    )
    history_items: int = Field(10, description="most recent items: of `history`, and those that best-of-n finds again")
    seed: int = Field(0, description="of the shuffle")
    decoder: DecoderEntry = Field(description="the decoder's registry entry")
    decoder_in: str = Field(description="its materialised folder")
    vectors_in: str = Field(description="the embedded catalogue")
    weight: float = Field(
        0.0, description="of popularity in the score, where there is no `popularity_in`", strict=False
    )
    popularity_in: str | None = Field(None, description="the weight that was chosen on validation (choose_popularity)")
    denials: float = Field(
        0.0, description="weight of denials in texts, where there is no `denials_in`; 0: texts are whole", strict=False
    )
    denials_in: str | None = Field(None, description="the weight of denials that was chosen on validation, likewise")
    taste_field: str | None = Field(None, description="item field of genres; null: no contradictions are looked for")
    items_in: str
    sessions_in: str
    evaluation_in: str
    profiles_in: str | None = Field(None, description="profiles.parquet, for the source profiles")
    training_in: str | None = Field(None, description="training.parquet: the sessions of val_scores_out")
    val_profiles_in: str | None = Field(None, description="profiles of these sessions, for the source profiles")
    ranks_out: str
    scores_out: str | None = Field(None, description="the scores of the ranks, for a fusion")
    val_scores_out: str | None = Field(None, description="scores of the sampled validation sessions, for a fusion")

    def needs_gpu(self) -> bool:
        """Always true: models run on a GPU where there is one."""
        return True


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    return {
        "source": "profiles" if project.has_profiles(job.method) else job.source.view,
        **job.change(),
        "history_items": job.source.history_items,
        "decoder": job.used_decoder(),
        **job.number_of_weight(),
        **job.reading(),
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return embedding(project.models[job.decoder])


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """One text per session."""
    texts = sizes.sessions(spec["evaluation_in"], "test")
    if not spec.get("scores_out"):
        return amounts.texts(spec["decoder"], texts)
    texts = amounts.total(texts, sizes.sessions(spec["training_in"], "val"))
    return amounts.texts(spec["decoder"], texts, amounts.scores(texts, sizes.items(spec["items_in"])))


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Read the texts, embed them, rank by them, write the ranks; where a fusion reads them, the scores too."""
    from langptune.data.sample import sampled
    from langptune.models.load import load_decoder, pick_device
    from langptune.ranking import kept
    from langptune.ranking.decoder import ItemVectors, rank_sessions
    from langptune.ranking.queries import denials_of
    from langptune.ranking.scoring import read_weight, scoring_of

    items = contracts.read(spec.items_in, "items")
    item_texts = items["text"].to_list()
    sessions = contracts.read(spec.sessions_in, "sessions")
    model = load_decoder(Path(spec.decoder_in), spec.decoder, pick_device())
    weight = read_weight(spec.weight, spec.popularity_in)
    scoring = scoring_of(ItemVectors.load(Path(spec.vectors_in)), sessions, weight)
    denials = denials_of(items, spec.taste_field, read_weight(spec.denials, spec.denials_in, "denials"))

    def asked(path: str, split: str, profiles_in: str | None) -> tuple[pl.DataFrame, _Queries]:
        rows = sampled(path, split).select("session").join(sessions, on="session", how="left", maintain_order="left")
        return rows, _queries(spec, rows, profiles_in, item_texts, model, scoring, denials)

    meter = Meter()
    with meter.running():
        chosen, queries = asked(spec.evaluation_in, "test", spec.profiles_in)
    with kept.keeping(spec.scores_out, meter=meter) as keep, meter.running():
        ranks = rank_sessions(chosen, keep(chosen, scoring.blocks(queries.vectors)))
    contracts.write(ranks, spec.ranks_out, "ranks")
    if spec.val_scores_out is not None:
        if spec.training_in is None:
            raise UserError("rank_texts.py --spec: val_scores_out needs 'training_in'")
        val, texts = asked(spec.training_in, "val", spec.val_profiles_in)
        kept.write(spec.val_scores_out, val, scoring.blocks(texts.vectors))
    record.note(**queries.notes, **meter.note(len(ranks)))
    if denials is not None:
        record.note(denials=denials.weight)
    record.note(sessions=len(ranks), weight=weight, texts_cut_at_limit=queries.cut, empty_texts=queries.empty)
    what = f"{spec.source}, {spec.change}" if spec.change else spec.source
    log(
        f"{what}: ranked {len(ranks)} sessions, popularity weight {weight:g}, {queries.cut} texts cut at "
        f"{spec.decoder.max_tokens} tokens"
    )


@dataclass(frozen=True)
class _Queries:
    """Vectors float32 ``[S, D]`` of the texts of S sessions, and counts of these texts.

    notes: facts on best of n, for the manifest.
    """

    vectors: np.ndarray
    cut: int
    empty: int
    notes: dict[str, Any]


def _queries(
    spec: Spec,
    chosen: pl.DataFrame,
    profiles_in: str | None,
    item_texts: list[str],
    model: SentenceTransformer,
    scoring: Scoring,
    denials: Denials | None,
) -> _Queries:
    """The vectors by which sessions are ranked.

    Args:
        chosen: sessions.
        profiles_in: the file of their profiles, for the source ``profiles``.
        item_texts: of the whole catalogue.

    Raises:
        UserError: a session has no profile.
    """
    from langptune.profiles import text
    from langptune.profiles.shuffle import deal
    from langptune.ranking.decoder import mean_vector
    from langptune.ranking.queries import embed_queries

    notes: dict[str, Any] = {}
    if profiles_in is not None:
        profiles = contracts.read(profiles_in, "profiles")
        samples = profiles["sample"].max() + 1
        if samples > 1:
            profiles, mean = _best(spec, profiles, chosen, model, scoring, denials)
            notes = {"best_of": samples, "kept_sample_mean": mean}
        if spec.change == "shuffled":
            profiles = deal(profiles, dict(chosen.select("session", "user_id").iter_rows()), spec.seed)
        joined = chosen.select("session").join(profiles, on="session", how="left", maintain_order="left")
        if missing := joined["profile"].null_count():
            raise UserError(f"{profiles_in}: {missing} of {len(chosen)} sessions have no profile; rerun the profiles")
        texts = joined["profile"].to_list()
    else:
        texts = [text.query(spec.source, h, item_texts, spec.history_items) for h in chosen["history"].to_list()]
    embedded = embed_queries(model, texts, spec.decoder.query_prefix, denials)
    used = mean_vector(embedded.vectors) if spec.change == "mean-vector" else embedded.vectors
    return _Queries(used, embedded.cut, sum(not one for one in texts), notes)


def _best(
    spec: Spec,
    profiles: pl.DataFrame,
    chosen: pl.DataFrame,
    model: SentenceTransformer,
    scoring: Scoring,
    denials: Denials | None,
) -> tuple[pl.DataFrame, float]:
    """The best profile of each session, and the mean number of the samples that were kept."""
    from langptune.profiles.best_of import best_samples
    from langptune.ranking.queries import embed_queries

    rows = chosen.select("session", "history", "seen").join(profiles, on="session").sort("session", "sample")
    queries = embed_queries(model, rows["profile"].to_list(), spec.decoder.query_prefix, denials).vectors
    first = rows.filter(pl.col("sample") == 0)
    histories, seen = first["history"].to_list(), first["seen"].to_list()
    kept = best_samples(queries, scoring.scores, histories, seen, spec.history_items)
    wanted = first.select("session").with_columns(pl.Series("sample", kept, dtype=pl.Int32))
    return profiles.join(wanted, on=["session", "sample"], how="semi"), float(sum(kept) / len(kept))


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
