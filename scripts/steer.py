"""Steerability: edit tastes in profiles, rank again with the run's decoder, and measure the change of the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from pydantic import Field

from langptune import stage
from langptune.config.models import DecoderEntry
from langptune.data import contracts
from langptune.errors import UserError
from langptune.interpretability.inputs import ProfileSpec
from langptune.provenance import Record
from langptune.workflow.needs import Needs, embedding

if TYPE_CHECKING:
    from langptune.ranking.edited import CachedReader
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(ProfileSpec):
    """Profiles in; per edit, the change of the AUC, and the places that the taste's items gained, out.

    A second file has the change of the AUC at every weight of popularity in ``weights``, at 0 and at the run's own.
    """

    decoder: DecoderEntry
    decoder_in: str = Field(description="the run's decoder, trained or not")
    vectors_in: str = Field(description="the catalogue as it embeds it")
    weight: float = Field(
        0.0, description="of popularity in the score, where there is no `popularity_in`", strict=False
    )
    popularity_in: str | None = Field(None, description="the weight that was chosen on validation (choose_popularity)")
    denials: float = Field(
        0.0, description="weight of denials in texts, where there is no `denials_in`; 0: texts are whole", strict=False
    )
    denials_in: str | None = Field(None, description="the weight of denials that was chosen on validation, likewise")
    edited_denials: float | None = Field(
        None, description="weight of denials in edited profiles; null: as in unedited ones", strict=False
    )
    untrained_edits: float = Field(
        0.0, description="weight of the change that the untrained decoder sees in an edit", strict=False
    )
    untrained_in: str | None = Field(None, description="the untrained decoder; needed only with such a weight")
    untrained_vectors_in: str | None = Field(None, description="the catalogue as that decoder embeds it, likewise")
    tastes: int = Field(description="tastes that are added to a profile, and as many of those that it names")
    weights: list[float] = Field(description="further weights of popularity at which each edit is measured")
    steering_out: str
    steering_weights_out: str

    def needs_gpu(self) -> bool:
        """Always true: models run on a GPU where there is one."""
        return True


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    return {
        **job.subjects(),
        "decoder": job.used_decoder(),
        **job.number_of_weight(),
        **job.reading(),
        **job.edit_reading(),
        "tastes": project.config.interpretability.tastes,
        "weights": project.config.training.popularity_weights,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return embedding(project.models[job.decoder])


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Embed all texts once, then measure each edit."""
    from langptune.interpretability import inputs, steering
    from langptune.language.claims import Titles
    from langptune.language.tastes import tastes_of
    from langptune.ranking.edited import EditReader
    from langptune.ranking.queries import denials_of
    from langptune.ranking.scoring import log_popularity, read_weight, score

    if (spec.untrained_in is None or spec.untrained_vectors_in is None) and spec.untrained_edits:
        raise UserError("steer.py --spec: untrained_edits needs untrained_in and untrained_vectors_in")
    items, rows = inputs.load(spec)
    tastes = tastes_of(items, spec.taste_field)
    profiles = rows.select("session", "profile", "seen").to_dicts()
    titles = Titles(items["title"].to_list())
    made = [steering.edits(row["profile"], tastes, titles, spec.tastes, spec.seed, row["session"]) for row in profiles]
    originals = {row["profile"] for row in profiles}
    texts = originals | {edit.text for edits in made for edit in edits}
    weight = read_weight(spec.weight, spec.popularity_in)
    popularity = log_popularity(contracts.read(spec.sessions_in, "sessions"), len(items))
    denials = denials_of(items, spec.taste_field, read_weight(spec.denials, spec.denials_in, "denials"))
    in_edits = denials
    if spec.edited_denials is not None:
        in_edits = denials_of(items, spec.taste_field, spec.edited_denials)
    decoder, untrained = _reader(spec, spec.decoder_in, spec.vectors_in), None
    decoder.embed(originals, denials)
    decoder.embed(texts, in_edits)
    if spec.untrained_in is not None and spec.untrained_vectors_in is not None:
        untrained = _reader(spec, spec.untrained_in, spec.untrained_vectors_in)
        untrained.embed(texts, in_edits)
    reader = EditReader(decoder, denials, in_edits, untrained, spec.untrained_edits)
    log(f"{len(rows)} profiles, {sum(map(len, made))} edits of {len(tastes.names)} tastes, {decoder.cut} texts cut")
    weights = sorted({0.0, weight, *spec.weights})
    out, weighed = [], []
    for row, edits in zip(profiles, made, strict=True):
        if not edits:
            continue
        plain = reader.similarities([row["profile"]])
        edited = reader.edited([row["profile"]] * len(edits), [edit.text for edit in edits])
        for other in weights:
            (before,), after = (score(similarity, popularity, other) for similarity in (plain, edited))
            for edit, scores in zip(edits, after, strict=True):
                auc, places = steering.effect(before, scores, tastes.has[:, edit.taste], row["seen"])
                key = (row["session"], edit.edit, tastes.names[edit.taste])
                weighed.append((*key, other, auc))
                if other == weight:
                    out.append((*key, edit.text, auc, places))
    schema = {"session": pl.Int32, "edit": pl.String, "taste": pl.String, "text": pl.String}
    schema |= {"auc_change": pl.Float64, "places_up": pl.Float64}
    frame = pl.DataFrame(out, schema=schema, orient="row").filter(pl.col("auc_change").is_not_nan())
    contracts.write_parquet(frame, spec.steering_out)
    schema = {"session": pl.Int32, "edit": pl.String, "taste": pl.String, "weight": pl.Float64}
    schema |= {"auc_change": pl.Float64}
    by_weight = pl.DataFrame(weighed, schema=schema, orient="row").filter(pl.col("auc_change").is_not_nan())
    contracts.write_parquet(by_weight, spec.steering_weights_out)
    for edit in steering.EDITS:
        changes = frame.filter(pl.col("edit") == edit)["auc_change"]
        if len(changes):
            up = (changes > 0).mean() if edit in steering.UP else (changes < 0).mean()
            log(f"{edit}: {len(changes)} edits, AUC {changes.mean():+.3f}, as meant in {100 * up:.0f}%")
    if denials is not None:
        record.note(denials=denials.weight)
    record.note(sessions=len(rows), edits=len(frame), tastes=tastes.names, texts_cut_at_limit=decoder.cut)


def _reader(spec: Spec, folder: str, vectors: str) -> CachedReader:
    from langptune.models.load import load_decoder, pick_device
    from langptune.ranking.decoder import ItemVectors
    from langptune.ranking.edited import CachedReader

    model = load_decoder(Path(folder), spec.decoder, pick_device())
    return CachedReader(model, ItemVectors.load(Path(vectors)), spec.decoder.query_prefix)


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
