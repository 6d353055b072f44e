"""The checklist of a comparison: what a reader of a paper needs to know about its evaluation, from the manifests.

An audit of papers on language models in recommendation (Shehzad and Jannach, UMAP 2026) counts which of about 55
variables a paper reports. Its list is not reproduced here: these variables follow its subject. Every variable has a
line. What no file records has the value "not recorded".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from langptune.comparison.manifests import Manifests
from langptune.comparison.variables import Tables, groups
from langptune.markup import markdown

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Line:
    """One variable. source: the file and the keys within it; empty where nothing is recorded."""

    group: str
    variable: str
    value: str
    source: str = ""


def lines(manifests: Manifests, tables: Tables) -> list[Line]:
    """All variables, by group."""
    return [
        Line(group, name, value or UNKNOWN, source if value else "")
        for group, rows in groups(manifests, tables).items()
        for name, value, source in rows
    ]


def page(found: Iterable[Line], title: str, lost: int = 0) -> str:
    """The checklist as Markdown.

    Args:
        found: the result of ``lines``.
        title: the dataset's title.
        lost: number of files without a manifest.
    """
    found = list(found)
    known = sum(line.value != UNKNOWN for line in found)
    out = [f"# Checklist: {markdown(title)}", ""]
    out += [
        f"{known} of {len(found)} variables are recorded. The form follows the subject of the audit of evaluations of "
        "language models in recommendation by Shehzad and Jannach (UMAP 2026); its own list of variables is not "
        "reproduced. Values are read from the manifests and tables that are named, relative to the folder of the run. "
        "Nothing is entered by hand.",
    ]
    if lost:
        out += [
            "",
            f"{lost} files have no manifest. The jobs that made them, and the jobs before those, are not described "
            "here.",
        ]
    for group in dict.fromkeys(line.group for line in found):
        out += ["", f"## {group}", "", "| variable | value | read from |", "|---|---|---|"]
        out += [
            f"| {markdown(line.variable)} | {markdown(line.value)} | {markdown(line.source)} |"
            for line in found
            if line.group == group
        ]
    return "\n".join(out) + "\n"
