"""Fit one baseline: as a trial of the validation grid, or for the final ranks of the test sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from langptune.baselines import REGISTRY as BASELINES
from langptune.config.base import validate
from langptune.errors import UserError
from langptune.files import write_lines
from langptune.meter import Meter
from langptune.provenance import Record, write_json
from langptune.reading import read_json
from langptune.stage import Log, StageSpec, run, set_threads
from langptune.workflow import amounts
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.baselines.frame.baseline import Baseline
    from langptune.plan import Sizes
    from langptune.workflow.amounts import Work
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class FitBaselineSpec(StageSpec):
    """Fit one baseline. mode trial writes trial_out; mode final writes ranks_out; both write curve_out."""

    mode: Literal["trial", "final"] = Field(
        description="trial: fit and validate one grid point; final: fit and rank the test sessions"
    )
    items_in: str = Field(description="items.parquet: the size of the catalogue")
    sessions_in: str = Field(description="sessions.parquet")
    baseline: str = Field(description="entry of langptune.baselines, e.g. recbole")
    keys: dict[str, Any] = Field({}, description="keys of the entry in methods.yaml; the file of the baseline has them")
    point: dict[str, Any] | None = Field(None, description="point of the validation grid, which changes keys (trial)")
    best_in: str | None = Field(None, description="JSON of select_baseline.py, whose settings are the point (final)")
    seed: int = Field(description="seed of the run")
    threads: Annotated[int, Field(ge=1)] = Field(1, description="CPU threads")
    device: Literal["auto", "cpu"] = Field("auto", description="auto: a GPU where the baseline uses one")
    trial_out: str | None = Field(None, description="JSON: settings, best epoch, validation metrics (trial)")
    evaluation_in: str | None = Field(None, description="evaluation.parquet: the sessions of scores_out")
    training_in: str | None = Field(None, description="training.parquet: the sessions of val_scores_out")
    ranks_out: str | None = Field(None, description="ranks.parquet of the test sessions (final)")
    scores_out: str | None = Field(None, description="scores of the compared test sessions, for a fusion (final)")
    val_scores_out: str | None = Field(
        None, description="scores of the sampled validation sessions, by the model before a refit (final)"
    )
    curve_out: str | None = Field(
        None, description="curve.jsonl: epoch, loss, val_ndcg@10, seconds; empty for a baseline without epochs"
    )

    def needs_gpu(self) -> bool:
        """Whether the baseline uses a GPU."""
        return BASELINES.load(self.baseline).Keys.gpus > 0

    def loads(self) -> tuple[str, ...]:
        """The module of the baseline."""
        return (BASELINES.module(self.baseline),)


def spec(project: Project, job: Job, mode: str) -> dict[str, object]:
    """Settings of a job; ``mode``: as in its spec."""
    method = project.methods[job.method]
    fields = {"mode": mode, "baseline": method.kind, "keys": method.keys()}
    if mode == "trial":
        point = project.workflow.points(job.method)[int(job.wildcards["trial"])]
        return {**fields, "point": point, "seed": project.config.seeds[0]}
    return {**fields, "seed": job.seed}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    method = project.methods[job.method]
    return Needs(method.memory, method.minutes, gpus=method.gpus, per_sessions=method.per_sessions)


def loads(project: Project, job: Job) -> tuple[str, ...]:
    """The result of ``FitBaselineSpec.loads``, for the rule."""
    return (BASELINES.module(project.methods[job.method].kind),)


def amount(spec: Mapping[str, Any], sizes: Sizes) -> Work:
    """Train sessions times epochs; one job without epochs."""
    keys = spec["keys"]
    disk: float | None = amounts.SMALL
    if spec.get("scores_out"):
        sessions = sizes.sessions(spec["evaluation_in"], "test"), sizes.sessions(spec["training_in"], "val")
        disk = amounts.scores(amounts.total(*sessions), sizes.items(spec["items_in"]))
    if "epochs" not in keys:
        return amounts.Work("jobs", 1, disk=disk)
    epochs = amounts.product(sizes.sessions(spec["sessions_in"], "train", sampled=False), keys["epochs"])
    return amounts.Work("session epochs", epochs, keys["model"], disk=disk, accelerated=True)


def fit(spec: FitBaselineSpec, record: Record, log: Log) -> None:
    """Fit, and write the outputs of the mode."""
    wanted = {"trial": ["trial_out"], "final": ["ranks_out", "curve_out"]}[spec.mode]
    wanted += ["evaluation_in"] if spec.scores_out else []
    wanted += ["training_in"] if spec.val_scores_out else []
    for name in wanted:
        if getattr(spec, name) is None:
            raise UserError(f"fit_baseline.py --spec: mode {spec.mode} needs '{name}'")
    # Before numpy, polars and torch are imported, which read the variables.
    set_threads(spec.threads)
    import polars as pl

    from langptune.baselines.frame import fit as frame
    from langptune.data import contracts
    from langptune.data.sample import sampled
    from langptune.ranking import kept

    entry = BASELINES.load(spec.baseline)
    keys = validate(entry.Keys, spec.keys, "fit_baseline.py --spec: keys")
    point = _point(spec)
    label = keys.label  # the entry's, for all its points: at a beta of 0 RP3beta is P3alpha
    if point is not None:
        keys = keys.at(point)
    n_items = len(contracts.read(spec.items_in, "items", ["item"]))
    sessions = contracts.read(spec.sessions_in, "sessions", frame.COLUMNS, optional=(contracts.AFTER_CUT,))

    def lesson(shows: str) -> frame.Lesson:
        return frame.lesson(sessions, n_items, shows, spec.seed, log, spec.threads, spec.device)

    if spec.mode == "trial":
        found = frame.select(entry.Model(keys), lesson("val"))
        trial = {
            "model": label,
            "settings": point or {},
            "seed": spec.seed,
            "best_epoch": found.best_epoch,
            "epochs_run": found.epochs_run,
            "val": found.val,
        }
        write_json(spec.trial_out, trial)
    else:

        def selected(model: Baseline) -> None:
            if spec.val_scores_out is not None:
                val = sessions.join(sampled(spec.training_in, "val"), on="session", how="semi").sort("session")
                kept.write(spec.val_scores_out, val, frame.blocks(model, val, n_items))

        model, found = frame.final(lambda: entry.Model(keys), lesson("val"), lambda: lesson("test"), selected)
        test = sessions.filter(pl.col("split") == "test")
        compared = None if spec.scores_out is None else sampled(spec.evaluation_in, "test")["session"]
        meter = Meter()
        with kept.keeping(spec.scores_out, compared, meter) as keep, meter.running():
            ranks = frame.ranks(model, test, n_items, keep=keep)
        contracts.write(ranks, spec.ranks_out, "ranks")
        record.note(sessions=len(test), **meter.note(len(test)))
        log(f"{label}: ranked {len(test)} sessions")
    if spec.curve_out is not None:
        write_lines(spec.curve_out, found.curve)
    record.note(
        settings=point if point is not None else keys.model_dump(mode="json", exclude={"tune", "deterministic"}),
        best_epoch=found.best_epoch,
        epochs_run=found.epochs_run,
        val=found.val,
        train_seconds=round(sum(row["seconds"] for row in found.curve), 3),
        **found.notes,
    )


def _point(spec: FitBaselineSpec) -> dict[str, Any] | None:
    if spec.best_in is None:
        return spec.point
    try:
        return read_json(spec.best_in)["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{spec.best_in}: no 'settings' in it; rerun select_baseline.py") from None


if __name__ == "__main__":
    run(FitBaselineSpec, fit, __file__)
