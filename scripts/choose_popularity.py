"""Choose the weights of popularity and of denials beside a decoder's similarities, on validation sessions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import polars as pl
from pydantic import Field

from langptune import provenance, stage
from langptune.config.models import DecoderEntry
from langptune.data import contracts
from langptune.errors import UserError
from langptune.provenance import Record
from langptune.workflow import amounts
from langptune.workflow.needs import Needs, embedding

if TYPE_CHECKING:
    from langptune.plan import Sizes
    from langptune.workflow.amounts import Work
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Validation texts and a decoder in; a JSON file with the weights, and the metrics of each of the grid, out.

    The texts are those of the validation in the decoder's training: greedy profiles or histories. For an untrained
    decoder they are histories. All later ranks by this decoder use the same weight.
    """

    text: Literal["profiles", "history"] = Field(description="what is ranked by")
    history_items: int = Field(10, description="for `history`: most recent items")
    weights: Annotated[list[float], Field(min_length=1)] = Field(description="the grid")
    denials: Annotated[list[float], Field(min_length=1)] = Field(
        [0.0], description="weights of denials in texts: the grid, or the only one"
    )
    taste_field: str | None = Field(None, description="item field of genres; null: no contradictions are looked for")
    decoder: DecoderEntry = Field(description="the decoder's registry entry")
    decoder_in: str = Field(description="its folder: materialised, or trained")
    vectors_in: str = Field(description="the catalogue as it embeds it")
    sessions_in: str
    items_in: str
    training_in: str = Field(description="training.parquet: the sampled validation sessions")
    profiles_in: str | None = Field(None, description="greedy profiles of those sessions, for `profiles`")
    weight_out: str

    def needs_gpu(self) -> bool:
        """Always true: models run on a GPU where there is one."""
        return True


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    phase = job.phase
    return {
        "text": phase.weighed_by,
        # A history has as many items as in the decoder's training.
        "history_items": (phase.recipe.history_items if phase.chain else None) or phase.history_items,
        "weights": job.weights(),
        **job.grid_of_denials(),
        "decoder": job.used_decoder(),
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return embedding(project.models[job.decoder])


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """One text per session."""
    return amounts.texts(spec["decoder"], sizes.sessions(spec["training_in"], "val"))


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Embed the texts once, rank by every weight, keep the best."""
    from langptune.models.load import load_decoder, pick_device
    from langptune.profiles import text
    from langptune.ranking.decoder import ItemVectors, embed
    from langptune.ranking.queries import embed_parts, splitter_of
    from langptune.ranking.scoring import Scoring, choose, choose_both, log_popularity

    sessions, catalogue = contracts.read(spec.sessions_in, "sessions"), contracts.read(spec.items_in, "items")
    chosen = contracts.read(spec.training_in, "evaluation").filter(pl.col("split") == "val")
    rows = sessions.join(chosen, on="session", how="semi").sort("session")
    if rows.is_empty():
        raise UserError(
            f"{spec.training_in}: no val session to choose a weight of popularity on; use a protocol that has some, "
            "or give the methods a number (`popularity: 0`)"
        )
    if spec.text == "profiles":
        if spec.profiles_in is None:
            raise UserError("choose_popularity.py --spec: text 'profiles' needs 'profiles_in'")
        profiles = contracts.read(spec.profiles_in, "profiles").filter(pl.col("sample") == 0)
        joined = rows.select("session").join(profiles, on="session", how="left", maintain_order="left")["profile"]
        if missing := joined.null_count():
            raise UserError(
                f"{spec.profiles_in}: {missing} of {len(rows)} sessions have no profile; rerun the profiles"
            )
        texts = joined.to_list()
    else:
        item_texts = catalogue["text"].to_list()
        texts = [text.query(spec.text, h, item_texts, spec.history_items) for h in rows["history"].to_list()]
    model = load_decoder(Path(spec.decoder_in), spec.decoder, pick_device())
    items = ItemVectors.load(Path(spec.vectors_in))
    prefix, queries = spec.decoder.query_prefix, {}
    if 0 in spec.denials:
        queries[0.0] = embed(model, texts, prefix).vectors
    if above := [beta for beta in spec.denials if beta]:
        parts = embed_parts(model, texts, prefix, splitter_of(catalogue, spec.taste_field))
        queries |= {beta: parts.at(beta) for beta in above}
    scoring = Scoring(items, log_popularity(sessions, len(items.row_of_item)))
    asked = rows.select("session", "target", "seen")
    denials: dict[str, float] = {}
    if len(queries) > 1:
        weight, denials["denials"], grid = choose_both(asked, queries, scoring, spec.weights)
    else:
        weight, grid = choose(asked, queries[spec.denials[0]], scoring, spec.weights)
    largest = len(spec.weights) > 1 and weight == max(spec.weights)
    used = {name: getattr(spec, name) for name in ("decoder_in", "vectors_in", "profiles_in")}
    provenance.write_json(
        Path(spec.weight_out),
        {
            "weight": weight,
            **denials,
            "text": spec.text,
            "sessions": len(rows),
            "grid": grid,
            "largest_of_grid": largest,
            "inputs": {name: provenance.input_hash(Path(path)) for name, path in used.items() if path is not None},
        },
    )
    record.note(sessions=len(rows), weight=weight, **denials)
    for row in grid:
        log(
            (f"denials {row['denials']:g}, " if denials else "")
            + f"weight {row['weight']:g}: NDCG {row['ndcg']:.4f}, NDCG@10 {row['ndcg@10']:.4f}, "
            f"log rank {row['log_rank']:.3f}"
            + (" (chosen)" if row.items() >= {"weight": weight, **denials}.items() else "")
        )
    if largest:
        log(
            f"weight {weight:g} is the largest of the grid: a larger one may rank better "
            "(training.popularity_weights of the config)"
        )


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
