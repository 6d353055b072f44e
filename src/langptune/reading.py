"""Reads files from folders where others can write: plain files of a bounded size, and JSON.

A pipe blocks its reader forever, a device may have no end, and a file may be larger than memory. Such files are refused
with an ``OSError``, and JSON that cannot be parsed with a ``ValueError``; callers turn both into one line for the user.
``langptune.files`` writes.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

from langptune.errors import UserError

LARGEST = 1 << 28
"""Limit in bytes on a file that is read completely. The largest one that this program writes has 1% of it."""
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC


def read_plain(path: Path | str, most: int = LARGEST) -> bytes:
    """The content of a plain file.

    Pipes, which could block forever, and devices, which may be endless, are refused: anyone with write access to a
    folder can put one where a file is expected.

    Raises:
        OSError: the file does not exist, is not a plain file, or has more than ``most`` bytes.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return content


def from_json(text: bytes | str) -> Any:
    """Parse JSON (bytes: UTF-8).

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        OSError: as ``read_plain``.
        ValueError: it is not JSON, or nested too deeply.
    """
    return from_json(read_plain(path))


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """Read a file that ``write_lines`` wrote.

    Raises:
        UserError: the file cannot be read, or a line is not JSON.
    """
    try:
        return [from_json(line) for line in read_plain(path).decode().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not lines of JSON ({error}); delete it and rerun its training") from None


def read_inside(root: Path, relative: Path) -> IO[bytes]:
    """Open a plain file of a folder without following any link below ``root``.

    Raises:
        OSError: the path contains a link, or is not a plain file.
    """
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in relative.parts[:-1]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=at)
            os.close(at)
            at = inner
        file = os.open(relative.name, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a plain file", str(root / relative))
    return os.fdopen(file, "rb")
