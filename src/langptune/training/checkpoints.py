"""Checkpoints of trainings on clusters: sealed by hash, pruned, refused if they belong to another run.

They are outside the declared outputs (Snakemake deletes those of a failed job), in a folder named by the hash of the
run's identity, and are removed when the phase is finished. A checkpoint is valid only if its seal, written last, agrees
with its files; an incomplete or damaged one is skipped in favour of the previous one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langptune.errors import UserError
from langptune.files import own_folder
from langptune.provenance import file_hash, write_json
from langptune.reading import read_json

SEAL = "seal.json"
KEPT = 2
"""Number of checkpoints on disk: the newest and, in case it is damaged, the previous one."""


def identity_hash(identity: dict[str, Any]) -> str:
    """A short hash of what defines a training run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Checkpoints:
    """The sealed checkpoints of one training run."""

    def __init__(self, folder: Path, identity: dict[str, Any], log: Callable[[str], None]):
        """``folder`` may be shared by runs; this run has a sub-folder named by the hash of ``identity``."""
        self.name = identity_hash(identity)
        # Private to this account: the trainer writes files there under its own names, and loads them again.
        self.folder = own_folder(Path(folder) / self.name)
        self._log = log

    def seal(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Mark a checkpoint as complete: store the hashes of its files, and the state of the run."""
        files = {p.relative_to(checkpoint).as_posix(): file_hash(p) for p in _files(checkpoint)}
        write_json(checkpoint / SEAL, {"run": self.name, "files": files, "state": state})

    def intact(self, checkpoint: Path) -> dict[str, Any] | None:
        """The state in a checkpoint's seal; None if it is missing or does not agree with the files.

        Raises:
            UserError: the checkpoint belongs to another run.
        """
        try:
            seal = read_json(checkpoint / SEAL)
            run, files, state = seal["run"], seal["files"], seal["state"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if run != self.name:
            raise UserError(
                f"{checkpoint}: a checkpoint of another run ({run}, this one is {self.name}); recipe, data or start "
                "have changed: move it away to train anew"
            )
        found = {p.relative_to(checkpoint).as_posix() for p in _files(checkpoint)}
        if found != set(files) or any(file_hash(checkpoint / name) != value for name, value in files.items()):
            return None
        return state

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest intact checkpoint and its state; damaged ones are removed and logged."""
        for path in sorted(self.folder.glob("checkpoint-*"), key=step_of, reverse=True):
            state = self.intact(path)
            if state is not None:
                return path, state
            self._log(f"checkpoint {path.name} is incomplete or damaged; going back to the one before it")
            shutil.rmtree(path)
        return None

    def clear(self) -> None:
        """Remove everything of this run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and p.name != SEAL and not p.name.startswith(".")]


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written, from its folder's name."""
    return int(path.name.rpartition("-")[2])
