"""Acts as another account of the same machine, which plants modules, connects and reads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import PLAIN_PYTHON

NAMES = (
    "torch",
    "transformers",
    "snakemake",
    "multiprocessing",
    "json",
    "sitecustomize",
    "usercustomize",
    "accelerate",
)
"""Modules of libraries and of Python, including modules that Python imports at start."""


def plant(folder: Path, marker: Path) -> Path:
    """Fill a folder with modules that record their import in the file ``marker``."""
    folder.mkdir(parents=True, exist_ok=True)
    line = "with open({!r}, 'a') as file:\n    print({!r}, __file__, file=file)\n"
    for name in NAMES:
        (folder / f"{name}.py").write_text(line.format(str(marker), name))
    (folder / "langptune").mkdir(exist_ok=True)
    (folder / "langptune" / "__init__.py").write_text(line.format(str(marker), "langptune"))
    return folder


def listening(pids: set[int]) -> list[str]:
    """Addresses of the TCP sockets on which processes listen, as in /proc/net/tcp, without ports."""
    own = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                own.add(str(handle.readlink()))
            except OSError:
                continue
    out = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                out.append(fields[1].rpartition(":")[0])
    return out


LOOPBACK = {"0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F"}
"""127.0.0.1, ::1, and 127.0.0.1 as an IPv6 address, as /proc/net/tcp writes them."""


def stranger(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as another account of this machine; the test is skipped without root.

    ``os``, ``socket`` and ``sys`` are imported before the switch, because that account may not be able to read the
    interpreter.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can act as a second account")
    become = "import os, socket, sys\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
    command = [PLAIN_PYTHON, "-I", "-c", become + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")
