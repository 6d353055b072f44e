"""Benchmark files: the line of JSON that Snakemake writes of each job, read into what it took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langptune.errors import UserError
from langptune.files import read_plain
from langptune.stage import read_spec

FOLDER = "benchmarks"
"""Below a results folder: ``benchmarks/{rule}/{job}.jsonl``."""

Outputs = tuple[str, ...]
"""The output paths of a job, sorted, as its spec has them: what tells a job from all others."""


@dataclass(frozen=True)
class Benchmark:
    """What Snakemake saw of one job, in its last attempt, start of the interpreter and all.

    seconds: wall time. memory: highest sampled sum over the job's processes in MiB; None where it ended before the
    first sample. threads: cores granted. requested: ``mem_mb``. gpus: granted; None where none were asked for.
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
    """The GPUs that a job was granted, over all its nodes; None where its resources name none.

    ``gpu`` is a number for the whole job; ``gres`` (``gpu``, ``gpu:2``, ``gpu:a100:2``, several with commas) is by
    node.
    """
    told = resources.get("gpu")
    if told is not None:
        return _whole(told, 0)
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
    """The job in a benchmark file; None where it is no such file, or was written without ``--benchmark-extended``."""
    try:
        # One line; with `repeat` several, of which the last is the one whose outputs are there.
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
    """Every benchmark file under some results folders, those of results within results too."""
    found = {path for folder in folders for path in folder.rglob(f"{FOLDER}/*/*.jsonl")}
    yield from sorted(found)


def gather(paths: Iterable[Path]) -> dict[Outputs, Benchmark]:
    """Outputs -> what their job took; what is no benchmark file is passed over."""
    found = (read(path) for path in paths)
    return {one.outputs: one for one in found if one is not None}
