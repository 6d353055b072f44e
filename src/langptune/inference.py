"""What a method's inference takes per user: time and energy, read from the manifests of its jobs.

A method ranks for a user in up to two steps: it writes a profile, and it ranks the catalogue by a text or by a fitted
model. Each job records what its step took (``langptune.meter``). Training, starting Python and loading models are not
included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from langptune.config.base import Strict
from langptune.markup import markdown, table_row
from langptune.meter import NOTE
from langptune.provenance import manifest_of
from langptune.reading import read_json

WATTS_PER_CORE = 5.0
"""Power of one busy core in watts, stated and not measured: thermal design power over cores is 3.8 W for an EPYC 9654
(360 W, 96 cores) and 6.3 W for a Xeon 8480+ (350 W, 56 cores)."""

SCHEMA = {
    "method": pl.String,
    "title": pl.String,
    "models": pl.String,
    "runs": pl.Int64,
    "users": pl.Int64,
    "device": pl.String,
    "write_ms": pl.Float64,
    "rank_ms": pl.Float64,
    "ms": pl.Float64,
    "joules": pl.Float64,
    "energy_from": pl.String,
    "why_not": pl.String,
}
"""Columns of ``inference.csv``; ``table`` explains them."""


class RankedRun(Strict):
    """One run of a comparison, and its ranks."""

    method: str
    title: str
    models: str
    ranks_path: str = Field(description="ranks.parquet of the run")


Step = tuple[str, str]
"""What a job does (``write``, ``rank``), and whose: the file that a fusion reads, or nothing for a method's own."""


def steps(ranks: str) -> dict[Step, list[Mapping[str, Any]]]:
    """The manifests of the jobs behind some ranks, training left out.

    A fusion has the steps of the methods that it combines, and its own.

    Args:
        ranks: path of ``ranks.parquet``.

    Raises:
        OSError, ValueError, KeyError: a manifest is missing or cannot be read.
    """
    found: dict[Step, list[Mapping[str, Any]]] = {}
    todo = [(ranks, "")]
    while todo:
        path, part = todo.pop()
        manifest = read_json(manifest_of(path))
        script, spec = Path(manifest["script"]).stem, manifest["spec"]
        if script == "gather_profiles":
            todo += [(shard, part) for shard in spec["shards_in"]]
        elif script == "write_profiles":
            found.setdefault(("write", part), []).append(manifest)
        else:
            found.setdefault(("rank", part), []).append(manifest)
            todo += [(spec["profiles_in"], part)] if spec.get("profiles_in") else []
            todo += [(other, other) for other in spec.get("scores_in") or spec.get("parts_in") or []]
    return found


def table(runs: Iterable[RankedRun]) -> pl.DataFrame:
    """A row per method and models, over its seeds, in the order of the runs.

    Columns:
        runs: number of runs that could be measured.
        users: sessions that their ranking jobs were measured on, all runs together.
        device: of the jobs, as their manifests name it.
        write_ms, rank_ms, ms: milliseconds per user of each step and of both; null where a step was not measured.
            Users are processed in batches, so one user alone waits longer.
        joules: energy per user; null where it was not measured.
        energy_from: "CPU time" at ``WATTS_PER_CORE``, "NVML" (the GPU's counter, and CPU time on top), or empty.
        why_not: the reason for null values.
    """
    groups: dict[tuple[str, str, str], list[RankedRun]] = {}
    for run in runs:
        groups.setdefault((run.method, run.title, run.models), []).append(run)
    return pl.DataFrame([_row(*key, members) for key, members in groups.items()], schema=SCHEMA)


def _row(method: str, title: str, models: str, runs: list[RankedRun]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCHEMA)
    row |= {"method": method, "title": title, "models": models, "runs": 0, "users": 0, "energy_from": "", "why_not": ""}
    parts: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    devices = set()
    for run in runs:
        try:
            found = steps(run.ranks_path)
            notes = [(step, [manifest["notes"][NOTE] for manifest in jobs]) for (step, _), jobs in found.items()]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        row["runs"] += 1
        devices |= {manifest["device"] for jobs in found.values() for manifest in jobs}
        # The steps of every seed are in the same order.
        for place, (step, measured) in enumerate(notes):
            parts.setdefault((step, place), []).extend(measured)
    row["device"] = ", ".join(sorted(devices))
    if not row["runs"]:
        return row | {"why_not": "made by a version that did not measure it"}
    users = {key: sum(note["sessions"] for note in measured) for key, measured in parts.items()}
    row["users"] = int(users["rank", 0])
    if not all(users.values()):
        return row | {"why_not": "finished earlier batches were reused, so nothing was measured"}
    for (step, place), measured in parts.items():
        each = 1000 * sum(note["seconds"] for note in measured) / users[step, place]
        row[f"{step}_ms"] = (row[f"{step}_ms"] or 0.0) + each
    row["ms"] = sum(row[name] or 0.0 for name in ("write_ms", "rank_ms"))
    every = [note for measured in parts.values() for note in measured]
    if any(note.get("remote") for note in every):
        return row | {"why_not": "the energy of a remote model is not known"}
    row["joules"] = sum(
        sum(note["cpu_seconds"] * WATTS_PER_CORE + (note["gpu_joules"] or 0.0) for note in measured) / users[key]
        for key, measured in parts.items()
    )
    row["energy_from"] = " and ".join(sorted({"CPU time" if note["gpu_joules"] is None else "NVML" for note in every}))
    return row


def section(rows: pl.DataFrame) -> str:
    """The table as a section of a Markdown page."""
    head = ["method", "models", "users", "writing, ms", "ranking, ms", "per user, ms", "per user, J"]
    lines = ["## Inference", "", table_row(head), table_row(["---", "---", *["---:"] * (len(head) - 2)])]
    for row in rows.iter_rows(named=True):
        cells = [markdown(row["title"]), markdown(row["models"]), str(row["users"] or "")]
        lines.append(table_row([*cells, *(_short(row[name]) for name in ("write_ms", "rank_ms", "ms", "joules"))]))
    lines += ["", "- Time per user in batches, without training, starting Python and loading models."]
    sources = {word for text in rows["energy_from"] for word in text.split(" and ") if word}
    if "CPU time" in sources:
        lines.append(f"- Energy from CPU time: {WATTS_PER_CORE:g} W for a busy core, which is stated and not measured.")
    if "NVML" in sources:
        lines.append(
            "- Energy on a GPU: the counter of its driver (NVML), which includes what else runs on that GPU; CPU time "
            f"at {WATTS_PER_CORE:g} W a core on top."
        )
    for reason in rows.filter(pl.col("why_not") != "")["why_not"].unique(maintain_order=True):
        names = rows.filter(pl.col("why_not") == reason)["title"].unique(maintain_order=True)
        lines.append(f"- Blank: {reason} ({', '.join(map(markdown, names))}).")
    return "\n".join(lines) + "\n"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"
