"""Which model a spec means."""

from __future__ import annotations

import json
from typing import Any

READ_BY_PEOPLE = ("title", "url", "licence", "sha256", "parameters")
"""Keys of a model's entry that say nothing of how it is used, or follow from its files."""


def identity(entry: dict[str, Any]) -> str:
    """What tells a model from another in specs, which do not hold its name: where it comes from, and how it is used.

    Keys that are empty, zero or null do not count, so that an entry stays the same when keys are added to its kind.
    """
    out = {key: value for key, value in entry.items() if value and key not in READ_BY_PEOPLE}
    if "endpoint" in entry["source"]:  # and not how it is reached and paid
        out["source"] = {key: entry["source"][key] for key in ("endpoint", "model")}
    return json.dumps(out, sort_keys=True)
