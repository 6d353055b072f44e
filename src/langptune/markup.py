"""Escapes external text for Markdown and LaTeX, and formats times with their unit."""

from __future__ import annotations

from collections.abc import Iterable

from langptune.errors import printable

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}
_MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: "\\" + mark for mark in "\\`*_[]|~$"}


def latex(text: str) -> str:
    """Text that LaTeX prints verbatim: special and control characters are escaped, line breaks become spaces."""
    return "".join(_LATEX.get(mark, mark) for mark in printable(" ".join(text.split())))


def markdown(text: str) -> str:
    """Text that Markdown prints verbatim, also in a table: without markup, HTML, line breaks and control characters."""
    return "".join(_MARKDOWN.get(mark, mark) for mark in printable(" ".join(text.split())))


def table_row(cells: Iterable[str]) -> str:
    """A line of a Markdown table, from cells without markup that would end them (``markdown``)."""
    return "| " + " | ".join(cells) + " |"


def duration(seconds: float | None) -> str:
    """A time with its unit, two or three digits: ``0.7 s``, ``12 s``, ``3.4 min``, ``2.1 h``; empty if unknown."""
    if seconds is None:
        return ""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
