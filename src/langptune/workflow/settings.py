"""Specs as text, and the digest of a job's settings, which Snakemake compares with that of the last run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langptune.config.recipes import NEUTRAL
from langptune.files import whole

NEUTRAL_FIELDS = ("threads", "batch_size", "cache", "max_usd")
"""Fields of specs that change no result beyond rounding (docs/numerics.md)."""
SOURCE_KEYS = ("endpoint", "model", "limit_key", "prefill")
"""Keys of an endpoint's source on which its texts depend."""
LONGEST = 60_000
"""Maximum number of characters of a spec on a command line. Linux refuses an argument of more than 128 KiB."""


def as_text(fields: Mapping[str, Any]) -> str:
    """A spec as JSON.

    "<" is escaped, because Snakemake writes params unescaped into a script element of its HTML report.
    """
    return json.dumps(fields, default=_plain, sort_keys=True).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def fitting(text: str) -> str:
    """A spec as an argument: the text itself, or, where it is too long, the name of a file with it."""
    if len(text) < LONGEST:
        return text
    file = Path(".snakemake") / "specs" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not file.exists():
        with whole(file) as part:
            part.write_text(text)
    return str(file)


def digest(fields: Mapping[str, Any]) -> str:
    """A digest of settings, without those that change no result beyond rounding."""
    kept = {key: value for key, value in json.loads(as_text(fields)).items() if key not in NEUTRAL_FIELDS}
    for entry in (kept.get("encoder"), kept.get("model")):
        if isinstance(entry, dict) and "endpoint" in entry.get("source", {}):
            entry["source"] = {key: value for key, value in entry["source"].items() if key in SOURCE_KEYS}
    if "recipe" in kept:
        kept["recipe"] = {key: value for key, value in kept["recipe"].items() if key not in NEUTRAL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
