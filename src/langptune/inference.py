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
from langptune.markup import markdown
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


def steps(ranks: str) -> dict[str, list[Mapping[str, Any]]]:
    """The manifests of the jobs behind some ranks, by step (``write``, ``rank``), training left out.

    Args:
        ranks: path of ``ranks.parquet``.

    Raises:
        OSError, ValueError, KeyError: a manifest is missing or cannot be read.
    """
    last = read_json(manifest_of(ranks))
    todo = [last["spec"]["profiles_in"]] if last["spec"].get("profiles_in") else []
    found: dict[str, list[Mapping[str, Any]]] = {"write": [], "rank": [last]}
    while todo:
        manifest = read_json(manifest_of(todo.pop()))
        script = Path(manifest["script"]).stem
        if script == "gather_profiles":
            todo += manifest["spec"]["shards_in"]
        elif script == "write_profiles":
            found["write"].append(manifest)
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
    parts: dict[str, list[tuple[float, ...]]] = {"write": [], "rank": []}
    devices, joules, counters = set(), {"write": 0.0, "rank": 0.0}, set()
    for run in runs:
        try:
            found = steps(run.ranks_path)
            notes = {step: [manifest["notes"][NOTE] for manifest in jobs] for step, jobs in found.items()}
        except (OSError, ValueError, KeyError, TypeError):
            row["why_not"] = "made by a version that did not measure it"
            continue
        row["runs"] += 1
        devices |= {manifest["device"] for jobs in found.values() for manifest in jobs}
        for step, measured in notes.items():
            for note in measured:
                parts[step].append((note["sessions"], note["seconds"]))
                gpu = note["gpu_joules"]
                joules[step] += note["cpu_seconds"] * WATTS_PER_CORE + (gpu or 0.0)
                counters.add("remote" if note.get("remote") else "CPU time" if gpu is None else "NVML")
    row["device"] = ", ".join(sorted(devices))
    users = {step: sum(part[0] for part in measured) for step, measured in parts.items()}
    row["users"] = int(users["rank"])
    used = [step for step, measured in parts.items() if measured]
    if row["runs"] and any(users[step] == 0 for step in used):
        row["why_not"] = "finished earlier batches were reused, so nothing was measured"
    elif row["runs"]:
        each = {step: 1000 * sum(part[1] for part in parts[step]) / users[step] for step in used}
        row |= {f"{step}_ms": value for step, value in each.items()}
        row["ms"] = sum(each.values())
        if "remote" in counters:
            row["why_not"] = "the energy of a remote model is not known"
        else:
            row["joules"] = sum(joules[step] / users[step] for step in used)
            row["energy_from"] = " and ".join(sorted(counters))
    return row


def section(rows: pl.DataFrame) -> str:
    """The table as a section of a Markdown page."""
    head = ["method", "models", "users", "writing, ms", "ranking, ms", "per user, ms", "per user, J"]
    lines = ["## Inference", "", _line(head), _line(["---", "---", *["---:"] * (len(head) - 2)])]
    for row in rows.iter_rows(named=True):
        cells = [markdown(row["title"]), markdown(row["models"]), str(row["users"] or "")]
        lines.append(_line([*cells, *(_short(row[name]) for name in ("write_ms", "rank_ms", "ms", "joules"))]))
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


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"
