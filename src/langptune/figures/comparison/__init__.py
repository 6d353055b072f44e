"""Figures of a comparison: each file in this folder is a figure, and its name is the figure's name.

A file has three literal constants, which are read without importing it, and one function:

- ``CAPTION``: what to see in the figure, shown in the report; ``{dataset}`` stands for the dataset's name.
- ``READS``: the inputs of the figure, among ``READABLE``. Its job waits for nothing else.
- ``ONLY_WITH`` (optional), one of ``OPTIONAL``: the figure is drawn only if the config has this part.
- ``draw(comparison)``: the figure, from a ``langptune.figures.inputs.Comparison``.

The workflow, ``make keep`` and the report list this folder: a new file is a new figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from langptune.errors import UserError
from langptune.registry import Registry

REGISTRY = Registry("langptune.figures.comparison")
READABLE = ("table", "gains", "contrasts", "slices", "lists", "items", "metrics", "curves", "phases")
"""Possible inputs of a figure; the attributes of ``Comparison`` describe them."""
OPTIONAL = ("contrasts", "published")
"""Parts of a comparison that a config may leave out."""


@dataclass(frozen=True)
class Entry:
    """The constants of a figure's file; see the package's docstring."""

    name: str
    caption: str
    reads: tuple[str, ...]
    only_with: str | None

    @property
    def module(self) -> str:
        """The dotted name of its module."""
        return REGISTRY.module(self.name)


def entry(name: str) -> Entry:
    """Read the constants of a figure's file.

    Raises:
        UserError: there is no such figure, or one of its constants is missing or unknown.
    """
    path, found = REGISTRY.file(name), REGISTRY.constants(name)
    caption, reads, only_with = found.get("CAPTION"), found.get("READS"), found.get("ONLY_WITH")
    if not isinstance(caption, str):
        raise UserError(f"{path}: CAPTION is missing, or is not a literal string")
    try:
        text = caption.format(dataset="{dataset}")
    except (KeyError, IndexError, ValueError):
        raise UserError(f"{path}: CAPTION: the only name in braces is {{dataset}}") from None
    if not isinstance(reads, tuple) or set(reads) - set(READABLE):
        raise UserError(f"{path}: READS must be a literal tuple of {', '.join(READABLE)}")
    if only_with not in (None, *OPTIONAL):
        raise UserError(f"{path}: ONLY_WITH '{only_with}' is not one of {', '.join(OPTIONAL)}")
    return Entry(name, text, reads, only_with)


def drawn(asked: Mapping[str, bool]) -> dict[str, Entry]:
    """The figures of a comparison, by name.

    Args:
        asked: for each of ``OPTIONAL``, whether the config has it.

    Raises:
        UserError: a file in this folder is not a figure.
    """
    entries = map(entry, REGISTRY.names())
    return {one.name: one for one in entries if one.only_with is None or asked[one.only_with]}
