"""Checks the README's claims about measured results against the reference folders.

A claim is a comment on a separate line before its paragraph, in one of two forms:

``<!-- claim: langptune-cl > langptune-0, ndcg@10, holm, in ml-100k: "words of the claim" -->``
    A relation that must hold in every folder of the scope. ``>`` and ``<``: better and worse; ``~``: not significant.
    ``holm``: by the test of ``comparisons.csv`` after Holm at 5%; one of the two methods must be its reference.
    ``contrast``: the same by ``contrasts.csv``, which must have this pair.
    ``mean``: by the means alone (only ``>`` and ``<``). ``interval``: each mean lies within the other's interval
    (``~``), or the intervals do not overlap. Without ``in``, the scope is every folder of the demo and the run with
    three seeds; ``in`` takes one folder or a pattern. The words must be in the README.

``<!-- numbers: ml-100k-demo langptune-cl ndcg@10 mean=0.0230 wins=11 p_permutation_holm=0.03 -->``
    Cells of a folder's ``comparisons.csv``, or of the ``table.csv`` of measures of profiles, rounded as written. Each
    must be in the next paragraph. Instead of a method, ``contrast:name`` takes the cells from ``contrasts.csv``.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langptune.metrics import direction

DEMO = "ml-100k-demo*"
"""Folders of the demo's results, one for each kind of CPU."""
SEEDS = "ml-100k"
"""The folder of the run with several seeds."""
LEVEL = 0.05
CLAIM = re.compile(
    r"(?P<one>[\w.-]+) (?P<relation>[<>~]) (?P<other>[\w.-]+), (?P<metric>[\w@-]+), (?P<by>holm|contrast|mean|interval)"
    r'(?:, in (?P<scope>[\w.*-]+))?: "(?P<words>[^"]+)"'
)
NUMBERS = re.compile(r"(?P<folder>[\w.-]+) (?P<method>[\w.:-]+) (?P<metric>[\w@-]+)(?P<cells>(?: \w+=-?[\d.]+)+)")
COMMENT = re.compile(r"<!--\s*(claim|numbers):\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """A relation of two methods by one metric, and the words that claim it."""

    one: str
    relation: str
    other: str
    metric: str
    by: str
    scope: str | None
    words: str


@dataclass(frozen=True)
class Numbers:
    """Cells of one row of a table as the README writes them, and the paragraph that does."""

    folder: str
    method: str
    metric: str
    cells: dict[str, str]
    paragraph: str


def read(text: str) -> tuple[list[Claim], list[Numbers]]:
    """All claims and numbers of a page, in its order.

    Raises:
        ValueError: a comment has neither of the two forms.
    """
    claims, numbers = [], []
    for found in COMMENT.finditer(text):
        kind, body = found[1], " ".join(found[2].split())
        match = (CLAIM if kind == "claim" else NUMBERS).fullmatch(body)
        if match is None:
            raise ValueError(f"README.md: cannot read the comment '{kind}: {body}'")
        if kind == "claim":
            claims.append(Claim(**match.groupdict()))
        else:
            cells = dict(cell.split("=") for cell in match["cells"].split())
            numbers.append(Numbers(match["folder"], match["method"], match["metric"], cells, after(text, found.end())))
    return claims, numbers


def after(text: str, place: int) -> str:
    """The first paragraph after a place that is not a comment."""
    return COMMENT.sub("", text[place:]).strip().split("\n\n")[0]


def folders(root: Path, scope: str | None) -> list[Path]:
    """The reference folders that a claim is about.

    Args:
        root: ``results/reference``.
    """
    found = [path for part in ([scope] if scope else [DEMO, SEEDS]) for path in sorted(root.glob(part))]
    return [path for path in found if (path / "comparisons.csv").is_file()]


def kind(folder: Path) -> dict[str, Any]:
    """The kind of CPU that a folder's results were made on: ``name``, ``flags`` and ``dtype`` of the models.

    Read from its manifests, or from ``cpu.json`` if the manifests are too old to have the field ``cpu``. Tables and
    figures may be made again from the kept ranks on any CPU, so that theirs do not count.
    """
    manifests = [json.loads(path.read_text()) for path in sorted(folder.rglob("*.manifest.json"))]
    manifests = [one for one in manifests if Path(one["script"]).stem not in ("compare", "plot", "study")]
    cpus = [manifest["cpu"] for manifest in manifests if "cpu" in manifest]
    if not cpus:
        cpus = [json.loads((folder / "cpu.json").read_text())]
    dtypes = {manifest["notes"]["dtype"] for manifest in manifests if manifest["notes"].get("dtype")}
    assert all(one == cpus[0] for one in cpus) and len(dtypes) == 1, f"{folder}: made on several kinds of CPU"
    return {"name": cpus[0]["name"], "flags": sorted(cpus[0]["flags"]), "dtype": dtypes.pop()}


def false_claims(claims: list[Claim], root: Path) -> Iterator[str]:
    """One line for each claim that fails in a folder of its scope, or whose scope has no folder."""
    for claim in claims:
        scope = folders(root, claim.scope)
        if not scope:
            yield f"'{claim.words}': no folder {claim.scope} in {root}"
        for folder in scope:
            if why := _fails(claim, folder):
                yield f"'{claim.words}' ({claim.one} {claim.relation} {claim.other}) fails in {folder.name}: {why}"


def false_numbers(numbers: list[Numbers], root: Path) -> Iterator[str]:
    """One line for each number that differs from its folder, or is not in its paragraph."""
    for claim in numbers:
        named, _, contrast = claim.method.partition(":")
        rows = _contrasts(root / claim.folder, "contrast") if contrast else _rows(root / claim.folder)
        row = rows[contrast or named, claim.metric]
        for column, written in claim.cells.items():
            digits = len(written.partition(".")[2])
            if f"{float(row[column]):.{digits}f}" != written:
                yield f"{claim.folder}: {claim.method}: {column} is {row[column]}, README.md says {written}"
            # A sentence may give a fall as a positive number.
            if not re.search(rf"(?<![\d.]){re.escape(written.lstrip('-'))}(?!\d|\.\d)", claim.paragraph):
                yield f"README.md: {written} ({claim.method}, {column}) is not in its paragraph"


def _fails(claim: Claim, folder: Path) -> str | None:
    if claim.by == "holm":
        rows = _rows(folder)
        sign, row = 1, rows.get((claim.one, claim.metric))
        if row is None or row["reference"] != claim.other:
            sign, row = -1, rows.get((claim.other, claim.metric))
        if row is None or {row["method"], row["reference"]} != {claim.one, claim.other}:
            return "comparisons.csv has no test of these two"
        sign *= direction(claim.metric)
        p, difference = float(row["p_permutation_holm"]), sign * float(row["difference"])
        return None if _verdict(row, sign) == claim.relation else f"difference {difference:.4f}, p {p:.4f} after Holm"
    if claim.by == "contrast":
        row = _contrasts(folder, "method", "against").get((claim.one, claim.other, claim.metric))
        if row is None:
            return "contrasts.csv has no test of these two"
        found = _verdict(row, direction(claim.metric))
        if found == claim.relation:
            return None
        return f"difference {float(row['difference']):.4f}, p {float(row['p_permutation_holm']):.4f} after Holm"
    one, other = (_means(folder)[name, claim.metric] for name in (claim.one, claim.other))
    if direction(claim.metric) < 0:
        one, other = ((-mean, -high, -low) for mean, low, high in (one, other))
    if claim.by == "mean":
        found = ">" if one[0] > other[0] else "<"
    elif other[1] <= one[0] <= other[2] and one[1] <= other[0] <= one[2]:
        found = "~"
    else:
        found = ">" if one[1] > other[2] else "<" if one[2] < other[1] else "overlap"
    return None if found == claim.relation else f"{one[0]:.4f} and {other[0]:.4f}: {found}"


def _verdict(row: dict[str, str], sign: int) -> str:
    """The verdict of a row's test: better, worse, no significant difference."""
    if float(row["p_permutation_holm"]) >= LEVEL:
        return "~"
    return ">" if sign * float(row["difference"]) > 0 else "<"


def _contrasts(folder: Path, *keys: str) -> dict[tuple[str, ...], dict[str, str]]:
    """(keys, metric) -> row of ``contrasts.csv``; differences of differences only by the contrast's name."""
    with (folder / "contrasts.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not row["beyond"] or keys == ("contrast",)]
    return {(*(row[key] for key in keys), row["metric"]): row for row in rows}


def _rows(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """(method, metric or measure) -> row of ``comparisons.csv``, or of the table of measures of profiles."""
    if not (folder / "comparisons.csv").is_file():
        with (folder / "table.csv").open(encoding="utf-8") as file:
            return {(row["method"], row["measure"]): row for row in csv.DictReader(file)}
    with (folder / "comparisons.csv").open(encoding="utf-8") as file:
        return {(row["method"], row["metric"]): row for row in csv.DictReader(file)}


def _means(folder: Path) -> dict[tuple[str, str], tuple[float, float, float]]:
    with (folder / "table_long.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["mean"]]
    return {(row["method"], row["metric"]): tuple(float(row[key]) for key in ("mean", "low", "high")) for row in rows}
