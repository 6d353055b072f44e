"""Starts all other programs, with a safe search path and without secrets.

Python searches the working directory for modules (``-m``, ``-c``). An empty entry in a search path, as in
``PATH=$PATH:``, is the working directory too. Folders of models, data and results may be writable by others, who could
put a ``torch.py`` there. So every child gets Python's safe path and only absolute entries, and no secret that it does
not need.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from langptune import allowed

SECRET = re.compile(
    r"(^|_)(API_?)?(KEY|KEYS|TOKEN|TOKENS|SECRET|SECRETS|PASS|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|COOKIES?|JWT|PAT)(_|$)"
    r"|APIKEY|PASSWORD|_PWD$|^(OPENAI|ANTHROPIC|AZURE|AWS)_"
)
"""Names of environment variables that are treated as secrets, in addition to those of allowed endpoints."""
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")
"""Variables of the hub client's token."""
_PLACES = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
_SOURCES = str(Path(__file__).resolve().parents[1])


def places() -> dict[str, str]:
    """The variables with search paths of programs, libraries and modules, without the working directory.

    Only those that are set in this process, and PYTHONSAFEPATH.
    """
    found = {name: os.environ[name].split(os.pathsep) for name in _PLACES if name in os.environ}
    out = {name: os.pathsep.join(part for part in parts if Path(part).is_absolute()) for name, parts in found.items()}
    return {**out, "PYTHONSAFEPATH": "1"}


def environment(keep: Iterable[str] = (), only: re.Pattern[str] | None = None, **changes: str) -> dict[str, str]:
    """The environment of a child process.

    Args:
        keep: names of secrets that it needs.
        only: names of the other variables that it needs; None: everything that is not a secret.
        changes: variables to set.
    """
    kept, named = set(keep), allowed.names()
    out = {
        name: value
        for name, value in os.environ.items()
        if name in kept
        or (name not in named and not SECRET.search(name.upper()) and (only is None or only.fullmatch(name)))
    }
    paths = places()
    own = [part for part in paths.get("PYTHONPATH", "").split(os.pathsep) if part]
    path = os.pathsep.join(dict.fromkeys([_SOURCES, *own]))
    return {**out, **paths, "PYTHONPATH": path, **changes}


def forget(keep: Iterable[str] = ()) -> None:
    """Remove from this process's environment what ``environment`` would not pass on: libraries start children too.

    Args:
        keep: names of secrets that this process needs.
    """
    kept = environment(keep)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)


def python(*arguments: str | Path) -> list[str]:
    """A command line for this interpreter that imports nothing from its working directory."""
    return [sys.executable, "-P", *map(str, arguments)]


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with text streams and the environment of ``environment``.

    Raises:
        OSError, subprocess.SubprocessError: as ``subprocess.run``.
    """
    return subprocess.run(command, text=True, env=environment(), **options)


def start(command: Sequence[str], env: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """``subprocess.Popen``.

    Args:
        env: the result of ``environment``.
    """
    return subprocess.Popen(command, env=dict(env), **options)


def become(command: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Replace this process by another program, which is searched in PATH.

    Raises:
        FileNotFoundError: there is no such program.
    """
    os.execvpe(command[0], list(command), dict(env))
