"""Rank the catalogue by similarity to one text per session: a profile, a history, or the changed text of a control."""

from __future__ import annotations

from collections.abc import Mapping
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
    from sentence_transformers import SentenceTransformer

    from langptune.plan import Sizes
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
    items_in: str
    sessions_in: str
    evaluation_in: str
    profiles_in: str | None = Field(None, description="profiles.parquet, for the source profiles")
    ranks_out: str

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
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return embedding(project.models[job.decoder])


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """One text per session."""
    return amounts.texts(spec["decoder"], sizes.sessions(spec["evaluation_in"], "test"))


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Read the texts, embed them, rank by them, write the ranks."""
    from langptune.models.load import load_decoder, pick_device
    from langptune.profiles import text
    from langptune.profiles.shuffle import deal
    from langptune.ranking.decoder import ItemVectors, embed, mean_vector, rank_sessions
    from langptune.ranking.scoring import read_weight, scoring_of

    items = contracts.read(spec.items_in, "items")
    sessions = contracts.read(spec.sessions_in, "sessions")
    chosen = contracts.read(spec.evaluation_in, "evaluation").filter(pl.col("split") == "test")
    chosen = chosen.select("session").join(sessions, on="session", how="left", maintain_order="left")
    model = load_decoder(Path(spec.decoder_in), spec.decoder, pick_device())
    weight = read_weight(spec.weight, spec.popularity_in)
    scoring = scoring_of(ItemVectors.load(Path(spec.vectors_in)), sessions, weight)
    meter = Meter()
    if spec.profiles_in is not None:
        profiles = contracts.read(spec.profiles_in, "profiles")
        samples = profiles["sample"].max() + 1
        if samples > 1:
            with meter.running():
                profiles, kept = _best(spec, profiles, chosen, model, scoring)
            record.note(best_of=samples, kept_sample_mean=kept)
        if spec.change == "shuffled":
            profiles = deal(profiles, dict(chosen.select("session", "user_id").iter_rows()), spec.seed)
        joined = chosen.select("session").join(profiles, on="session", how="left", maintain_order="left")
        if missing := joined["profile"].null_count():
            raise UserError(
                f"{spec.profiles_in}: {missing} of {len(chosen)} sessions have no profile; rerun the profiles"
            )
        texts = joined["profile"].to_list()
    else:
        item_texts = items["text"].to_list()
        texts = [text.query(spec.source, h, item_texts, spec.history_items) for h in chosen["history"].to_list()]
    with meter.running():
        queries = embed(model, texts, spec.decoder.query_prefix)
        used = mean_vector(queries.vectors) if spec.change == "mean-vector" else queries.vectors
        ranks = rank_sessions(chosen, scoring.blocks(used))
    contracts.write(ranks, spec.ranks_out, "ranks")
    empty = sum(not t for t in texts)
    record.note(sessions=len(ranks), weight=weight, texts_cut_at_limit=queries.cut, empty_texts=empty)
    record.note(**meter.note(len(ranks)))
    what = f"{spec.source}, {spec.change}" if spec.change else spec.source
    log(
        f"{what}: ranked {len(ranks)} sessions, popularity weight {weight:g}, {queries.cut} texts cut at "
        f"{spec.decoder.max_tokens} tokens"
    )


def _best(
    spec: Spec, profiles: pl.DataFrame, chosen: pl.DataFrame, model: SentenceTransformer, scoring: Scoring
) -> tuple[pl.DataFrame, float]:
    """The best profile of each session, and the mean number of the samples that were kept."""
    from langptune.profiles.best_of import best_samples
    from langptune.ranking.decoder import embed

    rows = chosen.select("session", "history", "seen").join(profiles, on="session").sort("session", "sample")
    queries = embed(model, rows["profile"].to_list(), spec.decoder.query_prefix).vectors
    first = rows.filter(pl.col("sample") == 0)
    histories, seen = first["history"].to_list(), first["seen"].to_list()
    kept = best_samples(queries, scoring.scores, histories, seen, spec.history_items)
    wanted = first.select("session").with_columns(pl.Series("sample", kept, dtype=pl.Int32))
    return profiles.join(wanted, on=["session", "sample"], how="semi"), float(sum(kept) / len(kept))


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
