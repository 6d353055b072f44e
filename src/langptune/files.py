"""Files are written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langptune.errors import UserError


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` when the block ends without an error.

    A reader, or a rerun after a kill, never meets half a file. The name is fixed: one job at a time writes an
    output (``langptune.stage`` holds a lock), so what a killed one left behind is simply overwritten.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    yield part
    part.replace(path)


def write_lines(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, written whole or not at all."""
    with whole(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """What ``write_lines`` wrote.

    Raises:
        UserError: other lines than that.
    """
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not lines of JSON ({error}); delete it and rerun its training") from None


def whole_folder(source: Path, target: Path, readme: str) -> None:
    """Copy a folder and give it a README.md, whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    (part / "README.md").write_text(readme, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
