"""A plan: the work of the jobs that are still to run, and the hours it takes at measured or stated speeds.

Work is counted in one unit per script (``langptune.workflow.amounts``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import polars as pl

from langptune.benchmarks import Benchmark, Outputs, outputs
from langptune.config.base import nearest, read_yaml, validate
from langptune.config.datasets import DatasetEntry, LeaveOneOut, Temporal
from langptune.config.rates import Rates
from langptune.config.sample import Sample
from langptune.data import contracts
from langptune.errors import UserError, printable
from langptune.provenance import ROOT, output_of
from langptune.reading import read_json
from langptune.workflow.amounts import Work, one_job, product, total
from langptune.workflow.stages import declared

Device = Literal["cpu", "gpu"]
GPU_NAMES = ("NVIDIA", "GeForce", "Tesla", "Quadro", "Instinct")
"""Manifests name a device, not its kind. The names of GPUs contain these words."""


@dataclass(frozen=True)
class Job:
    """Jobs that differ only in the number of the shard: their count, and the spec of one of them.

    dataset: empty where the rule has none. requested: memory that each job requests (``mem_mb``).
    """

    rule: str
    dataset: str
    script: str
    spec: dict[str, Any]
    count: int = 1
    requested: float | None = None


@dataclass(frozen=True)
class Line:
    """One line of a plan: a rule on one dataset with one model.

    amount, hours, disk (bytes): None where unknown. hours: of cores (``cpu``) or of GPUs (``gpu``).
    rate: units per second of a core or GPU. peak: MB, the highest memory use of an earlier job of this kind.
    requested: MB as in ``mem_mb``, the highest request of these jobs.
    """

    rule: str
    dataset: str
    model: str
    jobs: int
    unit: str
    amount: float | None
    device: Device
    rate: float | None
    hours: float | None
    disk: float | None
    source: str
    peak: float | None = None
    requested: float | None = None


@dataclass
class Seen:
    """The usage of finished jobs of one script and model: seconds of cores or GPUs, amount of work, bytes of their
    outputs, the names of their devices, and the highest memory use of one job (MB)."""

    jobs: int = 0
    seconds: float = 0.0
    amount: float = 0.0
    disk: int = 0
    names: set[str] = field(default_factory=set)
    peak: float | None = None


class Sizes:
    """The numbers of items and sessions: counted where the data are prepared, else from the registry."""

    def __init__(self, datasets: dict[str, DatasetEntry], sample: Sample):
        self._datasets, self._sample = datasets, sample

    def items(self, items_file: str) -> int | None:
        """The number of items of a catalogue; None where it is unknown."""
        if Path(items_file).is_file():
            return _rows(items_file)
        entry = self._entry(items_file)
        published = entry.published.get("catalogue")
        return published.items if published and published.items else entry.expect and entry.expect.items

    def sessions(self, file: str, split: str, sampled: bool = True) -> int | None:
        """The number of sessions of a split, or of its sample (``sampled``).

        An upper bound where the data are not prepared; None where none is known.
        """
        if Path(file).is_file():
            return _rows(file, split)
        known = self._before(self._entry(file), split)
        size = getattr(self._sample, split) if sampled else None
        return min((n for n in (known, size) if n is not None), default=None)

    def interactions(self, items_file: str) -> int | None:
        """The number of interactions in the raw files of a dataset; None where it is unknown."""
        entry = self._entry(items_file)
        counts = [step.interactions for step in (entry.expect, *entry.published.values()) if step is not None]
        return max((n for n in counts if n is not None), default=None)

    def _entry(self, file: str) -> DatasetEntry:
        return self._datasets[Path(file).parent.parent.name]  # {results}/{dataset}/data/{file}

    def _before(self, entry: DatasetEntry, split: str) -> int | None:
        published = entry.published.get(f"{split} sessions")
        if published and published.users:
            return published.users
        if entry.expect is None:
            return None
        users = min(entry.expect.users, entry.users or entry.expect.users)
        if split == "train" and isinstance(entry.protocol, LeaveOneOut | Temporal):
            # One session per interaction. The number for a subset of the users is known only from the files.
            return entry.expect.interactions if entry.users is None else None
        return users


@cache
def _rows(file: str, split: str | None = None) -> int:
    table = contracts.scan_parquet(file)
    if split is not None:
        table = table.filter(pl.col("split") == split)
    return int(table.select(pl.len()).collect().item())


def work(script: str, spec: dict[str, Any], sizes: Sizes) -> Work:
    """The work of one job, from its spec: the result of ``amount`` of its script, or one job where it has none."""
    file = ROOT / "scripts" / f"{script}.py"  # gone where an earlier version wrote the manifest
    amount = getattr(declared(file), "amount", None) if file.is_file() else None
    return amount(spec, sizes) if amount else one_job()


_MANIFEST = {"output": str, "script": str, "spec": dict, "notes": dict, "device": str, "wall_seconds": int | float}
"""The keys of a manifest that are used here, and their types."""


def manifests(folders: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every output under some folders that has a manifest, and that manifest; invalid manifests are skipped.

    Reference results are skipped: they come with the repository and were made on another machine.
    """
    paths = {
        path
        for folder in folders
        for path in folder.rglob("*manifest.json")
        if folder / "reference" not in path.parents
    }
    for path in sorted(paths):
        try:
            manifest = read_json(path)
        except (OSError, ValueError):
            continue
        if not isinstance(manifest, dict):
            continue
        if not all(isinstance(manifest.get(key), kind) for key, kind in _MANIFEST.items()):
            continue
        output = output_of(path)
        if manifest["output"] == output.name and 0 <= manifest["wall_seconds"] < math.inf:
            yield output, manifest


def measured(
    finished: Iterable[tuple[Path, dict[str, Any]]], sizes: Sizes, benchmarks: Mapping[Outputs, Benchmark] | None = None
) -> dict[tuple[str, str, Device], Seen]:
    """(script, model, device) -> the usage of such jobs, from the manifests beside their outputs.

    A job that resumed the work of a killed one is left out: its time covers only a part of the work.

    Args:
        finished: outputs with their manifests.
        benchmarks: Snakemake's measurements; they take precedence over the manifests.
    """
    out: dict[tuple[str, str, Device], Seen] = {}
    done: dict[str, Seen] = {}
    for output, manifest in finished:
        job = json.dumps([manifest["script"], manifest["spec"]], sort_keys=True)
        if job not in done:
            seen = _seen(manifest, sizes, out, (benchmarks or {}).get(outputs(manifest["spec"])))
            if seen is None:
                continue
            done[job] = seen
        done[job].disk += _size(output)
    return out


def device_of(manifest: dict[str, Any], todo: Work) -> Device:
    """The device of a finished job: ``gpu`` where its script uses one and its manifest names one."""
    on_gpu = any(name in manifest["device"] for name in GPU_NAMES)
    return "gpu" if on_gpu and todo.accelerated else "cpu"


def device_seconds(manifest: dict[str, Any], device: Device, benchmark: Benchmark | None) -> float:
    """Seconds of cores (``cpu``) or GPUs that a finished job took.

    The benchmark file gives the number of cores or GPUs that were granted. Without one, the spec gives the threads, and
    one GPU is assumed.
    """
    if benchmark is None:
        return manifest["wall_seconds"] * (1 if device == "gpu" else manifest["spec"].get("threads", 1))
    return benchmark.seconds * ((benchmark.gpus or 1) if device == "gpu" else benchmark.threads)


def peak_memory(manifest: dict[str, Any], benchmark: Benchmark | None) -> float | None:
    """The highest memory use of a finished job, in MB, as requests are; None where it is unknown.

    Snakemake samples the sum over all processes and may miss a short peak. The manifest has the exact peak of the
    largest process. Both are in MiB, whatever the key's name says.
    """
    known = [manifest.get("peak_memory_mb"), benchmark.memory if benchmark else None]
    return max((one * 2**20 / 1e6 for one in known if one is not None), default=None)


def _seen(
    manifest: dict[str, Any],
    sizes: Sizes,
    out: dict[tuple[str, str, Device], Seen],
    benchmark: Benchmark | None,
) -> Seen | None:
    script = Path(manifest["script"]).stem
    if manifest["notes"].get("resumed"):
        return None
    try:
        done = work(script, manifest["spec"], sizes)
    except (KeyError, TypeError):
        return None  # another version wrote it, with other keys in its specs
    if not done.amount:
        return None
    device = device_of(manifest, done)
    seen = out.setdefault((script, done.model, device), Seen())
    seen.jobs += 1
    seen.seconds += device_seconds(manifest, device, benchmark)
    seen.amount += done.amount
    seen.peak = max((one for one in (seen.peak, peak_memory(manifest, benchmark)) if one is not None), default=None)
    seen.names.add(manifest["device"])
    return seen


def _size(output: Path) -> int:
    files = output.rglob("*") if output.is_dir() else [output]
    return sum(file.stat().st_size for file in files if file.is_file())


def stated(path: Path, scripts: Iterable[str]) -> Rates:
    """The speeds in a file.

    Raises:
        UserError: naming file, key, value, and the nearest script where one is misspelt.
    """
    rates = validate(Rates, read_yaml(path), str(path))
    known = [*scripts, "other"]
    for name in rates.root:
        if name not in known:
            raise UserError(f"{path}: unknown script '{name}'{nearest(name, known)}")
    if "other" not in rates.root:
        raise UserError(f"{path}: key 'other' is missing; it is the rate of the scripts that are not named")
    return rates


def speed(script: str, todo: Work, rates: Rates, device: Device) -> tuple[float | None, float]:
    """The stated speed: units per second of a core or GPU (None where unknown), and the seconds of a job's start.

    Raises:
        UserError: the unit of a stated speed is not that of the work.
    """
    entry = rates.root.get(script) or (rates.root["other"] if todo.unit == "jobs" else None)
    if entry is None:
        return None, 0.0
    if entry.unit != todo.unit:
        raise UserError(
            f"rates.yaml: {script}: unit '{entry.unit}': its work is counted in '{todo.unit}'; state a rate of these"
        )
    return entry.at(device, todo.weights), entry.seconds_to_start(todo.weights)


def lines(
    jobs: Iterable[Job],
    sizes: Sizes,
    seen: dict[tuple[str, str, Device], Seen],
    rates: Rates,
    device: Device,
    names: dict[str, str],
) -> list[Line]:
    """The plan: a line per rule, dataset and model, in the order of the jobs.

    Args:
        device: the device of jobs with a model.
        names: a model's identity (``identity`` of its entry) -> its name in the registry.

    Raises:
        UserError: the unit of a stated speed is not that of the work.
    """
    rows: dict[tuple[str, str, str, str], list[tuple[Work, int]]] = {}
    requests: dict[tuple[str, str, str, str], list[float]] = {}
    for job in jobs:
        todo = work(job.script, job.spec, sizes)
        # The time of small jobs does not depend on the dataset.
        dataset = "" if todo.unit == "jobs" else job.dataset
        row = (job.rule, dataset, job.script, todo.model)
        rows.setdefault(row, []).append((todo, job.count))
        requests.setdefault(row, []).extend([job.requested] if job.requested is not None else [])
    out = []
    for row, members in rows.items():
        rule, dataset, script, model = row
        where: Device = device if members[0][0].accelerated else "cpu"
        before = seen.get((script, model, where))
        line = _line(rule, dataset, names.get(model, model), script, members, before, rates, where)
        out.append(replace(line, peak=before and before.peak, requested=max(requests[row], default=None)))
    return out


def _line(
    rule: str,
    dataset: str,
    name: str,
    script: str,
    members: list[tuple[Work, int]],
    before: Seen | None,
    rates: Rates,
    device: Device,
) -> Line:
    one = members[0][0]
    count = sum(n for _, n in members)
    amount = total(*(product(todo.amount, n) for todo, n in members))
    disk = total(*(product(todo.disk, n) for todo, n in members))
    start = 0.0
    if before is not None:
        # Measured seconds are those of whole jobs and include loading.
        rate: float | None = before.amount / max(before.seconds, 1e-3)
        disk = before.disk / before.jobs * count
        source = f"measured: {before.jobs} job{'s' * (before.jobs > 1)} on {', '.join(sorted(before.names))}"
    else:
        rate, start = speed(script, one, rates, device)
        source = "stated" if rate is not None else "unknown"
    hours = (amount / rate + count * start) / 3600 if amount is not None and rate is not None else None
    if amount is None:
        source = "unknown until the data are prepared"
    return Line(rule, dataset, name, count, one.unit, amount, device, rate, hours, disk, source)


def table(plan: list[Line]) -> str:
    """The plan as text: aligned columns, totals, and remarks on what the totals leave out."""
    head = ["rule", "dataset", "model", "jobs", "work", "per second", "hours", "disk", "memory", "rate"]
    body = []
    for line in plan:
        amount = "" if line.unit == "jobs" else f"{_short(line.amount)} {line.unit}"
        hours = "unknown" if line.hours is None else f"{_hours(line.hours)} {line.device.upper()}"
        cells = [line.rule, line.dataset, line.model, str(line.jobs), amount, _short(line.rate)]
        body.append([*cells, hours, _bytes(line.disk), _memory(line), line.source])
    spent = [
        f"{_hours(sum(line.hours or 0 for line in plan if line.device == device))} {device.upper()}"
        for device in ("cpu", "gpu")
        if any(line.device == device and line.hours is not None for line in plan)
    ]
    total = ["total", "", "", str(sum(line.jobs for line in plan)), "", ""]
    total += [" + ".join(spent) or "unknown", _bytes(sum(line.disk or 0 for line in plan)), "", ""]
    rows = [[printable(cell) for cell in row] for row in [head, *body, total]]  # devices come from manifests
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    numbers = {3, 5, 6, 7, 8}  # aligned to the right
    printed = [
        "  ".join(
            cell.rjust(width) if at in numbers else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    out = [printed[0], rule, *printed[1:-1], rule, printed[-1]]
    return "\n".join(line.rstrip() for line in [*out, *_remarks(plan)])


def _remarks(plan: list[Line]) -> list[str]:
    out = [
        "",
        "hours: of one core (CPU) or one GPU; per second: of the same. Work is counted at its "
        "upper limits, so most hours are too high.",
    ]
    if any(line.requested is not None for line in plan):
        out.append("memory: the highest use of such a job here so far, of what each job requests.")
    if any(line.source == "stated" for line in plan):
        out.append(
            "stated: from config/rates.yaml, not measured for this machine; expect a factor of three either way."
        )
    if blank := [line for line in plan if line.hours is None]:
        rules = ", ".join(dict.fromkeys(line.rule for line in blank))
        out.append(f"Not in the hours: {sum(line.jobs for line in blank)} jobs of unknown time ({rules}).")
    if blank := [line for line in plan if line.disk is None]:
        out.append(
            f"Not in the disk: outputs of unknown size ({', '.join(dict.fromkeys(line.rule for line in blank))})."
        )
    if any(line.rule in ("train_encoder", "train_decoder") for line in plan):
        out.append(
            "While it runs, a training job holds two checkpoints beside that, of about 12 bytes a trained weight each."
        )
    return out


def _short(value: float | None) -> str:
    if value is None:
        return "?"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _hours(value: float) -> str:
    return "<0.01" if 0 < value < 0.005 else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def _memory(line: Line) -> str:
    if line.requested is None:
        return ""
    return f"{'?' if line.peak is None else f'{line.peak / 1000:.1f}'} of {line.requested / 1000:.1f} GB"
