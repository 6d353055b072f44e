"""What finished jobs recorded: the manifests beside their outputs, of this or an earlier version of the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langptune.provenance import manifest_of
from langptune.reading import read_json


def content(path: Path | str) -> Any:
    """The content of a JSON file; None where there is none that can be read."""
    try:
        return read_json(Path(path))
    except (OSError, ValueError):
        return None


def manifest(output: Path | str) -> dict[str, Any]:
    """The manifest of an output; empty where there is none that can be read."""
    found = content(manifest_of(output))
    return found if isinstance(found, dict) else {}


def at(data: Any, *keys: str | int) -> Any:
    """A value within nested mappings and lists; None where a key is missing on the way.

    Example: ``at(manifest(path), "notes", "val", "ndcg@10")``.
    """
    for key in keys:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def number(data: Any, *keys: str | int) -> float | None:
    """A number within nested mappings and lists; None where there is none."""
    value = at(data, *keys)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def shown(value: Any) -> str:
    """A recorded value as text: ``key value`` pairs of a mapping, the elements of a list, a number without zeros."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inner(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_inner, value))
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _inner(value: Any) -> str:
    return f"({shown(value)})" if isinstance(value, dict | list | tuple) else shown(value)
