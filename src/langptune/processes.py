"""How this project starts other programs: the one place that does.

Python looks for modules in the working directory (``-m``, ``-c``). Variables say where programs, libraries and modules
are looked for, and an empty entry, as in ``PATH=$PATH:``, is the working directory too. Folders of models, data and
results may be open to others, who could put a ``torch.py`` there. So every child gets Python's safe path and absolute
entries alone, and none gets a secret that it was not started for.
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
"""Names of environment variables that are taken for secrets; those that an allowed endpoint names are as well."""
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")
"""How the hub's client takes its token."""
_PLACES = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
_SOURCES = str(Path(__file__).resolve().parents[1])


def places() -> dict[str, str]:
    """Variables that say where programs, libraries and modules are looked for, without the working directory.

    Those that are set in this process alone, and PYTHONSAFEPATH.
    """
    found = {name: os.environ[name].split(os.pathsep) for name in _PLACES if name in os.environ}
    out = {name: os.pathsep.join(part for part in parts if Path(part).is_absolute()) for name, parts in found.items()}
    return {**out, "PYTHONSAFEPATH": "1"}


def environment(keep: Iterable[str] = (), only: re.Pattern[str] | None = None, **changes: str) -> dict[str, str]:
    """What a child finds in its environment.

    Args:
        keep: secrets that it needs, by name.
        only: names of all else that it needs; None: everything that is no secret.
        changes: variables that are set for it.
    """
    kept, named = set(keep), allowed.names()
    out = {
        name: value
        for name, value in os.environ.items()
        if name in kept
        or (name not in named and not SECRET.search(name.upper()) and (only is None or only.fullmatch(name)))
    }
    told = places()
    own = [part for part in told.get("PYTHONPATH", "").split(os.pathsep) if part]
    path = os.pathsep.join(dict.fromkeys([_SOURCES, *own]))
    return {**out, **told, "PYTHONPATH": path, **changes}


def forget(keep: Iterable[str] = ()) -> None:
    """Take out of this process's own environment what ``environment`` would not hand on: libraries start children too.

    Args:
        keep: secrets that this process needs, by name.
    """
    told = environment(keep)
    for name in os.environ.keys() - told.keys():
        del os.environ[name]
    os.environ.update(told)


def python(*arguments: str | Path) -> list[str]:
    """A command line for this interpreter that imports nothing from its working directory."""
    return [sys.executable, "-P", *map(str, arguments)]


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with text streams and the environment of ``environment``.

    Raises:
        OSError, subprocess.SubprocessError: as ``subprocess.run``.
    """
    return subprocess.run(command, text=True, env=environment(), **options)


def start(command: Sequence[str], told: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """``subprocess.Popen``.

    Args:
        told: its environment, made by ``environment``.
    """
    return subprocess.Popen(command, env=dict(told), **options)


def become(command: Sequence[str], told: Mapping[str, str]) -> NoReturn:
    """Replace this process by another program, which is looked for in PATH.

    Raises:
        FileNotFoundError: there is no such program.
    """
    os.execvpe(command[0], list(command), dict(told))
