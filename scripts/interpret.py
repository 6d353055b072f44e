"""Summarise the measures of the profiles of all methods in one table and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field

from langptune import metrics, stage
from langptune.comparison import grid
from langptune.comparison.pages import to_html
from langptune.config.base import Strict
from langptune.data import contracts
from langptune.errors import UserError
from langptune.figures import style
from langptune.figures.bar import Bar
from langptune.figures.steering import intervals
from langptune.figures.tradeoff import tradeoff
from langptune.figures.weights import WeightLine, along_weights
from langptune.files import whole
from langptune.interpretability.frontier import Kept, kept
from langptune.interpretability.pages import cell, frontier_section, judge_section, weight_section
from langptune.interpretability.steering import EDITS
from langptune.interpretability.summary import MEASURES, Estimate, Measure, estimates, per_session
from langptune.interpretability.weights import COLUMNS, METRIC, by_weight, read_validation, summarise
from langptune.judge.summary import summary
from langptune.markup import markdown, table_row
from langptune.provenance import Record
from langptune.ranking.scoring import read_weight
from langptune.spreadsheet import cells as in_cells
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.config.workflow import Run
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Verdicts(Strict):
    """One judge's verdicts on one run."""

    judge: str
    title: str
    path: str


class RunEntry(grid.RunEntry):
    """A run of the comparison, with the files of its measures."""

    measures: str
    simulation: str
    steering: str
    steering_weights: str
    edit_reading: str = Field("", description="how edits of its profiles are read, if not as other texts")
    grid_path: str | None = Field(
        None,
        description="the file with the metrics of each weight on validation, where they are of the run's own texts",
    )
    verdicts: list[Verdicts] = []


class Spec(stage.StageSpec):
    """Measures of all runs in; tables and four figures out."""

    title: str
    facts: list[str] = Field(description="sentences above the table")
    runs: Annotated[list[RunEntry], Field(min_length=1)]
    reference: str
    accuracy_of: str | None = Field(None, description="null: the method with the best accuracy")
    steerability_of: str
    main_metric: str
    candidates: int
    bootstrap: int
    confidence: float
    seed: int
    table_csv_out: str
    table_md_out: str
    table_html_out: str
    judges_out: str
    frontier_csv_out: str
    weights_csv_out: str
    tradeoff_out: list[str]
    steering_out: list[str]
    frontier_out: list[str]
    weights_out: list[str]


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    from langptune.workflow.comparison import run_entry
    from langptune.workflow.targets import MEASURES as FILES

    how, measured = project.config.comparison, project.config.interpretability
    trained = any(run.method == "langptune" for run in project.readable_runs(job.dataset))
    verifier, reader = (project.models[name].title for name in (project.workflow.verifier, project.workflow.reader))
    return {
        "title": f"Interpretability: {project.datasets[job.dataset].title}",
        "facts": [
            f"Claims about persons and themes are verified by {verifier}; the reader of the forward simulation is "
            f"{reader}, untrained."
        ],
        "runs": [
            {
                **run_entry(project, run),
                **{name: project.measured(run, name) for name in FILES},
                **_grid(project, run),
                **_edit_reading(project, run),
                "verdicts": [
                    {"judge": judge, "title": project.judges[judge].title, "path": path}
                    for judge, path in project.judged(run).items()
                ],
            }
            for run in project.readable_runs(job.dataset)
        ],
        "reference": measured.reference,
        "accuracy_of": measured.accuracy_of or ("langptune" if trained else None),
        "steerability_of": measured.steerability_of or measured.reference,
        "main_metric": how.main_metric,
        "candidates": measured.candidates,
        "bootstrap": how.bootstrap,
        "confidence": how.confidence,
        "seed": how.seed,
    }


def _edit_reading(project: Project, run: Run) -> dict[str, str]:
    """How edits of a run's profiles are read; empty if they are read as other texts."""
    used = project.methods[run.method].reads_edits(project.methods)
    parts = [f"untrained decoder {used.untrained:g}"] if used.untrained else []
    parts += [] if used.denials is None else [f"denials {used.denials:g}"]
    return {"edit_reading": ", ".join(parts)} if parts else {}


def _grid(project: Project, run: Run) -> dict[str, str]:
    """The file of the weight that was chosen for a run; a shuffled profile is another text than those that chose it."""
    weight = project.paths.run_weight(run)
    return {"grid_path": weight} if isinstance(weight, str) and not project.workflow.shuffled(run.method) else {}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=1000, minutes=20)


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Gather, estimate, write."""
    rows: dict[str, list[RunEntry]] = {}
    for run in spec.runs:
        rows.setdefault(f"{run.method}/{run.models}", []).append(run)
    references = _references(rows, spec.reference, "reference")
    values, sessions = _values(rows)
    accuracy = {name: _accuracy(runs, spec.main_metric) for name, runs in rows.items()}
    better = metrics.direction(spec.main_metric)
    main = Measure(spec.main_metric, spec.main_metric, better, "Truth", 4, "on all test sessions, as in the comparison")
    measures = [main, *MEASURES]
    tables = {one.key: {name: values[name][one.key] for name in rows} for one in MEASURES} | {main.key: accuracy}
    estimated = estimates(measures, tables, references, spec.bootstrap, spec.confidence, spec.seed)
    frontier = _frontier(spec, main, rows, tables)
    chosen = {name: [read_weight(run.weight or 0.0, run.weight_path) for run in runs] for name, runs in rows.items()}
    weighed = _weighed(rows, chosen, sessions, spec)
    judged = _judged(rows, spec)
    _write_csv(spec.table_csv_out, measures, rows, estimated)
    _write_judges(spec.judges_out, judged)
    _write_frontier(spec.frontier_csv_out, rows, estimated, frontier)
    _write_weights(spec.weights_csv_out, rows, weighed)
    text = _markdown(spec, measures, rows, estimated, judged, len(sessions))
    steered = {edit: {name: one.mean for name, one in estimated[f"steer_{edit}"].items()} for edit in EDITS}
    sections = [*_kept(spec, rows, estimated, frontier), *weight_section(_titles(rows), weighed, chosen, steered)]
    text += "\n".join(sections)
    for path, content in ((spec.table_md_out, text), (spec.table_html_out, to_html(text, spec.title))):
        with whole(path) as part:
            part.write_text(content, encoding="utf-8")
    _draw(spec, main, rows, estimated)
    _draw_weights(spec, rows, weighed)
    record.note(methods=list(rows), sessions=len(sessions))
    log(f"{len(rows)} methods, {len(sessions)} sessions, {len(judged)} pairs of judge and method")


def _references(rows: dict[str, list[RunEntry]], method: str, key: str) -> dict[str, str]:
    """Row -> the row of a method with which it is compared.

    A row is compared with the reference of its own models: drift, for example, is from the same untrained encoder.

    Raises:
        UserError: no run of the method was measured.
    """
    by_models = {runs[0].models: name for name, runs in rows.items() if runs[0].method == method}
    if not by_models:
        raise UserError(f"interpretability.{key}: '{method}' is not among the methods measured")
    return {name: by_models[grid.own_reference(runs[0].models, list(by_models))] for name, runs in rows.items()}


def _frontier(
    spec: Spec, main: Measure, rows: dict[str, list[RunEntry]], tables: dict[str, dict[str, np.ndarray]]
) -> dict[str, tuple[dict[str, str], dict[str, Kept]]]:
    """Measure -> the reference of each row, and the share of its mean that the row keeps.

    Where a lower accuracy is better, no share is reported.
    """
    best = max(rows, key=lambda name: main.better * np.nanmean(tables[main.key][name]))
    accurate = _references(rows, spec.accuracy_of or rows[best][0].method, "accuracy_of")
    steerable = _references(rows, spec.steerability_of, "steerability_of")
    keys = ([main.key] if main.better > 0 else []) + [f"steer_{edit}" for edit in EDITS]
    out = {}
    for key in keys:
        references = accurate if key == main.key else steerable
        out[key] = references, kept(tables[key], references, spec.bootstrap, spec.confidence, spec.seed)
    return out


def _weighed(
    rows: dict[str, list[RunEntry]], chosen: dict[str, list[float]], sessions: np.ndarray, spec: Spec
) -> dict[str, list[dict[str, Any]]]:
    """Row -> accuracy on validation and steering at each weight of popularity."""
    out = {}
    for name, runs in rows.items():
        steering = [by_weight(contracts.read_parquet(run.steering_weights), sessions.tolist()) for run in runs]
        validations = [read_validation(run.grid_path) for run in runs if run.grid_path is not None]
        out[name] = summarise(name, steering, chosen[name], validations, spec.bootstrap, spec.confidence, spec.seed)
    return out


def _titles(rows: dict[str, list[RunEntry]]) -> dict[str, str]:
    """Row -> its name in tables and figures: the method's title, with the models where there are several."""
    several = len({runs[0].models for runs in rows.values()}) > 1
    return {name: f"{runs[0].title} ({runs[0].models})" if several else runs[0].title for name, runs in rows.items()}


def _values(rows: dict[str, list[RunEntry]]) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Row -> measure -> float ``[S, R]``, and the sessions of all runs.

    Raises:
        UserError: runs have different sessions.
    """
    out, first = {}, None
    for name, runs in rows.items():
        tables = []
        for run in runs:
            read = [contracts.read_parquet(path) for path in (run.measures, run.simulation, run.steering)]
            sessions, table = per_session(*read)
            if first is None:
                first = sessions
            if not np.array_equal(first, sessions):
                raise UserError(f"{run.measures}: other sessions than the first run's; rerun the measures")
            tables.append(table)
        out[name] = {measure.key: np.stack([t[measure.key] for t in tables], axis=1) for measure in MEASURES}
    assert first is not None
    return out, first


def _accuracy(runs: list[RunEntry], metric: str) -> np.ndarray:
    return np.stack(
        [contracts.read_parquet(run.metrics_path).sort("session")[metric].to_numpy() for run in runs], axis=1
    )


def _judged(rows: dict[str, list[RunEntry]], spec: Spec) -> list[dict[str, Any]]:
    """One line per row and judge."""
    out, names = [], _titles(rows)
    for name, runs in rows.items():
        titles = {verdicts.judge: verdicts.title for run in runs for verdicts in run.verdicts}
        if not titles:
            continue
        tables = [
            contracts.read_parquet(verdicts.path).with_columns(judge=pl.lit(verdicts.judge), run_seed=pl.lit(run.seed))
            for run in runs
            for verdicts in run.verdicts
        ]
        verdicts = summary(pl.concat(tables, how="vertical_relaxed"), spec.bootstrap, spec.confidence, spec.seed)
        for judge, line in verdicts["judges"].items():
            out.append({"method": names[name], "judge": titles[judge], **line, "agreement": verdicts["agreement"]})
    return out


def _save(path: str, table: pl.DataFrame) -> None:
    """A table as CSV for people; NaN becomes an empty cell."""
    with whole(path) as part:
        in_cells(table.with_columns(pl.col(pl.Float64).fill_nan(None))).write_csv(part, float_precision=6)


def _write_csv(
    path: str, measures: list[Measure], rows: dict[str, list[RunEntry]], estimated: dict[str, dict[str, Estimate]]
) -> None:
    lines = [
        {
            "method": runs[0].method,
            "models": runs[0].models,
            "seeds": len(runs),
            "measure": measure.key,
            "mean": (one := estimated[measure.key][name]).mean,
            "low": one.low,
            "high": one.high,
            "difference": one.difference,
            "difference_low": one.difference_low,
            "difference_high": one.difference_high,
            "values": one.values,
            "pairs": one.pairs,
            "paired_difference": one.paired,
            "p": one.p,
            "p_holm": one.p_holm,
        }
        for name, runs in rows.items()
        for measure in measures
    ]
    _save(path, pl.DataFrame(lines))


def _write_judges(path: str, judged: list[dict[str, Any]]) -> None:
    with whole(path) as part:
        in_cells(pl.DataFrame(judged, infer_schema_length=None)).write_csv(part, float_precision=6)


def _write_frontier(
    path: str,
    rows: dict[str, list[RunEntry]],
    estimated: dict[str, dict[str, Estimate]],
    frontier: dict[str, tuple[dict[str, str], dict[str, Kept]]],
) -> None:
    lines = [
        {
            "method": runs[0].method,
            "models": runs[0].models,
            "seeds": len(runs),
            "measure": key,
            "mean": (one := estimated[key][name]).mean,
            "low": one.low,
            "high": one.high,
            "reference": rows[references[name]][0].method,
            "reference_mean": estimated[key][references[name]].mean,
            "kept": (share := shares[name]).share,
            "kept_low": share.low,
            "kept_high": share.high,
        }
        for name, runs in rows.items()
        for key, (references, shares) in frontier.items()
    ]
    _save(path, pl.DataFrame(lines))


def _write_weights(path: str, rows: dict[str, list[RunEntry]], weighed: dict[str, list[dict[str, Any]]]) -> None:
    lines = [
        {"method": runs[0].method, "models": runs[0].models, "seeds": len(runs), **line}
        for name, runs in rows.items()
        for line in weighed[name]
    ]
    _save(path, pl.DataFrame(lines, schema=COLUMNS))


def _markdown(
    spec: Spec,
    measures: list[Measure],
    rows: dict[str, list[RunEntry]],
    estimated: dict[str, dict[str, Estimate]],
    judged: list[dict[str, Any]],
    sessions: int,
) -> str:
    percent = f"{100 * spec.confidence:g}%"
    names = _titles(rows)
    blocks = {measure.block: [one for one in measures if one.block == measure.block] for measure in measures}
    tests = {
        block: sum(not np.isnan(one.p) for measure in own for one in estimated[measure.key].values())
        for block, own in blocks.items()
    }
    reference = markdown(next(runs[0].title for runs in rows.values() if runs[0].method == spec.reference))
    if len({runs[0].models for runs in rows.values()}) > 1:
        reference += " of the same models"
    parts = [f"# {markdown(spec.title)}", "", *map(markdown, spec.facts), ""]
    parts += [
        f"{sessions} test sessions, drawn at random and the same for every method; mean [{percent} bootstrap interval "
        f"over sessions and seeds]. ▲ ▼: above, below {reference}; p < {1 - spec.confidence:.4g} in a sign-flip "
        "permutation test paired by session, Holm-corrected over all comparisons of a block "
        f"({', '.join(f'{block} {count}' for block, count in tests.items())}). "
        f"The reader chooses from {spec.candidates} items, so chance is {1 / spec.candidates:.2f}.",
        "",
    ]
    for block, own in blocks.items():
        heads = [measure.title + {1: " ↑", -1: " ↓", 0: ""}[measure.better] for measure in own]
        parts += [f"## {block}", "", table_row(["method", *heads]), "|---|" + "---:|" * len(own)]
        for name in rows:
            cells = [cell(estimated[measure.key][name], measure.digits, spec.confidence) for measure in own]
            parts.append(table_row([markdown(names[name]), *cells]))
        parts += ["", *(f"- **{measure.title}**: {measure.meaning}" for measure in own), ""]
        if block == "Steering":
            parts += _readings(rows, names)
    if judged:
        parts += judge_section(reference, judged, spec.confidence)
    return "\n".join(parts) + "\n"


def _readings(rows: dict[str, list[RunEntry]], names: dict[str, str]) -> list[str]:
    """A paragraph on the methods whose edits are read in another way than other texts; empty if there are none."""
    read = [f"{markdown(names[name])} ({runs[0].edit_reading})" for name, runs in rows.items() if runs[0].edit_reading]
    if not read:
        return []
    return [
        f"Edits are read with weights of their own (docs/interpretability.md, Reading edits): {'; '.join(read)}.",
        "",
    ]


def _kept(
    spec: Spec,
    rows: dict[str, list[RunEntry]],
    estimated: dict[str, dict[str, Estimate]],
    frontier: dict[str, tuple[dict[str, str], dict[str, Kept]]],
) -> list[str]:
    """The section on the shares of the references' accuracy and steerability."""
    title = lambda name: rows[name][0].title  # noqa: E731
    steerable = next(iter(frontier[f"steer_{EDITS[0]}"][0].values()))
    meaning = f"The effect of edits as a share of that of {title(steerable)}"
    if spec.main_metric in frontier:
        accurate = next(iter(frontier[spec.main_metric][0].values()))
        meaning = f"{metrics.title(spec.main_metric)} as a share of that of {title(accurate)}; t{meaning[1:]}"
    shares = {
        metrics.title(key) if key == spec.main_metric else key.removeprefix("steer_"): own
        for key, (_, own) in frontier.items()
    }
    obeyed = {f"{edit} obeyed": estimated[f"obeyed_{edit}"] for edit in EDITS}
    return frontier_section(_titles(rows), meaning, shares, obeyed, spec.confidence)


def _draw(
    spec: Spec, main: Measure, rows: dict[str, list[RunEntry]], estimated: dict[str, dict[str, Estimate]]
) -> None:
    names = _titles(rows)
    bar = lambda key: [  # noqa: E731
        Bar(name, names[name], rows[name][0].group, one.mean, one.low, one.high)
        for name, one in estimated[key].items()
        if not np.isnan(one.mean)
    ]
    metric = metrics.title(main.key)
    for path in spec.tradeoff_out:
        panels = {
            "Faithful: share of claims supported": bar("supported"),
            "Own history against strangers'": bar("advantage"),
            "Forward simulation": bar("chosen"),
        }
        style.save(tradeoff(bar(main.key), panels, metric, main.better), path)
    for path in spec.frontier_out:
        panels = {
            f"{measure.title}: change of the AUC": bar(measure.key)
            for measure in MEASURES
            if measure.key.startswith("steer_")
        }
        panels |= {"Faithful: share of claims supported": bar("supported"), "Reading ease": bar("reading_ease")}
        style.save(tradeoff(bar(main.key), panels, metric, main.better), path)
    for path in spec.steering_out:
        panels = {measure.title: bar(measure.key) for measure in MEASURES if measure.key.startswith("steer_")}
        style.save(intervals(panels, "change of the AUC of the taste's items, counted as meant"), path)


def _draw_weights(spec: Spec, rows: dict[str, list[RunEntry]], weighed: dict[str, list[dict[str, Any]]]) -> None:
    names, lines = _titles(rows), []
    for name in rows:
        points = [line for line in weighed[name] if line["edit"] == "add" and line[f"validation_{METRIC}"] is not None]
        points = [line for line in points if not np.isnan(line["auc_change"])]
        if points:
            columns = ("weight", f"validation_{METRIC}", "auc_change", "low", "high")
            chosen = [line["chosen_by"] > 0 for line in points]
            lines.append(WeightLine(names[name], *([line[key] for line in points] for key in columns), chosen))
    for path in spec.weights_out:
        figure = along_weights(
            lines, f"{metrics.title(METRIC)} on validation", "change of the AUC after a taste is added"
        )
        style.save(figure, path)


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
