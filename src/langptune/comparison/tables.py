"""A comparison as CSV files: wide and long tables, tests and contrasts.

Cells have 12 significant digits (further digits depend on the order of summation). A text that a spreadsheet would
compute is prefixed by an apostrophe (``langptune.spreadsheet``). Nothing in a table depends on time, host or locale, so
the same runs and seed give the same bytes.
"""

from __future__ import annotations

import csv
import io
import math

from langptune import spreadsheet
from langptune.comparison.statistics import Against, Line, Results
from langptune.metrics import direction

MISSING = "missing"
TESTED = (
    *("difference", "difference_low", "difference_high", "detectable", "d_z", "wins", "ties", "losses"),
    *("p_permutation", "p_permutation_holm", "p_ttest", "p_ttest_holm", "p_wilcoxon", "p_wilcoxon_holm"),
)
"""Columns of one row against another on one metric."""


def wide_csv(results: Results) -> str:
    """One line per row of the table; missing numbers are empty cells.

    Columns: group, method, title, models, status (complete, partial or missing), seeds, seeds_expected,
    sessions, trials; weight (of popularity in the score, or of a fusion's second method) where some row has one;
    ``METRIC``, ``METRIC_low``, ``METRIC_high`` for each metric, ``METRIC_published`` where such a number is known for
    some row; and for the main metric difference (to the reference), difference_low, difference_high, p, p_holm.
    """
    metrics = results.grid.metrics
    head = _identity_heads(results)
    for m, name in enumerate(metrics):
        ends = ["", "_low", "_high", *(["_published"] if m in results.published_metrics else [])]
        head += [name + end for end in ends]
    head += ["difference", "difference_low", "difference_high", "p", "p_holm"]
    body = []
    for line in results.lines:
        cells = [*_identity(results, line)]
        for m in range(len(metrics)):
            cells += [line.means[m], line.low[m], line.high[m], *published_cells(results, line, m)]
        if line.against:
            main = line.against[results.main]
            cells += [main.effect.difference, main.low, main.high, main.effect.p_permutation, main.p_holm]
        else:
            cells += [None] * 5
        body.append(cells)
    return _csv(head, body)


def long_csv(results: Results) -> str:
    """One line per row of the table and metric: the wide table's first columns, metric, mean, low, high; then
    published, where such a number is known for some row."""
    head = _identity_heads(results)
    head += ["metric", "mean", "low", "high", *(["published"] if results.published else [])]
    body = [
        [
            *(*_identity(results, line), name, line.means[m], line.low[m], line.high[m]),
            *([results.published.get((line.row.key, m))] if results.published else []),
        ]
        for line in results.lines
        for m, name in enumerate(results.grid.metrics)
    ]
    return _csv(head, body)


def comparisons_csv(results: Results) -> str:
    """One line per tested row and metric: effect sizes, their intervals, and all p-values.

    ``better`` says whether a higher or a lower value of the metric is better. ``reference_models`` are those of the run
    that the row is tested against. ``detectable`` is the smallest difference that the sample would probably have shown
    (``significance.detectable``). ``p_permutation`` is the main test; ``*_holm`` is corrected over the rows within the
    metric.
    """
    head = ["method", "models", "metric", "better", "reference", "reference_models", "sessions", "seeds"]
    head += ["reference_seeds", "mean", "reference_mean", *TESTED]
    body = []
    for line in results.lines:
        base = line.reference
        for m, cell in enumerate(line.against):
            name = results.grid.metrics[m]
            row = [line.row.method, line.row.models, name, _better(name), base.method, base.models]
            row += [cell.effect.n, len(line.row.seeds), len(base.seeds), line.means[m], base.values[:, :, m].mean()]
            body.append([*row, *_tested(cell)])
    return _csv(head, body)


def contrasts_csv(results: Results) -> str:
    """One line per contrast, pair of models and metric: effect sizes, their intervals, and all p-values.

    ``better`` says whether a higher or a lower value of the metric is better. ``seeds`` is how many the rows share;
    means and the difference (``method`` minus ``against``) are over those. With ``beyond``, ``mean`` is that of
    ``method`` minus ``against``, ``against_mean`` that of ``beyond`` minus ``beyond_against``, and ``difference`` the
    first less the second. ``detectable`` as in ``comparisons_csv``. ``*_holm`` is corrected over all contrasts within
    the metric. Cells are empty if the sides share no seed that has run.
    """
    head = ["contrast", "title", "method", "models", "against", "against_models", "beyond", "beyond_against"]
    head += ["metric", "better", "status", "sessions", "seeds", "seeds_expected", "mean", "against_mean", *TESTED]
    body = []
    for one in results.contrasts:
        status = MISSING if not one.tests else "complete" if one.seeds == one.expected else "partial"
        for m, name in enumerate(results.grid.metrics):
            row = [one.name, one.title, one.of.method, one.of.models, one.against.method, one.against.models]
            row += [*(row.method for row in one.beyond)] or [None, None]
            row += [name, _better(name), status]
            row += [len(results.grid.sessions) if one.tests else None, one.seeds, one.expected]
            if one.tests:
                row += [one.means[m], one.against_means[m], *_tested(one.tests[m])]
            body.append([*row, *[None] * (len(head) - len(row))])
    return _csv(head, body)


def _tested(cell: Against) -> list[float | None]:
    """The cells of ``TESTED``."""
    effect = cell.effect
    return [
        *(effect.difference, cell.low, cell.high, effect.detectable, effect.d_z),
        *(effect.wins, effect.ties, effect.losses),
        *(effect.p_permutation, cell.p_holm, effect.p_ttest, cell.p_ttest_holm),
        *(effect.p_wilcoxon, cell.p_wilcoxon_holm),
    ]


def _better(metric: str) -> str:
    return "higher" if direction(metric) > 0 else "lower"


def _identity(results: Results, line: Line) -> list:
    row = line.row
    status = MISSING if row.missing else "complete" if row.seeds == row.expected else "partial"
    sessions = None if row.missing else len(results.grid.sessions)
    return [
        row.group,
        row.method,
        row.title,
        row.models,
        status,
        len(row.seeds),
        len(row.expected),
        sessions,
        row.trials,
        *weight_cells(results, line),
    ]


def _identity_heads(results: Results) -> list[str]:
    head = ["group", "method", "title", "models", "status", "seeds", "seeds_expected", "sessions", "trials"]
    return [*head, *(["weight"] if weighted(results) else [])]


def weighted(results: Results) -> bool:
    """Whether any row has a weight: of popularity beside a text, or of the second method in a fusion."""
    return any(line.row.weights for line in results.lines)


def weight_cells(results: Results, line: Line) -> list[str]:
    """The cell of the weight, if the table has this column: one number, or those of all seeds."""
    weights = [f"{weight:g}" for weight in line.row.weights]
    return [", ".join(weights if len(set(weights)) > 1 else weights[:1])] if weighted(results) else []


def published_cells(results: Results, line: Line, metric: int) -> list[float | None]:
    """The cell of a metric's published number; no cell if no row has one."""
    return [results.published.get((line.row.key, metric))] if metric in results.published_metrics else []


def _csv(head: list[str], body: list[list]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[_cell(value) for value in cells] for cells in body])
    return stream.getvalue()


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.12g}" if isinstance(value, float) else spreadsheet.cell(str(value))
