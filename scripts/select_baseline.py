"""Choose the grid point with the best validation NDCG@10."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from langptune.errors import UserError
from langptune.provenance import Record, write_json
from langptune.reading import read_json
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class SelectBaselineSpec(StageSpec):
    """Choose the trial with the best validation NDCG@10; of ties, the first in grid order. Test data are not used."""

    trials_in: Annotated[list[str], Field(min_length=1)] = Field(
        description="trial files of fit_baseline.py, in grid order"
    )
    best_out: str = Field(description="JSON: settings, val, best_epoch, trials, grid")


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job: none."""
    return {}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=500, minutes=10)


def select(spec: SelectBaselineSpec, record: Record, log: Log) -> None:
    """Compare the trials, and write the best one with the list of all.

    Raises:
        UserError: a file is no trial, or the trials are of different models.
    """
    trials = [_read(path) for path in spec.trials_in]
    names = {trial["model"] for trial in trials}
    if len(names) > 1:
        raise UserError(f"{spec.trials_in[0]}: trials of different models ({', '.join(sorted(names))}) in one grid")
    # max returns the first of ties.
    best = max(trials, key=lambda trial: trial["val"]["ndcg@10"])
    keys = sorted({key for trial in trials for key in trial["settings"]})
    grid = {key: _distinct([trial["settings"].get(key) for trial in trials]) for key in keys}
    write_json(
        spec.best_out,
        {
            "model": best["model"],
            "settings": best["settings"],
            "val": best["val"],
            "best_epoch": best["best_epoch"],
            "trials": [{k: trial[k] for k in ("settings", "val", "best_epoch", "epochs_run")} for trial in trials],
            "grid": {key: values for key, values in grid.items() if len(values) > 1},
        },
    )
    log(f"{best['model']}: best of {len(trials)} by val NDCG@10 {best['val']['ndcg@10']:.4f}: {best['settings']}")


def _read(path: str) -> dict[str, Any]:
    try:
        trial = read_json(path)
        score = trial["val"]["ndcg@10"]
        complete = {"model", "settings", "best_epoch", "epochs_run"} <= trial.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        complete, score = False, 0.0
    if not complete or not isinstance(score, int | float) or not math.isfinite(score):
        raise UserError(f"{path}: not a trial of fit_baseline.py; delete it and rerun its rule")
    return trial


def _distinct(values: list[Any]) -> list[Any]:
    """Values in order of appearance; lists among them rule out a set."""
    out: list[Any] = []
    for value in values:
        if value not in out:
            out.append(value)
    return out


if __name__ == "__main__":
    run(SelectBaselineSpec, select, __file__)
