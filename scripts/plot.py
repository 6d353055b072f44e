"""Draw the figures of a comparison: means, gains over the reference, rank distributions, learning curves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import polars as pl
from pydantic import Field

from langptune import figures, metrics
from langptune.comparison import grid
from langptune.comparison.grid import RunEntry
from langptune.config.base import Strict
from langptune.data import contracts
from langptune.errors import UserError
from langptune.files import read_lines, read_plain
from langptune.provenance import Record, file_hash
from langptune.spreadsheet import plain
from langptune.stage import Log, StageSpec, run


class CurveEntry(Strict):
    """The curve of one trained run or phase."""

    key: str = Field(description="curves with the same one are seeds of one method or phase")
    title: str
    path: str = Field(description="curve.jsonl: a line per epoch or batch; skipped where it does not exist")


class PlotSpec(StageSpec):
    """Figures of one comparison; each ``*_out`` is a list of .png and .pdf paths of the same figure."""

    table_in: str = Field(description="table_long.csv of the comparison")
    gains_in: str = Field(description="gains.parquet of the comparison")
    contrasts_in: str | None = Field(None, description="contrasts.csv of the comparison, for contrasts_out")
    items_in: str | None = Field(None, description="items.parquet: the size of the catalogue")
    n_items: int | None = Field(None, description="the size of the catalogue, where there is no items_in")
    runs: Annotated[list[RunEntry], Field(min_length=1)] = Field(
        description="as in the comparison; missing files skipped"
    )
    curves: list[CurveEntry] = Field([], description="key, title, path of each trained run's curve.jsonl")
    phases: list[CurveEntry] = Field([], description="key, title, path of each trained phase's curve.jsonl")
    reference: str = Field(description="method that gains are measured against, each row's of the same models")
    main_metric: str = Field("ndcg@10", description="first panel of the means, and what is won and lost")
    second_metric: str | None = Field(None, description="second panel of the means; null: none")
    curve_metric: str = Field("val_ndcg@10", description="key of curve.jsonl that is drawn over `epoch`")
    means_out: list[str] = Field(description="means with intervals")
    gains_out: list[str] = Field(description="wins, losses and rank moves against the reference")
    ranks_out: list[str] = Field(description="cumulative rank distributions")
    curves_out: list[str] = Field([], description="learning curves")
    training_out: list[str] = Field([], description="training curves of encoders and decoders")
    contrasts_out: list[str] = Field([], description="differences of the named pairs; needs contrasts")
    confidence: float = Field(0.95, description="1 - confidence is the level below which a contrast is filled")
    published_out: list[str] = Field([], description="published numbers beside ours, from the table's column")


def plot(spec: PlotSpec, record: Record, log: Log) -> None:
    """Read what the comparison wrote, draw, save.

    Raises:
        UserError: a table of other runs or without the metric, a curve without its keys, an odd suffix.
    """
    # Types from all rows: a column of published numbers may begin with many empty cells.
    table = contracts.read_csv(spec.table_in, infer_schema_length=None).filter(pl.col("mean").is_not_null())
    labels = _labels(spec.runs)
    gained = contracts.read_parquet(spec.gains_in).drop_nulls()
    for path, frame in ((spec.table_in, table), (spec.gains_in, gained)):
        unknown = set(frame.select("method", "models").iter_rows()) - set(labels)
        if unknown:
            raise UserError(
                f"{path}: holds {'/'.join(min(unknown))}, which is not among the runs; rerun the comparison"
            )
    panels = {}
    for metric in dict.fromkeys(filter(None, [spec.main_metric, spec.second_metric])):
        rows = table.filter(pl.col("metric") == metric)
        if rows.is_empty():
            raise UserError(f"{spec.table_in}: holds no metric '{metric}'; add it to comparison.metrics")
        panels[metrics.title(metric)] = [
            figures.Bar(*_named(row, labels), row["group"], row["mean"], row["low"], row["high"])
            for row in rows.iter_rows(named=True)
        ]
    better = metrics.direction(spec.main_metric)
    _save(figures.bars(panels, better), spec.means_out)

    groups = {(entry.method, entry.models): entry.group for entry in spec.runs}
    titles = {(entry.method, entry.models): entry.title for entry in spec.runs}
    bases = list(dict.fromkeys(key for key in labels if key[0] == spec.reference))
    if not bases:
        raise UserError(f"reference '{spec.reference}' is not among the runs")
    against = labels[bases[0]] if len(bases) == 1 else f"{titles[bases[0]]} of the same models"
    gains = [
        figures.Gain(labels[key], groups[key], better * frame["difference"].to_numpy(), frame["rank_gain"].to_numpy())
        for key, frame in gained.group_by("method", "models", maintain_order=True)
        if key not in bases
    ]
    by = metrics.title(spec.main_metric)
    if better < 0:  # shares are of sessions that improve, so that the hint about the values would mislead
        by = f"improvement in {by.partition(' (')[0].lower()}"
    _save(figures.gains(gains, against, by), spec.gains_out)

    collected = grid.collect(spec.runs, [spec.main_metric], allow_missing=True)
    ranks = [
        figures.Ranks(labels[row.method, row.models], row.group, row.ranks.ravel())
        for row in collected.rows
        if not row.missing
    ]
    if (spec.items_in is None) == (spec.n_items is None):
        raise UserError("plot.py --spec: give either items_in or n_items")
    n_items = len(contracts.read(spec.items_in, "items", ["item"])) if spec.items_in else spec.n_items
    _save(figures.rank_distributions(ranks, n_items), spec.ranks_out)

    curves = [_curve(entry, spec.curve_metric) for entry in spec.curves if Path(entry.path).exists()]
    # A closed-form model has no epochs: one point says nothing about when it stopped.
    curves = [curve for curve in curves if curve.epochs.max() > 0]
    _save(figures.learning_curves(curves, metrics.title(spec.curve_metric.removeprefix("val_"))), spec.curves_out)

    phases = [
        figures.Training(entry.key, entry.title, read_lines(entry.path))
        for entry in spec.phases
        if Path(entry.path).exists()
    ]
    _save(figures.training(phases), spec.training_out)

    if spec.contrasts_out:
        if spec.contrasts_in is None:
            raise UserError("contrasts_out: needs contrasts_in, the contrasts.csv of the comparison")
        _save(figures.contrasts(_differences(spec)), spec.contrasts_out)

    if spec.published_out:
        _save(figures.published(_pairs(table, labels)), spec.published_out)

    read = [entry.metrics_path for entry in spec.runs] + [entry.path for entry in [*spec.curves, *spec.phases]]
    record.note(read={path: file_hash(path) for path in read if Path(path).exists()})
    log(f"figures of {len(ranks)} rows and {len(curves)} learning curves")


def _labels(entries: list[RunEntry]) -> dict[tuple[str, str], str]:
    """(method, models) -> title, with the models behind it only where a method stands with several."""
    keys = list(dict.fromkeys((entry.method, entry.models) for entry in entries))
    titles = {(entry.method, entry.models): entry.title for entry in entries}
    several = {method for method, _ in keys if sum(other == method for other, _ in keys) > 1}
    return {key: f"{titles[key]}\n{key[1]}" if key[0] in several else titles[key] for key in keys}


def _named(row: dict, labels: dict[tuple[str, str], str]) -> tuple[str, str]:
    """Key and label of a table's row."""
    return f"{row['method']}/{row['models']}", labels[row["method"], row["models"]]


def _pairs(table: pl.DataFrame, labels: dict[tuple[str, str], str]) -> dict[str, list[figures.Pair]]:
    """Metric's title -> the rows that have a published number by it."""
    panels: dict[str, list[figures.Pair]] = {}
    if "published" in table.columns:
        for row in table.filter(pl.col("published").is_not_null()).iter_rows(named=True):
            numbers = (row[key] for key in ("published", "mean", "low", "high"))
            pair = figures.Pair(*_named(row, labels), row["group"], *numbers)
            panels.setdefault(metrics.title(row["metric"]), []).append(pair)
    return panels


def _differences(spec: PlotSpec) -> dict[str, list[figures.Difference]]:
    """Title of the main metric, and of the log rank where it is compared -> the contrasts that have run."""
    table = contracts.read_csv(spec.contrasts_in, infer_schema_length=None)
    names = dict.fromkeys([spec.main_metric, *(["log-rank"] if "log-rank" in table["metric"] else [])])
    titles = {(entry.method, entry.models): entry.title for entry in spec.runs}
    several = len(table.select("method", "models", "against_models").unique()) > table["contrast"].n_unique()
    panels: dict[str, list[figures.Difference]] = {}
    for name in names:
        members = panels.setdefault(metrics.title(name), [])
        for row in table.filter(pl.col("metric") == name, pl.col("difference").is_not_null()).iter_rows(named=True):
            pair = f"{titles[row['method'], row['models']]} – {titles[row['against'], row['against_models']]}"
            if row["beyond"]:
                names = {method: title for (method, _), title in titles.items()}
                pair = f"({pair}) – ({names[row['beyond']]} – {names[row['beyond_against']]})"
            lines = [plain(str(row["title"] or "")), pair, row["models"] if several else ""]
            members.append(
                figures.Difference(
                    key="/".join((row["contrast"], row["models"], row["against_models"])),
                    label="\n".join(filter(None, lines)),
                    difference=row["difference"],
                    low=row["difference_low"],
                    high=row["difference_high"],
                    better=metrics.direction(name),
                    significant=row["p_permutation_holm"] < 1 - spec.confidence,
                )
            )
    return panels


def _curve(entry: CurveEntry, metric: str) -> figures.Curve:
    points = []
    for number, text in enumerate(read_plain(entry.path).decode().splitlines(), start=1):
        try:
            line = json.loads(text)
            if line.get(metric) is not None:  # epochs without a validation carry the loss alone
                points.append((float(line["epoch"]), float(line[metric])))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{entry.path}: line {number}: no epoch and {metric} in it ({error})") from None
    if not points:
        raise UserError(f"{entry.path}: no line holds '{metric}'; retrain the run or set curve_metric")
    epochs, values = np.array(sorted(points)).T
    return figures.Curve(entry.key, entry.title, epochs, values)


def _save(figure: figures.Figure, paths: list[str]) -> None:
    for path in paths:
        figures.save(figure, path)


if __name__ == "__main__":
    run(PlotSpec, plot, __file__)
