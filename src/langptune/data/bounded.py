"""Files of strangers, read up to a bound: a small one may unpack to more than the memory holds."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import IO

from langptune.errors import UserError

LARGEST = 1 << 32
"""Bytes of a table that is read as a whole, unpacked: six times the largest of MovieLens."""
LINE = 1 << 24
"""Bytes of a line, or of a row whose cells go over several; the longest published one has less than a tenth."""
FREE, RATIO = 1 << 26, 30
"""Bytes that any archive may unpack to; a larger content may be so many times larger than what is packed. Published
tables are up to ten times larger."""

# What a damaged archive raises: names that are no UTF-8 among it, and streams that break off.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError),
    *(RuntimeError, NotImplementedError, ValueError, KeyError),
)


def most(packed: int) -> int:
    """Bytes that ``packed`` bytes of an archive may unpack to."""
    return max(FREE, RATIO * packed)


def whole(stream: IO[bytes], packed: int, path: Path) -> bytes:
    """The content of an archive, unpacked by ``stream``.

    Args:
        packed: its bytes in the archive.
        path: how the error names it.

    Raises:
        UserError: it is too large, or too large for what is packed; no more than the bound is unpacked.
    """
    bound = min(most(packed), LARGEST)
    data = stream.read(bound + 1)
    if len(data) > bound:
        raise too_large(path, packed, bound)
    return data


def too_large(path: Path, packed: int, bound: int) -> UserError:
    """The error for an archive that unpacks to more than ``bound`` bytes."""
    return UserError(
        f"{path}: {packed:,} bytes unpack to more than {bound:,}, which no table does; get the file again, or unpack "
        "it yourself if you know it"
    )


def too_long(path: Path, line: int) -> UserError:
    """The error for a line beyond ``LINE``."""
    return UserError(
        f"{path}: line {line} is longer than {LINE:,} bytes; the file is damaged, or its line ends are missing"
    )


def member(archive: Path, name: str, path: Path) -> bytes:
    """A file within a zip archive.

    Args:
        path: how errors name it.

    Raises:
        UserError: damaged, encrypted, too large, or packed by another method than deflate: of those, a few bytes may
            unpack to gigabytes at once.
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
    """The names of the files in a zip archive; ``ZIP_ERRORS`` where it is damaged."""
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()
