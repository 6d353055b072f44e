"""A comparison as text: wide and long CSV for machines, Markdown and LaTeX for people.

CSV cells carry 12 significant digits (beyond that lies the order of summation), people see 4 decimals. A text that a
spreadsheet would compute has an apostrophe in front (``langptune.spreadsheet``).
Nothing in a table depends on time, host or locale, so the same runs and seed give the same bytes.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
import string
from collections.abc import Iterable
from itertools import groupby

from markdown_it import MarkdownIt

from langptune import spreadsheet
from langptune.comparison.results import Contrast, Line, Results
from langptune.markup import latex, markdown
from langptune.metrics import direction
from langptune.metrics import title as metric_title
from langptune.ranking.scoring import TEMPERATURE

MISSING = "missing"


def wide_csv(results: Results) -> str:
    """One line per row of the table; empty cells where there is no number.

    Columns: group, method, title, models, status (complete, partial or missing), seeds, seeds_expected,
    sessions, trials; weight (of popularity in the score) where some row has one; ``METRIC``, ``METRIC_low``,
    ``METRIC_high`` for each metric, ``METRIC_published`` where such a number is known for some row; and for
    the main metric difference (to the reference), difference_low, difference_high, p, p_holm.
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
            cells += [line.means[m], line.low[m], line.high[m], *_published(results, line, m)]
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

    ``better`` says whether a higher or a lower value of the metric is. ``reference_models`` are those of the run that
    the row is tested against. ``p_permutation`` is the main test;
    ``*_holm`` is corrected over the rows within the metric.
    """
    head = [
        "method",
        "models",
        "metric",
        "better",
        "reference",
        "reference_models",
        "sessions",
        "seeds",
        "reference_seeds",
    ]
    head += ["mean", "reference_mean", "difference", "difference_low", "difference_high", "d_z"]
    head += ["wins", "ties", "losses", "p_permutation", "p_permutation_holm", "p_ttest", "p_ttest_holm"]
    head += ["p_wilcoxon", "p_wilcoxon_holm"]
    body = []
    for line in results.lines:
        base = line.reference
        for m, cell in enumerate(line.against):
            effect = cell.effect
            row = [line.row.method, line.row.models, results.grid.metrics[m]]
            row += ["higher" if direction(results.grid.metrics[m]) > 0 else "lower", base.method, base.models]
            row += [
                effect.n,
                len(line.row.seeds),
                len(base.seeds),
                line.means[m],
                base.values[:, :, m].mean(),
            ]
            row += [
                effect.difference,
                cell.low,
                cell.high,
                effect.d_z,
                effect.wins,
                effect.ties,
                effect.losses,
            ]
            row += [effect.p_permutation, cell.p_holm, effect.p_ttest, cell.p_ttest_holm]
            body.append([*row, effect.p_wilcoxon, cell.p_wilcoxon_holm])
    return _csv(head, body)


def contrasts_csv(results: Results) -> str:
    """One line per contrast, pair of models and metric: effect sizes, their intervals, and all p-values.

    ``better`` says whether a higher or a lower value of the metric is. ``seeds`` is how many the rows share; means and
    the difference (``method`` minus ``against``) are over those. With ``beyond``, ``mean`` is that of ``method`` minus
    ``against``, ``against_mean`` that of ``beyond`` minus ``beyond_against``, and ``difference`` the first less the
    second. ``*_holm`` is corrected over all contrasts within the metric. Cells are empty where a side has not run.
    """
    head = ["contrast", "title", "method", "models", "against", "against_models", "beyond", "beyond_against"]
    head += ["metric", "better", "status"]
    head += ["sessions", "seeds", "seeds_expected", "mean", "against_mean", "difference", "difference_low"]
    head += ["difference_high", "d_z", "wins", "ties", "losses", "p_permutation", "p_permutation_holm", "p_ttest"]
    head += ["p_ttest_holm", "p_wilcoxon", "p_wilcoxon_holm"]
    body = []
    for one in results.contrasts:
        status = MISSING if not one.tests else "complete" if one.seeds == one.expected else "partial"
        for m, name in enumerate(results.grid.metrics):
            row = [one.name, one.title, one.of.method, one.of.models, one.against.method, one.against.models]
            row += [*(row.method for row in one.beyond)] or [None, None]
            row += [name, "higher" if direction(name) > 0 else "lower", status]
            row += [len(results.grid.sessions) if one.tests else None, one.seeds, one.expected]
            if one.tests:
                cell, effect = one.tests[m], one.tests[m].effect
                row += [one.means[m], one.against_means[m], effect.difference, cell.low, cell.high, effect.d_z]
                row += [effect.wins, effect.ties, effect.losses, effect.p_permutation, cell.p_holm]
                row += [effect.p_ttest, cell.p_ttest_holm, effect.p_wilcoxon, cell.p_wilcoxon_holm]
            body.append([*row, *[None] * (len(head) - len(row))])
    return _csv(head, body)


def to_markdown(results: Results, title: str, facts: list[str]) -> str:
    """The table for a README or a report.

    Args:
        results: the comparison.
        title: the dataset's title.
        facts: sentences about dataset, protocol and sample, printed above the table.
    """
    metrics, footnotes = results.grid.metrics, _footnotes(results)
    head = [
        "Method",
        "Models",
        "Seeds",
        "n",
        "Trials",
        *(["w"] if _weighted(results) else []),
        *_metric_heads(results),
        _p_head(results),
    ]
    out = [f"**{markdown(title)}**", "", *(f"{markdown(fact)}  " for fact in facts)]
    out += ["", _pipe(head), _pipe(["---", "---"] + ["---:"] * (len(head) - 2))]
    best = _best(results)
    for group, lines in groupby(results.lines, key=lambda line: line.row.group):
        out.append(_pipe([f"**{markdown(group.capitalize())}**"] + [""] * (len(head) - 1)))
        for line in lines:
            name = markdown(line.row.title)
            if line.row.key in footnotes:
                name += f" <sup>{footnotes[line.row.key]}</sup>"
            cells = [name, markdown(line.row.models), _seeds(line)]
            cells += ["", ""] if line.row.missing else [str(len(results.grid.sessions)), str(line.row.trials)]
            cells += _weight(results, line)
            for m in range(len(metrics)):
                if line.row.missing:
                    cells += [MISSING, *_told(results, line, m)]
                    continue
                mean = f"{line.means[m]:.4f}"
                mean = f"**{mean}**" if (line.row.key, m) in best else mean
                mark = {1: " ↑", -1: " ↓", 0: ""}[results.mark(line, m)]
                cells += [f"{mean} [{line.low[m]:.4f}, {line.high[m]:.4f}]{mark}", *_told(results, line, m)]
            out.append(_pipe([*cells, _p(results, line)]))
    out.append("")
    out += [f"- {markdown(note)}" for note in explanations(results)]
    out += [f"- <sup>{mark}</sup> {markdown(note)}" for mark, note in _notes(results, footnotes)]
    if results.contrasts:
        head = _contrast_heads(results)
        out += ["", "**Contrasts**", "", _pipe(head), _pipe(["---", "---"] + ["---:"] * (len(head) - 2))]
        for one in results.contrasts:
            cells = [markdown(_pair(one)), markdown(_pair_models(one)), _pair_seeds(one)]
            for m in range(len(metrics)):
                cell = MISSING
                if one.tests:
                    told = one.tests[m]
                    mark = {1: " ↑", -1: " ↓", 0: ""}[results.mark(one, m)]
                    cell = f"{told.effect.difference:+.4f} [{told.low:+.4f}, {told.high:+.4f}]{mark}"
                cells.append(cell)
            out.append(_pipe([*cells, _contrast_p(results, one)]))
        out += ["", *(f"- {markdown(note)}" for note in contrast_explanations(results))]
    return "\n".join(out) + "\n"


def to_html(markdown_text: str, title: str) -> str:
    """``to_markdown``'s output as a page of its own, readable on a phone, without external requests."""
    body = MarkdownIt("commonmark").enable("table").render(markdown_text)
    style = (
        "body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem;color:#222}"
        "table{border-collapse:collapse;white-space:nowrap;font-variant-numeric:tabular-nums}"
        "div{overflow-x:auto}td,th{padding:.3rem .6rem;border-bottom:1px solid #ddd}"
        "td:first-child,th:first-child{position:sticky;left:0;background:#fff}"
    )
    body = body.replace("<table>", "<div><table>").replace("</table>", "</table></div>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>\n'
        f"<body>{body}</body></html>\n"
    )


def to_latex(results: Results, title: str, facts: list[str], label: str) -> str:
    """The table for a paper: a ``table*`` that needs the packages booktabs and graphicx.

    Intervals stand in small type below the means. Arguments as in ``to_markdown``; ``label`` is the name
    behind ``tab:``.
    """
    metrics, footnotes = results.grid.metrics, _footnotes(results)
    first = 5 + _weighted(results)
    columns = first + len(metrics) + len(results.published_metrics) + 1
    head = [
        "Method",
        "Models",
        "Seeds",
        "$n$",
        "Trials",
        *(["w"] if _weighted(results) else []),
        *_metric_heads(results),
        _p_head(results),
    ]
    best = _best(results)
    out = [r"\begin{table*}", r"\centering", rf"\caption{{{latex(' '.join([title + '.', *facts]))}}}"]
    out += [rf"\label{{tab:{_label(label)}}}", r"\resizebox{\textwidth}{!}{%"]
    out += [rf"\begin{{tabular}}{{ll{'r' * (columns - 2)}}}", r"\toprule"]
    out += [_amp([cell if cell.startswith("$") else latex(cell) for cell in head])]
    for group, lines in groupby(results.lines, key=lambda line: line.row.group):
        out += [
            r"\midrule",
            _amp([rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{latex(group.capitalize())}}}}}"]),
        ]
        for line in lines:
            name = latex(line.row.title)
            if line.row.key in footnotes:
                name += rf"\textsuperscript{{{footnotes[line.row.key]}}}"
            cells = [name, latex(line.row.models), latex(_seeds(line))]
            cells += ["", ""] if line.row.missing else [str(len(results.grid.sessions)), str(line.row.trials)]
            cells += _weight(results, line)
            ends = []
            for m in range(len(metrics)):
                told = _told(results, line, m)
                if line.row.missing:
                    cells += [rf"\emph{{{MISSING}}}", *told]
                    continue
                mean = f"{line.means[m]:.4f}"
                mean = rf"\textbf{{{mean}}}" if (line.row.key, m) in best else mean
                cells += [mean + {1: r"$^{\uparrow}$", -1: r"$^{\downarrow}$", 0: ""}[results.mark(line, m)], *told]
                ends += [rf"{{\scriptsize [{line.low[m]:.4f}, {line.high[m]:.4f}]}}", *[""] * len(told)]
            out.append(_amp([*cells, latex(_p(results, line))]))
            if ends:
                out.append(_amp([*[""] * first, *ends, ""]))
    out += [r"\bottomrule", r"\end{tabular}}", "", r"\begin{minipage}{\textwidth}", r"\footnotesize"]
    out += [_latex_note(note) for note in explanations(results)]
    out += [rf"\textsuperscript{{{mark}}}~{latex(note)}\\" for mark, note in _notes(results, footnotes)]
    out += [r"\end{minipage}", r"\end{table*}"]
    if results.contrasts:
        out += ["", *_latex_contrasts(results, title, label)]
    return "\n".join(out) + "\n"


def _latex_contrasts(results: Results, title: str, label: str) -> list[str]:
    """The lines of a second ``table*``: the contrasts."""
    head = _contrast_heads(results)
    out = [r"\begin{table*}", r"\centering", rf"\caption{{{latex(title)}. Contrasts.}}"]
    out += [rf"\label{{tab:{_label(label)}-contrasts}}", r"\resizebox{\textwidth}{!}{%"]
    out += [rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", r"\toprule", _amp(map(latex, head)), r"\midrule"]
    for one in results.contrasts:
        cells, ends = [latex(_pair(one)), latex(_pair_models(one)), latex(_pair_seeds(one))], ["", "", ""]
        for m in range(len(results.grid.metrics)):
            if not one.tests:
                cells.append(rf"\emph{{{MISSING}}}")
                continue
            told = one.tests[m]
            mark = {1: r"$^{\uparrow}$", -1: r"$^{\downarrow}$", 0: ""}[results.mark(one, m)]
            cells.append(f"{told.effect.difference:+.4f}{mark}")
            ends.append(rf"{{\scriptsize [{told.low:+.4f}, {told.high:+.4f}]}}")
        out.append(_amp([*cells, latex(_contrast_p(results, one))]))
        if one.tests:
            out.append(_amp([*ends, ""]))
    out += [r"\bottomrule", r"\end{tabular}}", "", r"\begin{minipage}{\textwidth}", r"\footnotesize"]
    out += [_latex_note(note) for note in contrast_explanations(results)]
    return [*out, r"\end{minipage}", r"\end{table*}"]


def _latex_note(note: str) -> str:
    """A sentence as a line under a table; plain LaTeX knows no arrows."""
    text = latex(note).replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")
    return rf"{text}\\"


def _label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9:-]+", "-", name)


def contrast_explanations(results: Results) -> list[str]:
    """Sentences, plain text, that say how the numbers of the contrasts are to be read."""
    level, share = f"{1 - results.confidence:.4g}", f"{100 * results.confidence:.4g}%"
    tested = sum(bool(one.tests) for one in results.contrasts)
    out = [
        f"Difference of the first method and the second [{share} interval], paired by session and by seed; a method "
        "that runs one seed stands beside every seed of the other.",
        f"↑ ↓: the first method is better, worse; p < {level} in a sign-flip permutation test paired by session, "
        f"Holm-corrected over {tested} contrasts within each metric.",
    ]
    if any(one.beyond for one in results.contrasts):
        out.append("Beyond: the difference of the first two methods less that of the other two, paired alike.")
    out += _lower_is_better(results)
    if lost := sum(not one.tests for one in results.contrasts):
        out.append(f"Partial: {lost} of {len(results.contrasts)} contrasts lack a side that has run.")
    return out


def _lower_is_better(results: Results) -> list[str]:
    """A sentence on the log rank, where it is among the metrics."""
    if all(direction(name) > 0 for name in results.grid.metrics):
        return []
    return ["Log rank: mean of the natural logarithm of the target's rank; a lower value is better."]


def _pair(one: Contrast) -> str:
    pair = f"{one.of.title} against {one.against.title}"
    if one.beyond:
        pair += f", beyond {one.beyond[0].title} against {one.beyond[1].title}"
    return f"{one.title}: {pair}" if one.title else pair


def _pair_models(one: Contrast) -> str:
    return one.of.models if one.of.models == one.against.models else f"{one.of.models} / {one.against.models}"


def _pair_seeds(one: Contrast) -> str:
    return str(one.seeds) if one.seeds == one.expected else f"{one.seeds} of {one.expected}"


def _contrast_heads(results: Results) -> list[str]:
    return ["Contrast", "Models", "Seeds", *map(metric_title, results.grid.metrics), _p_head(results)]


def _contrast_p(results: Results, one: Contrast) -> str:
    return _p_value(one.tests[results.main].p_holm) if one.tests else ""


def explanations(results: Results) -> list[str]:
    """Sentences, plain text, that say how the numbers of a table are to be read."""
    level, share = f"{1 - results.confidence:.4g}", f"{100 * results.confidence:.4g}%"
    tested = sum(bool(line.against) for line in results.lines)
    out = [
        f"n = {len(results.grid.sessions)} sessions. Mean [{share} interval]: percentile bootstrap over "
        f"sessions and seeds, {results.resamples} resamples; over sessions alone where a row has one seed.",
    ]
    out += _untested(results)
    if tested:
        out.append(
            f"↑ ↓: better, worse than the reference, {reference_name(results)}; p < {level} in a "
            f"sign-flip permutation test paired by session, Holm-corrected over {tested} comparisons within "
            "each metric."
        )
    out += _lower_is_better(results)
    out.append("Bold: best of a metric, bounds left out. Trials: validation trials spent on tuning.")
    if _weighted(results):
        out.append(
            f"w: weight of log(1 + train count) in the score, beside the text's similarity / {TEMPERATURE:g}; chosen "
            "on validation where the method does not set it; of each seed where they differ. 0 is the text alone."
        )
    if results.published:
        out.append("Published: one number, as it was reported, without seeds, interval or test.")
    if len({len(line.row.expected) for line in results.lines}) > 1:
        out.append("Seeds differ between rows: methods that draw nothing run one seed.")
    if results.missing_runs:
        total = sum(len(line.row.expected) for line in results.lines)
        out.append(
            f"Partial: {results.missing_runs} of {total} runs are missing; intervals, tests and their "
            "correction count only what ran and will change."
        )
    return out


def reference_name(results: Results) -> str:
    """What rows are tested against, in words: the reference with its models, or the rule where it has several."""
    first = results.references[0]
    if len(results.references) == 1:
        return f"{first.title} ({first.models})"
    return (
        f"{first.title} with the same models (a row without an encoder: the first run with its decoder; without both: "
        f"{first.models})"
    )


def _untested(results: Results) -> list[str]:
    """A sentence where references are missing, and with them the tests of their rows."""
    missing = [row for row in results.references if row.missing]
    if not missing:
        return []
    names = ", ".join(f"{row.title} ({row.models})" for row in missing)
    if len(missing) == len(results.references):
        return [f"No tests: the reference, {names}, is missing."]
    return [f"No tests of the rows whose reference is missing: {names}."]


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
        *_weight(results, line),
    ]


def _identity_heads(results: Results) -> list[str]:
    head = ["group", "method", "title", "models", "status", "seeds", "seeds_expected", "sessions", "trials"]
    return [*head, *(["weight"] if _weighted(results) else [])]


def _weighted(results: Results) -> bool:
    """Whether some row ranks by a text, so that popularity may have a weight."""
    return any(line.row.weights for line in results.lines)


def _weight(results: Results, line: Line) -> list[str]:
    """The cell of the weight of popularity, where the table has it: one number, or those of all seeds."""
    told = [f"{weight:g}" for weight in line.row.weights]
    return [", ".join(told if len(set(told)) > 1 else told[:1])] if _weighted(results) else []


def _best(results: Results) -> set[tuple[str, int]]:
    """(row, metric) of the best means at the printed precision; bounds are no contestants."""
    best = set()
    for m, metric in enumerate(results.grid.metrics):
        means = {
            line.row.key: round(float(line.means[m]), 4)
            for line in results.lines
            if not line.row.missing and line.row.group != "bounds"
        }
        top = max(means.values(), key=lambda mean: direction(metric) * mean, default=None)
        best |= {(key, m) for key, mean in means.items() if mean == top}
    return best


def _footnotes(results: Results) -> dict[str, str]:
    """Row -> letter; rows with the same note share one."""
    letters: dict[str, str] = {}
    names = [
        *string.ascii_lowercase,
        *(f"{a}{b}" for a in string.ascii_lowercase for b in string.ascii_lowercase),
    ]
    for line in results.lines:
        if line.row.note:
            letters.setdefault(line.row.note, names[len(letters)])
    return {line.row.key: letters[line.row.note] for line in results.lines if line.row.note}


def _notes(results: Results, footnotes: dict[str, str]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((footnotes[line.row.key], line.row.note) for line in results.lines if line.row.note))


def _seeds(line: Line) -> str:
    ran, expected = len(line.row.seeds), len(line.row.expected)
    return str(ran) if ran == expected else f"{ran} of {expected}"


def _metric_heads(results: Results) -> list[str]:
    heads = []
    for m, name in enumerate(results.grid.metrics):
        heads += [metric_title(name), *(["Published"] if m in results.published_metrics else [])]
    return heads


def _published(results: Results, line: Line, metric: int) -> list[float | None]:
    """The cell behind a metric's own: none at all where no row has a published number by it."""
    return [results.published.get((line.row.key, metric))] if metric in results.published_metrics else []


def _told(results: Results, line: Line, metric: int) -> list[str]:
    """``_published`` as people see it; empty where it is unknown."""
    return ["" if value is None else f"{value:.4f}" for value in _published(results, line, metric)]


def _p_head(results: Results) -> str:
    return f"p (Holm) {metric_title(results.main_metric)}"


def _p(results: Results, line: Line) -> str:
    if not line.against:
        return "reference" if line.row.key == line.reference.key else ""
    return _p_value(line.against[results.main].p_holm)


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _pipe(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _amp(cells: Iterable[str]) -> str:
    row = " & ".join(cells) + r" \\"
    # Behind the \\ or \midrule of the row before, these would be an argument.
    return "{}" + row if row.startswith(("[", "*")) else row


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
