"""A comparison as readable pages: Markdown, HTML and LaTeX, with 4 decimals and explanatory sentences.

Nothing in a page depends on time, host or locale, so the same runs and seed give the same bytes.
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Iterable
from itertools import groupby

from markdown_it import MarkdownIt

from langptune.comparison.statistics import Against, Contrast, Line, Results
from langptune.comparison.tables import MISSING, published_cells, weight_cells, weighted
from langptune.markup import latex, markdown, table_row
from langptune.metrics import direction
from langptune.metrics import title as metric_title
from langptune.ranking.scoring import TEMPERATURE


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
        *(["w"] if weighted(results) else []),
        *_metric_heads(results),
        _p_head(results),
    ]
    out = [f"**{markdown(title)}**", "", *(f"{markdown(fact)}  " for fact in facts)]
    out += ["", table_row(head), table_row(["---", "---"] + ["---:"] * (len(head) - 2))]
    best = _best(results)
    for group, lines in groupby(results.lines, key=lambda line: line.row.group):
        out.append(table_row([f"**{markdown(group.capitalize())}**"] + [""] * (len(head) - 1)))
        for line in lines:
            name = markdown(line.row.title)
            if line.row.key in footnotes:
                name += f" <sup>{footnotes[line.row.key]}</sup>"
            cells = [name, markdown(line.row.models), _seeds(line)]
            cells += ["", ""] if line.row.missing else [str(len(results.grid.sessions)), str(line.row.trials)]
            cells += weight_cells(results, line)
            for m in range(len(metrics)):
                if line.row.missing:
                    cells += [MISSING, *_published(results, line, m)]
                    continue
                mean = f"{line.means[m]:.4f}"
                mean = f"**{mean}**" if (line.row.key, m) in best else mean
                mark = {1: " ↑", -1: " ↓", 0: ""}[results.mark(line, m)]
                cells += [f"{mean} [{line.low[m]:.4f}, {line.high[m]:.4f}]{mark}", *_published(results, line, m)]
            out.append(table_row([*cells, _p(results, line)]))
    out.append("")
    out += [f"- {markdown(note)}" for note in explanations(results)]
    out += [f"- <sup>{mark}</sup> {markdown(note)}" for mark, note in _notes(results, footnotes)]
    if results.contrasts:
        head = _contrast_heads(results)
        out += ["", "**Contrasts**", "", table_row(head), table_row(["---", "---"] + ["---:"] * (len(head) - 2))]
        for one in results.contrasts:
            cells = [markdown(_pair(one)), markdown(_pair_models(one)), _pair_seeds(one)]
            for m in range(len(metrics)):
                cell = MISSING
                if one.tests:
                    test = one.tests[m]
                    mark = {1: " ↑", -1: " ↓", 0: ""}[results.mark(one, m)]
                    cell = f"{test.effect.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]{mark}"
                cells.append(cell)
            out.append(table_row([*cells, _contrast_p(results, one)]))
        out += ["", *(f"- {markdown(note)}" for note in contrast_explanations(results))]
    return "\n".join(out) + "\n"


def to_html(markdown_text: str, title: str, wrap: bool = False) -> str:
    """A Markdown page as a self-contained HTML page, readable on a phone, without external requests.

    Args:
        wrap: break the lines of cells, for tables of texts.
    """
    body = MarkdownIt("commonmark").enable("table").render(markdown_text)
    style = (
        "body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem;color:#222}"
        "table{border-collapse:collapse;white-space:nowrap;font-variant-numeric:tabular-nums}"
        "div{overflow-x:auto}td,th{padding:.3rem .6rem;border-bottom:1px solid #ddd}"
        "td:first-child,th:first-child{position:sticky;left:0;background:#fff}"
    )
    if wrap:
        style += "td{white-space:normal;overflow-wrap:anywhere;min-width:4rem;max-width:36rem;vertical-align:top}"
    body = body.replace("<table>", "<div><table>").replace("</table>", "</table></div>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>\n'
        f"<body>{body}</body></html>\n"
    )


def to_latex(results: Results, title: str, facts: list[str], label: str) -> str:
    """The table for a paper: a ``table*`` that needs the packages booktabs and graphicx.

    Intervals are in small type below the means. Arguments as in ``to_markdown``; ``label`` is the name after ``tab:``.
    """
    metrics, footnotes = results.grid.metrics, _footnotes(results)
    first = 5 + weighted(results)
    columns = first + len(metrics) + len(results.published_metrics) + 1
    head = [
        "Method",
        "Models",
        "Seeds",
        "$n$",
        "Trials",
        *(["w"] if weighted(results) else []),
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
            cells += weight_cells(results, line)
            ends = []
            for m in range(len(metrics)):
                published = _published(results, line, m)
                if line.row.missing:
                    cells += [rf"\emph{{{MISSING}}}", *published]
                    continue
                mean = f"{line.means[m]:.4f}"
                mean = rf"\textbf{{{mean}}}" if (line.row.key, m) in best else mean
                cells += [
                    mean + {1: r"$^{\uparrow}$", -1: r"$^{\downarrow}$", 0: ""}[results.mark(line, m)],
                    *published,
                ]
                ends += [rf"{{\scriptsize [{line.low[m]:.4f}, {line.high[m]:.4f}]}}", *[""] * len(published)]
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
            test = one.tests[m]
            mark = {1: r"$^{\uparrow}$", -1: r"$^{\downarrow}$", 0: ""}[results.mark(one, m)]
            cells.append(f"{test.effect.difference:+.4f}{mark}")
            ends.append(rf"{{\scriptsize [{test.low:+.4f}, {test.high:+.4f}]}}")
        out.append(_amp([*cells, latex(_contrast_p(results, one))]))
        if one.tests:
            out.append(_amp([*ends, ""]))
    out += [r"\bottomrule", r"\end{tabular}}", "", r"\begin{minipage}{\textwidth}", r"\footnotesize"]
    out += [_latex_note(note) for note in contrast_explanations(results)]
    return [*out, r"\end{minipage}", r"\end{table*}"]


def _latex_note(note: str) -> str:
    """A sentence as a line under a table; LaTeX has arrows only in math mode."""
    text = latex(note).replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")
    return rf"{text}\\"


def _label(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9:-]+", "-", name)


def contrast_explanations(results: Results) -> list[str]:
    """Sentences in plain text that explain the numbers of the contrasts."""
    level, share = f"{1 - results.confidence:.4g}", f"{100 * results.confidence:.4g}%"
    tested = sum(bool(one.tests) for one in results.contrasts)
    out = [
        f"Difference of the first method and the second [{share} interval], paired by session and by seed; a method "
        "that runs one seed is compared with every seed of the other.",
        f"↑ ↓: the first method is better, worse; p < {level} in a sign-flip permutation test paired by session, "
        f"Holm-corrected over {tested} contrasts within each metric.",
    ]
    if any(one.beyond for one in results.contrasts):
        out.append("Beyond: the difference of the first two methods less that of the other two, paired alike.")
    out += _detectable(results, [one.tests for one in results.contrasts])
    out += _lower_is_better(results)
    if lost := sum(not one.tests for one in results.contrasts):
        out.append(f"Partial: {lost} of {len(results.contrasts)} contrasts are not tested: no common seed has run.")
    return out


def _detectable(results: Results, tested: Iterable[tuple[Against, ...]]) -> list[str]:
    """A sentence about the smallest differences that the sample would have shown, as a range over rows by metric."""
    rows = [cells for cells in tested if cells]
    ranges = []
    for m, name in enumerate(results.grid.metrics):
        values = [cells[m].effect.detectable for cells in rows if cells[m].effect.detectable is not None]
        if values:
            ranges.append(f"{metric_title(name)} {_span(min(values), max(values))}")
    if not ranges:
        return []
    return [
        "Smallest difference that a test of this many sessions would detect in 80% of samples (p < "
        f"{1 - results.confidence:.4g} before Holm's correction; an arrow needs more), as a range over the rows: "
        f"{'; '.join(ranges)}. A missing arrow does not show that two methods are alike."
    ]


def _span(low: float, high: float) -> str:
    """A range at the printed precision, or one number."""
    ends = dict.fromkeys((f"{low:.4f}", f"{high:.4f}"))
    return " to ".join(ends)


def _lower_is_better(results: Results) -> list[str]:
    """A sentence about the log rank, if it is among the metrics."""
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
    """Sentences in plain text that explain the numbers of a table."""
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
    out += _detectable(results, [line.against for line in results.lines if line.row.group != "bounds"])
    out += _lower_is_better(results)
    out.append("Bold: best of a metric, bounds left out. Trials: validation trials spent on tuning.")
    weighing = {line.row.group in ("fusions", "bounds") for line in results.lines if line.row.weights}
    if False in weighing:
        out.append(
            f"w: weight of log(1 + train count) in the score, beside the text's similarity / {TEMPERATURE:g}; chosen "
            "on validation where the method does not set it; of each seed where they differ. 0 is the text alone."
        )
    if True in weighing:
        out.append("w of a fusion: weight of the second method, from 0 (the first alone) to 1; chosen on validation.")
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
    """A phrase for the reference: its title and models, or the rule if it has several models."""
    first = results.references[0]
    if len(results.references) == 1:
        return f"{first.title} ({first.models})"
    return (
        f"{first.title} with the same models (a row without an encoder: the first run with its decoder; without both: "
        f"{first.models})"
    )


def _untested(results: Results) -> list[str]:
    """A sentence about rows that are not tested because their references are missing."""
    missing = [row for row in results.references if row.missing]
    if not missing:
        return []
    names = ", ".join(f"{row.title} ({row.models})" for row in missing)
    if len(missing) == len(results.references):
        return [f"No tests: the reference, {names}, is missing."]
    return [f"No tests of the rows whose reference is missing: {names}."]


def _best(results: Results) -> set[tuple[str, int]]:
    """(row, metric) of the best means at the printed precision, without bounds."""
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


def _published(results: Results, line: Line, metric: int) -> list[str]:
    """``published_cells`` as formatted text; empty if unknown."""
    return ["" if value is None else f"{value:.4f}" for value in published_cells(results, line, metric)]


def _p_head(results: Results) -> str:
    return f"p (Holm) {metric_title(results.main_metric)}"


def _p(results: Results, line: Line) -> str:
    if not line.against:
        return "reference" if line.row.key == line.reference.key else ""
    return _p_value(line.against[results.main].p_holm)


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _amp(cells: Iterable[str]) -> str:
    row = " & ".join(cells) + r" \\"
    # After the \\ or \midrule of the previous row, these would be parsed as an argument.
    return "{}" + row if row.startswith(("[", "*")) else row
