"""Cost: the time and memory of the jobs behind a dataset's results, by stage and model, beside a plan's prediction.

The jobs are found in the manifests, from the results back over the inputs of each job. So files that an earlier config
left behind are not counted. The time and memory of a job are in its benchmark file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from langptune import plan
from langptune.benchmarks import Benchmark, Outputs, outputs
from langptune.config.rates import Rates
from langptune.markup import duration, markdown, table_row
from langptune.provenance import manifest_of
from langptune.reading import read_json

SCHEMA = {
    "rule": pl.String,
    "model": pl.String,
    "device": pl.String,
    "shared": pl.Boolean,
    "jobs": pl.Int64,
    "missing": pl.Int64,
    "resumed": pl.Int64,
    "seconds": pl.Float64,
    "seconds_median": pl.Float64,
    "seconds_max": pl.Float64,
    "share": pl.Float64,
    "core_hours": pl.Float64,
    "gpu_hours": pl.Float64,
    "peak_mb": pl.Float64,
    "requested_mb": pl.Float64,
    "over_request": pl.Int64,
    "predicted_jobs": pl.Int64,
    "predicted_hours": pl.Float64,
    "measured_hours": pl.Float64,
    "ratio": pl.Float64,
}
"""Columns of ``cost.csv``; ``table`` explains them."""


@dataclass(frozen=True)
class Spent:
    """The usage of one job.

    rule: the script's name where there is no benchmark file. model: a registry name; empty where none is used.
    seconds: wall time; None without a benchmark file. memory: MB. requested: as ``mem_mb``. cores, gpus: granted.
    resumed: its time covers only a part of the work. shared: its outputs are not of this dataset alone.
    predicted: hours of one core or GPU (``device``) at the stated speeds; None where no speed is stated.
    """

    rule: str
    model: str
    device: plan.Device
    seconds: float | None
    memory: float | None
    requested: float | None
    cores: int
    gpus: int
    resumed: bool
    shared: bool
    predicted: float | None

    @property
    def compared(self) -> bool:
        """Whether its time can be compared with the prediction."""
        return self.seconds is not None and self.predicted is not None and not self.resumed

    @property
    def device_hours(self) -> float:
        """Hours of cores or of GPUs, in the unit of the prediction."""
        return (self.seconds or 0.0) * (max(self.gpus, 1) if self.device == "gpu" else self.cores) / 3600


def reached(targets: Iterable[str]) -> tuple[dict[Outputs, dict[str, Any]], int]:
    """The jobs behind some outputs: the jobs that made them, the jobs that made the inputs of these, and so on.

    Tables and figures read many files that are no inputs of their rules; their manifests list them.

    Returns:
        Outputs -> manifest of a job; and the number of files without a manifest, whose jobs and inputs are unknown.
    """
    jobs: dict[Outputs, dict[str, Any]] = {}
    lost = 0
    todo, seen = list(targets), set()
    while todo:
        path = todo.pop()
        if path in seen or path.endswith("manifest.json"):
            continue
        seen.add(path)
        try:
            manifest = read_json(manifest_of(path))
            jobs[outputs(manifest["spec"])] = manifest
            todo += filter(_is_text, manifest["inputs"])
            for name in ("runs", "read"):
                noted = manifest["notes"].get(name)
                todo += filter(_is_text, noted if isinstance(noted, dict) else [])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            lost += 1
    return jobs, lost


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def spent(
    jobs: Mapping[Outputs, dict[str, Any]],
    benchmarks: Mapping[Outputs, Benchmark],
    folder: str,
    sizes: plan.Sizes,
    rates: Rates,
    names: Mapping[str, str],
) -> list[Spent]:
    """The usage of each job, with its prediction.

    Args:
        jobs: outputs -> manifest, as ``reached`` returns them.
        folder: the dataset's results; outputs elsewhere are shared.
        names: a model's identity (``config.identity``) -> its name in the registry.

    Raises:
        UserError: the unit of a stated speed is not that of the work.
    """
    out = []
    for key, manifest in sorted(jobs.items()):
        script, seen = Path(manifest["script"]).stem, benchmarks.get(key)
        try:
            todo = plan.work(script, manifest["spec"], sizes)
        except (KeyError, TypeError):
            todo = plan.Work("unknown", None)  # another version wrote it, with other keys in its specs
        device = plan.device_of(manifest, todo)
        granted = seen.gpus if seen else None
        out.append(
            Spent(
                rule=seen.rule if seen else script,
                model=names.get(todo.model, todo.model),
                device=device,
                seconds=seen.seconds if seen else None,
                memory=plan.peak_memory(manifest, seen) if seen else None,
                requested=seen.requested if seen else None,
                cores=seen.threads if seen else 0,
                # Granted GPUs count even if they are unused. Without a scheduler, a job uses one GPU.
                gpus=granted if granted is not None else int(device == "gpu"),
                resumed=bool(manifest["notes"].get("resumed")),
                shared=not all(path.startswith(f"{folder}/") for path in key),
                predicted=predicted(script, todo, rates, device),
            )
        )
    return out


def predicted(script: str, todo: plan.Work, rates: Rates, device: plan.Device) -> float | None:
    """Hours of one core or GPU that a plan predicts for a job at the stated speeds; None where it predicts none.

    Raises:
        UserError: the unit of a stated speed is not that of the work.
    """
    if todo.amount is None:
        return None
    rate, start = plan.speed(script, todo, rates, device)
    return None if rate is None else (todo.amount / rate + start) / 3600


def table(jobs: Iterable[Spent]) -> pl.DataFrame:
    """A row per rule, model and kind of device: the dataset's own rows by their time, then the shared ones.

    Columns:
        rule, model, device, shared: the key of the row.
        jobs: number of jobs.
        missing: jobs without a benchmark file; no other number counts them.
        resumed: jobs whose time covers only a part of their work.
        seconds, seconds_median, seconds_max: wall time of all jobs together, and its median and maximum.
        share: of the dataset's seconds; null where shared.
        core_hours, gpu_hours: hours of the cores and GPUs that were granted.
        peak_mb, requested_mb: the highest memory use and the highest request of one job.
        over_request: jobs that used more memory than they requested.
        predicted_jobs: jobs with both a prediction and a measurement.
        predicted_hours, measured_hours: of these jobs, in hours of cores (cpu) or GPUs (gpu).
        ratio: measured_hours / predicted_hours.
    """
    groups: dict[tuple[bool, str, str, str], list[Spent]] = {}
    for job in jobs:
        groups.setdefault((job.shared, job.rule, job.model, job.device), []).append(job)
    rows = [_row(*key, members) for key, members in groups.items()]
    total = sum(row["seconds"] for row in rows if not row["shared"])
    for row in rows:
        row["share"] = None if row["shared"] or not total else row["seconds"] / total
    rows.sort(key=lambda row: (row["shared"], -row["seconds"], row["rule"], row["model"], row["device"]))
    return pl.DataFrame(rows, schema=SCHEMA)


def _row(shared: bool, rule: str, model: str, device: str, members: list[Spent]) -> dict[str, Any]:
    known = [job for job in members if job.seconds is not None]
    seconds = [job.seconds for job in known]
    both = [job for job in known if job.compared]
    ahead, took = sum(job.predicted for job in both), sum(job.device_hours for job in both)
    return {
        "rule": rule,
        "model": model,
        "device": device,
        "shared": shared,
        "jobs": len(members),
        "missing": len(members) - len(known),
        "resumed": sum(job.resumed for job in known),
        "seconds": sum(seconds),
        "seconds_median": median(seconds) if seconds else None,
        "seconds_max": max(seconds, default=None),
        "core_hours": sum(job.seconds * job.cores for job in known) / 3600,
        "gpu_hours": sum(job.seconds * job.gpus for job in known) / 3600,
        "peak_mb": max((job.memory for job in known if job.memory is not None), default=None),
        "requested_mb": max((job.requested for job in known if job.requested is not None), default=None),
        "over_request": sum(
            job.memory > job.requested for job in known if job.memory is not None and job.requested is not None
        ),
        "predicted_jobs": len(both),
        "predicted_hours": ahead if both else None,
        "measured_hours": took if both else None,
        "ratio": took / ahead if ahead else None,
    }


def page(costs: pl.DataFrame, title: str, machines: Iterable[str], lost: int = 0) -> str:
    """The table as a Markdown page.

    Args:
        costs: the result of ``table``.
        machines: hosts with their devices, as the manifests name them.
        lost: number of files without a manifest.
    """
    head = ["stage", "model", "jobs", "time", "median", "longest", "share", "core-hours", "GPU-hours", "memory, GB"]
    head += ["predicted", "measured", "ratio"]
    own, shared = (costs.filter(pl.col("shared") == side) for side in (False, True))
    body = [_cells({**row, "rule": f"`{row['rule']}`"}) for row in own.iter_rows(named=True)]
    devices = own["device"].unique().sort().to_list()
    totals = [("total", own)]
    if len(devices) > 1:
        totals += [(f"total on {name.upper()}", own.filter(pl.col("device") == name)) for name in devices]
    body += [[f"**{cell}**" if cell else "" for cell in _cells(_total(name, rows))] for name, rows in totals]
    body += [_cells({**row, "rule": f"`{row['rule']}` (shared)"}) for row in shared.iter_rows(named=True)]
    lines = [f"# Cost: {markdown(title)}", "", table_row(head), table_row(["---", "---", *["---:"] * (len(head) - 2)])]
    lines += [table_row(row) for row in body]
    lines += ["", *(f"- {line}" for line in remarks(costs, machines, lost))]
    return "\n".join(lines) + "\n"


def remarks(costs: pl.DataFrame, machines: Iterable[str], lost: int = 0) -> list[str]:
    """Remarks on the numbers: their source, and what they do not include."""
    out = [
        f"Measured on {markdown('; '.join(sorted(set(machines))))}. Another machine, or other work beside it, takes "
        "another time.",
        "Time: the sum over all jobs; the wall time was shorter where jobs ran side by side. Core- and GPU-hours: of "
        "the cores and GPUs that were granted. Memory: the highest use of one job, of its request.",
        "Predicted: at the speeds stated in `config/rates.yaml`, without anything measured, in time of one core or "
        "GPU; measured: the same jobs in the same unit; ratio: measured over predicted.",
        "Attempts that failed leave no benchmark file and are in no number.",
    ]
    jobs = costs["jobs"].sum()

    def of_jobs(count: pl.Expr, what: str, why: str) -> None:
        rows = costs.with_columns(count.alias("count")).filter(pl.col("count") > 0)
        if len(rows):
            rules = ", ".join(rows["rule"].unique(maintain_order=True))
            out.append(f"{what}: {rows['count'].sum()} of {jobs} jobs ({rules}){why}.")

    blank = ", made by another run or version, or without `--benchmark-extended`. Only the number of jobs counts them"
    of_jobs(pl.col("missing"), "Without a benchmark file", blank)
    part = ". They continued an earlier attempt. Their time is that of the last part; no prediction is compared with it"
    of_jobs(pl.col("resumed"), "Resumed", part)
    others = pl.col("jobs") - pl.col("missing") - pl.col("resumed") - pl.col("predicted_jobs")
    of_jobs(others, "Without a prediction", ": no speed is stated")
    of_jobs(pl.col("over_request"), "More memory than asked for", "")
    if costs["shared"].any():
        rules = costs.filter(pl.col("shared"))["rule"]
        elsewhere = not rules.str.starts_with("prefetch_").all()
        what = (
            "models, raw data and the training of encoders from other datasets" if elsewhere else "models and raw data"
        )
        out.append(f"Shared: {what}, which several datasets may use; they are not in the total.")
    if lost:
        out.append(
            f"Without a manifest: {lost} files. The jobs that made them, and the jobs before those, are not counted."
        )
    return out


def _total(name: str, own: pl.DataFrame) -> dict[str, Any]:
    sums = {key: own[key].sum() for key in ("jobs", "missing", "resumed", "seconds", "core_hours", "gpu_hours")}
    # Hours of cores and of GPUs cannot be added, so a ratio over both has no meaning.
    mixed = own.filter(pl.col("predicted_jobs") > 0)["device"].n_unique() != 1
    ahead, took = (None if mixed else own[key].sum() for key in ("predicted_hours", "measured_hours"))
    blank = {"seconds_median": None, "peak_mb": own["peak_mb"].max(), "requested_mb": None, "share": None}
    return {
        **{"rule": name, "model": "", **sums, **blank, "seconds_max": own["seconds_max"].max()},
        **{"predicted_hours": ahead, "measured_hours": took, "ratio": took / ahead if ahead else None},
    }


def _cells(row: dict[str, Any]) -> list[str]:
    notes = [f"{row[name]} {name}" for name in ("missing", "resumed") if row[name]]
    memory = [f"{value / 1000:.1f}" for value in (row["peak_mb"], row["requested_mb"]) if value is not None]
    hours = [None if row[name] is None else row[name] * 3600 for name in ("predicted_hours", "measured_hours")]
    return [
        row["rule"],
        markdown(row["model"]),
        str(row["jobs"]) + (f" ({', '.join(notes)})" if notes else ""),
        *(duration(row[name]) for name in ("seconds", "seconds_median", "seconds_max")),
        "" if row["share"] is None else f"{100 * row['share']:.1f}%",
        _short(row["core_hours"]),
        _short(row["gpu_hours"]),
        " of ".join(memory) if row["peak_mb"] is not None else "",
        *(duration(value) for value in hours),
        "" if row["ratio"] is None else f"{row['ratio']:.2g}",
    ]


def _short(hours: float) -> str:
    return "" if hours == 0 else "<0.01" if hours < 0.005 else f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}"
