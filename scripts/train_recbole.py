"""Train one RecBole model: as a trial of the validation grid, or for the final ranks of the test sessions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from langptune.config.methods import Setting
from langptune.errors import UserError
from langptune.files import read_json, write_lines
from langptune.provenance import Record, write_json
from langptune.stage import Log, StageSpec, run, set_threads


class TrainRecBoleSpec(StageSpec):
    """Train one RecBole model. mode trial writes trial_out; mode final writes ranks_out and curve_out."""

    mode: Literal["trial", "final"] = Field(
        description="trial: train and validate one grid point; final: train and rank the test sessions"
    )
    items_in: str = Field(description="items.parquet: the size of the catalogue")
    sessions_in: str = Field(description="sessions.parquet")
    best_in: str | None = Field(None, description="JSON of select_trial.py whose settings replace 'settings' (final)")
    model: str = Field(description="RecBole's name of the model, e.g. SASRec")
    settings: dict[str, Setting] = Field({}, description="RecBole settings, passed as they are")
    epochs: Annotated[int, Field(ge=1)] = Field(100, description="at most this many")
    patience: Annotated[int, Field(ge=1)] = Field(10, description="validations without a better NDCG@10")
    validate_every: Annotated[int, Field(ge=1)] = Field(1, description="epochs between validations")
    history_items: Annotated[int, Field(ge=1)] = Field(50, description="most recent items of a list")
    train_sessions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="most recent train sessions per user (sequential models); null: all"
    )
    refit: bool = Field(True, description="ID-based models: train again on what the test sessions show")
    seed: int = Field(description="seed of the run")
    threads: Annotated[int, Field(ge=1)] = Field(1, description="CPU threads")
    device: Literal["auto", "cpu"] = Field("auto", description="auto: a GPU where there is one")
    trial_out: str | None = Field(None, description="JSON: settings, best epoch, validation metrics (trial)")
    ranks_out: str | None = Field(None, description="ranks.parquet of the test sessions (final)")
    curve_out: str | None = Field(None, description="curve.jsonl: epoch, loss, val_ndcg@10, seconds")

    def needs_gpu(self) -> bool:
        """Models run on one."""
        return True


def train(spec: TrainRecBoleSpec, record: Record, log: Log) -> None:
    """Run the mode's training and write its outputs."""
    wanted = {"trial": ["trial_out"], "final": ["ranks_out", "curve_out"]}[spec.mode]
    for name in wanted:
        if getattr(spec, name) is None:
            raise UserError(f"train_recbole.py --spec: mode {spec.mode} needs '{name}'")
    # before numpy, polars and torch read them
    set_threads(spec.threads)
    import polars as pl
    import torch

    from langptune.baselines import recbole
    from langptune.data import contracts

    torch.set_num_threads(spec.threads)
    settings = _settings(spec)
    training = recbole.Training(
        model=spec.model,
        settings=settings,
        epochs=spec.epochs,
        patience=spec.patience,
        validate_every=spec.validate_every,
        history_items=spec.history_items,
        train_sessions=spec.train_sessions,
        refit=spec.refit,
        seed=spec.seed,
        device=spec.device,
    )
    n_items = len(contracts.read(spec.items_in, "items", ["item"]))
    sessions = contracts.read(spec.sessions_in, "sessions", recbole.COLUMNS)
    if spec.mode == "trial":
        selected = recbole.select(training, n_items, sessions, log)
        told = {
            "model": spec.model,
            "settings": settings,
            "seed": spec.seed,
            "best_epoch": selected.best_epoch,
            "epochs_run": selected.epochs_run,
            "val": selected.val,
        }
        write_json(spec.trial_out, told)
    else:
        fitted, selected = recbole.final(training, n_items, sessions, log)
        test = sessions.filter(pl.col("split") == "test")
        contracts.write(fitted.ranks(test), spec.ranks_out, "ranks")
    if spec.curve_out is not None:
        write_lines(spec.curve_out, selected.curve)
    record.note(
        settings=settings,
        best_epoch=selected.best_epoch,
        epochs_run=selected.epochs_run,
        val=selected.val,
        train_seconds=round(sum(row["seconds"] for row in selected.curve), 3),
    )


def _settings(spec: TrainRecBoleSpec) -> dict[str, Setting]:
    if spec.best_in is None:
        return spec.settings
    try:
        return read_json(spec.best_in)["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{spec.best_in}: no 'settings' in it; rerun select_trial.py") from None


if __name__ == "__main__":
    run(TrainRecBoleSpec, train, __file__)
