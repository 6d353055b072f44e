"""The inputs of a comparison's figures."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import polars as pl
from pydantic import Field

from langptune.comparison.grid import RunEntry
from langptune.config.base import Strict
from langptune.data import contracts
from langptune.errors import UserError
from langptune.stage import StageSpec


class CurveEntry(Strict):
    """The curve of one trained run or phase."""

    key: str = Field(description="curves with the same one are seeds of one method or phase")
    title: str
    path: str = Field(description="curve.jsonl: a line per epoch or batch; skipped where it does not exist")


class Comparison(StageSpec):
    """The runs of a comparison and the files that it wrote. A figure needs only those that its ``READS`` names."""

    table_in: str | None = Field(None, description="table_long.csv of the comparison")
    gains_in: str | None = Field(None, description="gains.parquet of the comparison")
    contrasts_in: str | None = Field(None, description="contrasts.csv of the comparison")
    slices_in: str | None = Field(None, description="slices.csv of the comparison")
    lists_in: str | None = Field(None, description="lists.csv of the comparison")
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
    confidence: float = Field(0.95, description="1 - confidence is the level below which a contrast is filled")

    @cached_property
    def labels(self) -> dict[tuple[str, str], str]:
        """(method, models) -> title; the models are on a second line only where a method has several."""
        keys = list(dict.fromkeys((entry.method, entry.models) for entry in self.runs))
        several = {method for method, _ in keys if sum(other == method for other, _ in keys) > 1}
        return {key: f"{self.titles[key]}\n{key[1]}" if key[0] in several else self.titles[key] for key in keys}

    @cached_property
    def titles(self) -> dict[tuple[str, str], str]:
        """(method, models) -> the method's title."""
        return {(entry.method, entry.models): entry.title for entry in self.runs}

    @cached_property
    def groups(self) -> dict[tuple[str, str], str]:
        """(method, models) -> the method's group."""
        return {(entry.method, entry.models): entry.group for entry in self.runs}

    def named(self, row: dict) -> tuple[str, str]:
        """Key and label of a row of the table."""
        return f"{row['method']}/{row['models']}", self.labels[row["method"], row["models"]]

    @cached_property
    def table(self) -> pl.DataFrame:
        """The long table, a row per method, models and metric, without rows that have no mean.

        Raises:
            UserError: it is not among the inputs, or it has a row that is not among the runs.
        """
        # Types from all rows: a column of published numbers may begin with many empty cells.
        frame = contracts.read_csv(self._given("table_in"), infer_schema_length=None)
        return self._of_the_runs(frame.filter(pl.col("mean").is_not_null()), "table_in")

    @cached_property
    def gains(self) -> pl.DataFrame:
        """Differences to the reference, a row per method, models and session.

        Raises:
            UserError: they are not among the inputs, or a row is not among the runs.
        """
        return self._of_the_runs(contracts.read_parquet(self._given("gains_in")).drop_nulls(), "gains_in")

    @cached_property
    def contrasts(self) -> pl.DataFrame:
        """The tested pairs of methods, a row per contrast, models and metric.

        Raises:
            UserError: they are not among the inputs.
        """
        return contracts.read_csv(self._given("contrasts_in"), infer_schema_length=None)

    @cached_property
    def slices(self) -> pl.DataFrame:
        """The metrics on parts of the sessions, a row per slice, method, models and metric.

        Raises:
            UserError: they are not among the inputs, or a row is not among the runs.
        """
        frame = contracts.read_csv(self._given("slices_in"), infer_schema_length=None)
        return self._of_the_runs(frame, "slices_in")

    @cached_property
    def lists(self) -> pl.DataFrame:
        """The metrics of recommended lists, a row per metric, method and models; without those that are left out.

        Raises:
            UserError: they are not among the inputs, or a row is not among the runs.
        """
        frame = contracts.read_csv(self._given("lists_in"), infer_schema_length=None)
        return self._of_the_runs(frame.filter(pl.col("method").is_not_null()), "lists_in")

    @cached_property
    def catalogue(self) -> int:
        """Number of ranked items.

        Raises:
            UserError: neither or both of ``items_in`` and ``n_items`` are given.
        """
        if (self.items_in is None) == (self.n_items is None):
            raise UserError("plot.py --spec: give either items_in or n_items")
        return len(contracts.read(self.items_in, "items", ["item"])) if self.items_in else self.n_items

    def _given(self, field: str) -> str:
        if (path := getattr(self, field)) is None:
            raise UserError(f"plot.py --spec: {field} is missing; a figure to be drawn reads it")
        return path

    def _of_the_runs(self, frame: pl.DataFrame, field: str) -> pl.DataFrame:
        if unknown := set(frame.select("method", "models").iter_rows()) - set(self.labels):
            raise UserError(
                f"{getattr(self, field)}: holds {'/'.join(min(unknown))}, which is not among the runs; rerun the "
                "comparison"
            )
        return frame
