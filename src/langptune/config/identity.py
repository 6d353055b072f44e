"""The identity of a model in specs."""

from __future__ import annotations

import json
from typing import Any

READ_BY_PEOPLE = ("title", "url", "licence", "sha256", "parameters")
"""Keys of a model's entry that do not affect its use, or that follow from its files."""


def identity(entry: dict[str, Any]) -> str:
    """What identifies a model in specs, which do not contain its name: its source and the keys that affect its use.

    Keys that are empty, zero or null are left out, so that new keys of the registry do not change existing identities.
    """
    out = {key: value for key, value in entry.items() if value and key not in READ_BY_PEOPLE}
    if "endpoint" in entry["source"]:  # without connection settings and prices
        out["source"] = {key: entry["source"][key] for key in ("endpoint", "model")}
    return json.dumps(out, sort_keys=True)
