"""The manifests of the jobs behind a comparison, by script: distinct values and sums, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langptune.comparison.recorded import at, number, shown
from langptune.provenance import manifest_of


class Manifests:
    """The manifests of the jobs behind a comparison, by script; ``jobs`` as ``cost.reached`` returns them."""

    def __init__(self, jobs: Mapping[tuple[str, ...], dict[str, Any]]):
        self._of: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for outputs, manifest in sorted(jobs.items()):
            path = str(manifest_of(_described(outputs, manifest)))
            self._of.setdefault(Path(manifest["script"]).stem, []).append((path, manifest))

    def all(self, *scripts: str) -> list[tuple[str, dict[str, Any]]]:
        """Path and content of the manifests of some scripts; without a name, of all."""
        return [one for script in scripts or sorted(self._of) for one in self._of.get(script, [])]

    def values(self, scripts: str | tuple[str, ...], *keys: str | int) -> list[tuple[Any, str]]:
        """The distinct values of a key in the manifests of some scripts, each with its first source."""
        out: dict[str, tuple[Any, str]] = {}
        for path, manifest in self.all(*([scripts] if isinstance(scripts, str) else scripts)):
            value = at(manifest, *keys)
            if value is not None:
                out.setdefault(shown(value), (value, f"{path}: {'.'.join(map(str, keys))}"))
        return list(out.values())

    def sum(self, script: str, *keys: str | int) -> tuple[float | None, str]:
        """The sum of a number over the jobs of a script, with its source; None where no job has it."""
        found = [(number(manifest, *keys), path) for path, manifest in self.all(script)]
        known = [(value, path) for value, path in found if value is not None]
        if not known:
            return None, ""
        return sum(value for value, _ in known), several([path for _, path in known], ".".join(map(str, keys)))


def _described(outputs: tuple[str, ...], manifest: Mapping[str, Any]) -> str:
    """The output that a manifest lies beside: a job writes one beside each of its outputs."""
    return next((path for path in outputs if Path(path).name == manifest.get("output")), outputs[0])


def several(paths: list[str], keys: str) -> str:
    """The source of a value that was read from several files: the first, and how many more."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}: {keys}"
