"""An analysis as a report (Markdown) and as a table (CSV)."""

from __future__ import annotations

import csv
import io
from typing import Any

from langptune.markup import markdown
from langptune.survey.responses import REASONS

COLUMNS = ("key", "label", "value", "low", "high", "n", "unit", "interval", "note")


def table(analysis: dict[str, Any]) -> str:
    """The numbers as CSV, one row each, with the columns ``COLUMNS``; missing values are empty cells."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number in analysis["numbers"]:
        writer.writerow(["" if number[name] is None else number[name] for name in COLUMNS])
    return stream.getvalue()


def report(analysis: dict[str, Any], seconds_per_question: float) -> str:
    """The whole analysis as Markdown: respondents, exclusions with reasons, results, size of a next study."""
    excluded = sum(analysis["excluded"].values())
    out = [
        f"# {markdown(analysis['title'])}",
        "",
        f"Survey `{analysis['survey']}`. Reference: {markdown(analysis['reference'])}. "
        f"Trained: {markdown(analysis['trained'])}.",
        "",
        f"{analysis['files']} files: {analysis['respondents']} used, {excluded} excluded. {analysis['questions']} "
        f"users asked about, drawn from those whose two profiles differ; both methods wrote the same for "
        f"{analysis['identical']} of {analysis['sessions']}, who are in none of the shares below.",
    ]
    if analysis["respondents"]:
        out[-1] += (
            f" Median time {analysis['median_seconds_per_question']:.1f} seconds a question; "
            f"{analysis['comments']} comments, to be read in the files."
        )
        out += ["", *_results(analysis), "", *_tests(analysis), "", *_power(analysis)]
    else:
        out += ["", "**No valid response: there is nothing to analyse.**"]
    out += ["", "## Excluded", ""]
    if excluded:
        limit = f" (limit: {seconds_per_question:g})"
        out += ["| reason | meaning | files |", "| --- | --- | ---: |"]
        for reason, count in analysis["excluded"].items():
            out.append(f"| {reason} | {REASONS[reason]}{limit if reason == 'too fast' else ''} | {count} |")
        out += ["", "| file | reason | detail |", "| --- | --- | --- |"]
        for left in analysis["excluded_files"]:
            out.append(f"| {markdown(left['file'])} | {left['reason']} | {markdown(left['detail'])} |")
    else:
        out.append("Nothing was excluded.")
    return "\n".join(out) + "\n"


def _results(analysis: dict[str, Any]) -> list[str]:
    percent = f"{100 * analysis['confidence']:g}%"
    out = ["## Results", "", f"| | value | {percent} interval | over | |", "| --- | ---: | --- | --- | --- |"]
    for number in analysis["numbers"]:
        value = "" if number["value"] is None else f"{number['value']:.3f}"
        interval = "" if number["low"] is None else f"[{number['low']:.3f}, {number['high']:.3f}]"
        over = f"{number['n']} {number['unit']}"
        out.append(f"| {markdown(number['label'])} | {value} | {interval} | {over} | {markdown(number['note'])} |")
    return [
        *out,
        "",
        f"Intervals of shares: bootstrap over respondents and questions, {analysis['resamples']} resamples; of "
        "agreement: over questions; of the repeated pair: Wilson.",
    ]


def _tests(analysis: dict[str, Any]) -> list[str]:
    out = ["| sign test | lean to trained | neither | lean to reference | p |", "| --- | ---: | ---: | ---: | ---: |"]
    for unit, row in analysis["tests"].items():
        p = "< 0.0001" if row["p"] < 0.0001 else f"{row['p']:.4f}"
        out.append(f"| {unit} | {row['trained']} | {row['neither']} | {row['reference']} | {p} |")
    return out


def _power(analysis: dict[str, Any]) -> list[str]:
    power = analysis["power"]
    out = ["## A next study", ""]
    if not power["sizes"]:
        return [*out, f"No estimate: {power['note']}."]
    spread = power["variances"]
    out += [
        f"To tell the preference (equal as one half) from one half with {100 * power['power']:g}% power at level "
        f"{power['level']:.2g}, by simulation from the variances seen here: between respondents "
        f"{spread['respondent']:.4f}, between questions {spread['question']:.4f}, rest {spread['rest']:.4f}."
        + (f" {power['note'].capitalize()}." if power["note"] else ""),
        "",
        "| preference | questions | respondents |",
        "| --- | ---: | ---: |",
    ]
    for size in power["sizes"]:
        seen = " (as seen here)" if size["effect"] == power["effect"] else ""
        found = "more than 10,000" if size["respondents"] is None else f"{size['respondents']:,}"
        out.append(
            f"| {0.5 + size['effect']:.1%} or {0.5 - size['effect']:.1%}{seen} | {size['questions']} | {found} |"
        )
    asked = analysis["questions"]
    if any(size["questions"] > asked for size in power["sizes"]):
        out += [
            "",
            f"If a row has more than {asked} questions, no number of respondents is enough with {asked}: users differ.",
        ]
    return out
