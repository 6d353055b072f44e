"""Published results: a CSV file of numbers that a comparison shows beside ours (``comparison.published``)."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import Field

from langptune import metrics
from langptune.config.base import Strict, nearest, validate
from langptune.errors import UserError

NO_ENTRY = "no entry"
"""Beginning of the note of a row whose method is not in ``methods.yaml``; no table shows such a row."""


class Published(Strict):
    """One published number: the value of one metric for one method on one dataset."""

    dataset: Annotated[str, Field(min_length=1)]
    key: str = Field(description="key that a study varies; empty in the main table")
    value_of_key: str = Field(description="value of this key; empty in the main table")
    method: str = Field(description="entry of methods.yaml, or any name if the note begins with 'no entry'")
    encoder: str = Field(description="entry of models.yaml; empty if the method has none")
    decoder: str = Field(description="entry of models.yaml; empty if the method has none")
    metric: str
    value: Annotated[float, Field(ge=0, le=1)]
    source: Annotated[str, Field(min_length=1)]
    protocol: Annotated[str, Field(min_length=1, description="split, targets and candidates that the number is for")]
    note: str

    @property
    def models(self) -> str:
        """The ``{models}`` segment of the run beside which it is shown; empty: of any run."""
        return "+".join(filter(None, (self.encoder, self.decoder)))


def read_published(
    path: Path, methods: Collection[str], encoders: Collection[str], decoders: Collection[str]
) -> tuple[Published, ...]:
    """The rows of a file of published numbers, checked.

    Args:
        path: CSV with the fields of ``Published`` as columns, in any order.
        methods, encoders, decoders: the names in the registries.

    Raises:
        UserError: one line with file, line, column and value: a missing or unknown column, a value that is not a number
            in 0..1, an unknown metric, method or model, two numbers of one source for the same cell.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            found = list(reader.fieldnames or [])
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; comparison.published names a CSV of published numbers") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from None
    columns = list(Published.model_fields)
    for name in found:
        if name not in columns:
            raise UserError(f"{path}: unknown column '{name}'{nearest(name, columns)}")
    if lacking := [name for name in columns if name not in found]:
        raise UserError(f"{path}: column '{lacking[0]}' is missing; found {', '.join(found) or 'none'}")
    out: list[Published] = []
    lines: dict[tuple, int] = {}
    for line, cells in rows:
        where = f"{path}: line {line}"
        if None in cells or None in cells.values():
            raise UserError(f"{where}: not {len(found)} cells; quote a cell that holds a comma")
        try:
            number = float(cells["value"])
        except ValueError:
            raise UserError(f"{where}: column 'value': '{cells['value']}' is not a number; write one in 0..1") from None
        row = validate(Published, {**cells, "value": number}, where)
        _check_names(row, where, methods, encoders, decoders)
        same = (row.dataset, row.key, row.value_of_key, row.method, row.models, row.metric, row.source)
        if same in lines:
            raise UserError(f"{where}: the same number is in line {lines[same]}; keep one")
        lines[same] = line
        out.append(row)
    return tuple(out)


def _check_names(
    row: Published, where: str, methods: Collection[str], encoders: Collection[str], decoders: Collection[str]
) -> None:
    try:
        metrics.parse(row.metric)
    except UserError as error:
        raise UserError(f"{where}: column 'metric': {error}") from None
    if row.method not in methods and not row.note.startswith(NO_ENTRY):
        raise UserError(
            f"{where}: unknown method '{row.method}'{nearest(row.method, list(methods))} (if methods.yaml has none, "
            f"begin the note with '{NO_ENTRY}')"
        )
    for role, name, known in (("encoder", row.encoder, encoders), ("decoder", row.decoder, decoders)):
        if name and name not in known:
            raise UserError(f"{where}: unknown {role} '{name}'{nearest(name, list(known))}")
