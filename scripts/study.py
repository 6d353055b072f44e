"""One study: metrics over the values of one key, over variants of a recipe, or over pairs of models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import polars as pl
from pydantic import Field

from langptune import metrics
from langptune.comparison import grid
from langptune.comparison.grid import ContrastEntry, RunEntry
from langptune.comparison.statistics import Against, Line, compare
from langptune.config.base import Strict
from langptune.figures import style
from langptune.figures.study import draw
from langptune.files import whole
from langptune.provenance import Record, file_hash
from langptune.reading import read_lines
from langptune.spreadsheet import cells
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


TESTED = ("difference", "difference_low", "difference_high", "p_permutation", "p_permutation_holm")
"""Columns on the test against the reference; empty without one."""


class Curve(Strict):
    """The learning curve of a phase."""

    path: str = Field(description="its curve.jsonl: a row per batch, with the mean `tokens` of a profile")
    profiles: int = Field(description="profiles per batch")


class StudyRun(RunEntry):
    """One run of a study."""

    of: str = Field(description="the method that it is a variant of")
    label: str = Field(description="that method's title")
    value: float | None = Field(None, description="the key's value; null where models or a recipe vary")
    setting: dict[str, str] = Field({}, description="of a variant of a recipe: `variant`, its name, and varied keys")
    curves: list[Curve] = Field([], description="of the phases that trained its encoder")


class StudySpec(StageSpec):
    """Metrics of all runs of a study in, a table and a figure out."""

    title: str
    key: str = Field(description="what varies; `models`: encoder and decoder; `recipe`: keys of one")
    runs: Annotated[list[StudyRun], Field(min_length=1)]
    varied: list[str] = Field(
        [], description="key recipe: the keys of the grid; the figure has a panel per value of the last"
    )
    metrics: Annotated[list[str], Field(min_length=1)] = ["ndcg@10"]
    main_metric: str = Field("ndcg@10", description="metric of the figure")
    reference: str | None = Field(
        None, description="method of a run, against which every other run is tested; null: nothing is tested"
    )
    bootstrap: int = 2000
    confidence: float = 0.95
    seed: int = 0
    table_out: str = Field(
        description="CSV, a row per point and metric: method, models, value or variant; mean, low, high; difference to "
        "the reference with its interval and p; tokens, which training wrote, a mean over seeds; collapsed, how many "
        "seeds were stopped for that"
    )
    figure_out: list[str] = Field(description="the figure as .png and .pdf")


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    from langptune.workflow.comparison import encoder_curves, run_entry

    name, how = job.wildcards["study"], project.config.comparison
    chosen = project.config.studies[name]
    variants = {variant.name: variant for variant in project.workflow.variants(name)}
    return {
        "title": chosen.title,
        "key": chosen.key,
        "runs": [
            {
                **run_entry(project, run),
                "of": variants[run.method].of,
                "label": project.methods[variants[run.method].of].title,
                "value": variants[run.method].value,
                "setting": variants[run.method].setting,
                "curves": encoder_curves(project, run),
            }
            for run in project.runs(job.dataset, name)
        ],
        "varied": list(chosen.grid),
        "metrics": how.metrics,
        "main_metric": how.main_metric,
        "reference": chosen.reference,
        "bootstrap": how.bootstrap,
        "confidence": how.confidence,
        "seed": how.seed,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=500, minutes=10)


def study(spec: StudySpec, record: Record, log: Log) -> None:
    """Means with intervals and tests per point; the main metric drawn as lines, rows or a grid of models."""
    plain = [RunEntry.model_validate(entry.model_dump(include=set(RunEntry.model_fields))) for entry in spec.runs]
    runs = grid.collect(plain, spec.metrics)
    methods = dict.fromkeys(row.method for row in runs.rows)
    # As contrasts: both sides have the same seeds, and a resample draws the same ones of both.
    pairs = [
        ContrastEntry(name=name, of=name, against=spec.reference)
        for name in methods
        if spec.reference not in (None, name)
    ]
    first = next(iter(methods))  # the tests against it are not used
    how = (spec.main_metric, spec.bootstrap, spec.confidence, spec.seed)
    results = compare(runs, first, *how, contrasts=pairs)
    lines = {line.row.key: line for line in results.lines}
    tests = {one.of.key: one.tests for one in results.contrasts}
    named = ["variant", *spec.varied] if spec.key == "recipe" else []
    table = []
    for row in runs.rows:
        members = [entry for entry in spec.runs if (entry.method, entry.models) == (row.method, row.models)]
        point = {
            "method": members[0].of,
            "label": members[0].label,
            "group": members[0].group,
            "models": row.models,
            "value": members[0].value,
            **{name: members[0].setting.get(name, "") for name in named},
            "seeds": len(row.seeds),
            "n": len(row.values),
        }
        trained = _training(members)
        table += [point | one | trained for one in _measured(lines[row.key], tests.get(row.key, ()), spec.metrics)]
    frame = pl.DataFrame(table)
    with whole(spec.table_out) as part:
        cells(frame).write_csv(part)
    drawn = [row for row in table if row["metric"] == spec.main_metric]
    figure = draw(drawn, spec.key, named, metrics.title(spec.main_metric))
    for path in spec.figure_out:
        style.save(figure, path)
    read = [entry.metrics_path for entry in spec.runs] + [one.path for entry in spec.runs for one in entry.curves]
    record.note(read={path: file_hash(path) for path in read})
    log(f"{spec.title}: {len(drawn)} points")


def _measured(line: Line, tests: Sequence[Against], names: Sequence[str]) -> Iterator[dict[str, str | float | None]]:
    """A point's mean by each metric with its interval, and its test against the reference, if it has one."""
    for at, metric in enumerate(names):
        values = {"mean": line.means[at], "low": line.low[at], "high": line.high[at]}
        tested: dict[str, float | None] = dict.fromkeys(TESTED)
        if tests:
            one = tests[at]
            found = (one.effect.difference, one.low, one.high, one.effect.p_permutation, one.p_holm)
            tested = dict(zip(TESTED, map(float, found), strict=True))
        yield {"metric": metric} | {name: float(value) for name, value in values.items()} | tested


def _training(runs: list[StudyRun]) -> dict[str, float | int | None]:
    """The tokens that the training of a method's encoder wrote, mean over runs, and the number of collapsed runs."""
    if not any(one.curves for one in runs):
        return {"tokens": None, "collapsed": None}
    tokens, collapsed = [], 0
    for one in runs:
        curves = [(curve.profiles, read_lines(curve.path)) for curve in one.curves]
        tokens.append(sum(profiles * row.get("tokens", 0.0) for profiles, rows in curves for row in rows))
        collapsed += any(row.get("collapsed") for _, rows in curves for row in rows)
    return {"tokens": float(np.mean(tokens)), "collapsed": collapsed}


if __name__ == "__main__":
    run(StudySpec, study, __file__)
