"""Benchmark files: Snakemake writes a line of JSON for each job, with its time, memory and resources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langptune.errors import UserError
from langptune.reading import read_plain
from langptune.stage import read_spec

FOLDER = "benchmarks"
"""Folder in a results folder: ``benchmarks/{rule}/{job}.jsonl``."""

Outputs = tuple[str, ...]
"""The sorted output paths in a job's spec. They identify the job."""


@dataclass(frozen=True)
class Benchmark:
    """Snakemake's measurements of the last attempt of one job, the start of the interpreter included.

    seconds: wall time. memory: highest sampled sum over the job's processes in MiB; None where it ended before the
    first sample. threads: cores granted. requested: ``mem_mb``. gpus: granted; None where none were requested.
    """

    rule: str
    outputs: Outputs
    seconds: float
    memory: float | None
    threads: int
    requested: float | None
    gpus: int | None


def outputs(spec: Mapping[str, Any]) -> Outputs:
    """The output paths in a spec (fields whose names end in ``_out``: a path, a list, a mapping or null)."""
    out: list[str] = []
    for name, value in spec.items():
        if name.endswith("_out"):
            values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            out += [str(path) for path in values if path is not None]
    return tuple(sorted(out))


def gpus(resources: Mapping[str, Any]) -> int | None:
    """The number of GPUs that a job was granted, over all its nodes; None where its resources name none.

    ``gpu`` is the number for the whole job. ``gres`` (``gpu``, ``gpu:2``, ``gpu:a100:2``, several with commas) is the
    number per node.
    """
    total = resources.get("gpu")
    if total is not None:
        return _whole(total, 0)
    count = 0
    for part in str(resources.get("gres") or "").split(","):
        words = part.partition("(")[0].strip().split(":")
        if words[0] == "gpu":
            count += _whole(words[-1], 1) if len(words) > 1 else 1
    return count * _whole(resources.get("nodes", 1), 1) or None


def _whole(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def read(path: Path) -> Benchmark | None:
    """The job in a benchmark file.

    None where it is no such file, or Snakemake wrote it without ``--benchmark-extended``.
    """
    try:
        # With `repeat` there are several lines; the last one is that of the outputs.
        line = json.loads(read_plain(path).decode().splitlines()[-1])
        spec = read_spec(line["params"]["spec"])
        granted = line["resources"]
        return Benchmark(
            rule=str(line["rule_name"]),
            outputs=outputs(spec),
            seconds=float(line["s"]),
            memory=_number(line["max_rss"]),
            threads=int(line["threads"]),
            requested=_number(granted.get("mem_mb")),
            gpus=gpus(granted),
        )
    except (UserError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None  # "NA": nothing was sampled


def files(folders: Iterable[Path]) -> Iterator[Path]:
    """Every benchmark file under some results folders, at any depth."""
    yield from sorted({path for folder in folders for path in folder.rglob(f"{FOLDER}/*/*.jsonl")})


def gather(paths: Iterable[Path]) -> dict[Outputs, Benchmark]:
    """Outputs -> the measurements of their job; files that are no benchmark files are skipped."""
    benchmarks = (read(path) for path in paths)
    return {one.outputs: one for one in benchmarks if one is not None}
