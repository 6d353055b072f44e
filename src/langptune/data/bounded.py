"""Reads untrusted files up to a limit: a small archive may unpack to more than fits into memory."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import IO

from langptune.errors import UserError

LARGEST = 1 << 32
"""Limit on the unpacked size of a table in bytes: six times the largest of MovieLens."""
LINE = 1 << 24
"""Limit on a line, or on a row of several lines, in bytes; the longest published one has less than a tenth."""
FREE, RATIO = 1 << 26, 30
"""Bytes that any archive may unpack to, and the limit on the compression ratio beyond that. Published tables have
ratios of up to ten."""

# Exceptions of damaged archives, including names that are not UTF-8 and truncated streams.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError),
    *(RuntimeError, NotImplementedError, ValueError, KeyError),
)


def most(packed: int) -> int:
    """Limit on the unpacked size of an archive of ``packed`` bytes."""
    return max(FREE, RATIO * packed)


def whole(stream: IO[bytes], packed: int, path: Path) -> bytes:
    """The content of an archive, unpacked by ``stream``.

    Args:
        packed: its compressed size in bytes.
        path: its name in errors.

    Raises:
        UserError: it is too large, absolutely or in relation to ``packed``; no more than the limit is unpacked.
    """
    bound = min(most(packed), LARGEST)
    data = stream.read(bound + 1)
    if len(data) > bound:
        raise too_large(path, packed, bound)
    return data


def too_large(path: Path, packed: int, bound: int) -> UserError:
    """An error for an archive that unpacks to more than ``bound`` bytes."""
    return UserError(
        f"{path}: {packed:,} bytes unpack to more than {bound:,}, which no table does; get the file again, or unpack "
        "it yourself if you know it"
    )


def too_long(path: Path, line: int) -> UserError:
    """An error for a line of more than ``LINE`` bytes."""
    return UserError(
        f"{path}: line {line} is longer than {LINE:,} bytes; the file is damaged, or its line ends are missing"
    )


def member(archive: Path, name: str, path: Path) -> bytes:
    """A file within a zip archive.

    Args:
        path: its name in errors.

    Raises:
        UserError: it is damaged, encrypted, too large, or not compressed by deflate: other methods may unpack a few
            bytes to gigabytes at once.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            info = opened.getinfo(name)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{path}: packed by a method other than deflate; pack the archive anew")
            with opened.open(info) as stream:
                return whole(stream, min(info.compress_size, archive.stat().st_size), path)
    except ZIP_ERRORS as error:
        raise UserError(f"{path}: cannot be unpacked ({str(error)[:100]}); download the archive again") from None


def members(archive: Path) -> list[str]:
    """The names of the files in a zip archive; raises ``ZIP_ERRORS`` if it is damaged."""
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()
