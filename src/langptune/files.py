"""Everything that is written is opened here: whole or not at all, and through nobody else's link.

Results and models may lie in folders where others may write too. A link that somebody puts where a file is expected
would have this program empty or overwrite a file elsewhere, with the rights of whoever runs it. So:

* the way to a file is walked folder by folder, and a link on it is followed only where it is this user's, the
  system's, or stands in a folder in which nobody but its owner may write;
* no link is followed at the end of the way;
* what is new is made under a random name that must not exist yet, and put in place by a rename, which replaces a link
  without following it;
* what is opened as it stands (a lock, an account) must be a plain file, and nothing is written to it where it has
  other names as well (hard links).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from langptune.errors import UserError

_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE
_WAY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | _SAFE
_LINKS = 40
"""Links on the way to a file, at most; as Linux has it."""
LARGEST = 1 << 28
"""Bytes of a file that is read as a whole; the largest that is written so, a curve, has a hundredth of it."""
_HANDLES = Path("/proc/self/fd")
_THE_USERS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENOTEMPTY),
}
"""Errors that stay the same however often it is tried; a full disk is none of them."""


class Held(Exception):
    """Another process holds a lock; ``by`` is its number, or empty."""

    def __init__(self, by: str):
        super().__init__(by)
        self.by = by


@contextmanager
def whole(path: Path | str, mode: int = 0o666) -> Iterator[Path]:
    """A path to write to; what is written there is renamed to ``path`` when the block ends without an error.

    A reader, or a rerun after a kill, never meets half a file. The file to be has a random name beside ``path``, and
    what killed processes left there of such files is removed. On Linux the path that is handed out is the open file
    itself: another file put under its name in the meantime is not touched.

    Args:
        mode: of the new file, before the umask.

    Raises:
        UserError: the file cannot be made there.
    """
    path = Path(path)
    with _folder(path.parent) as at:
        with _named(path):
            _clear(path.name, at)
            part, file = _part(path.name, at, mode)
        try:
            yield _HANDLES / str(file) if _HANDLES.is_dir() else path.with_name(part)
            with _named(path):
                os.replace(part, path.name, src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            with suppress(OSError):
                os.unlink(part, dir_fd=at)
            raise
        finally:
            os.close(file)


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
        return [from_json(line) for line in read_plain(path).decode().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not lines of JSON ({error}); delete it and rerun its training") from None


def read_plain(path: Path | str, most: int = LARGEST) -> bytes:
    """What a plain file holds.

    A pipe, which would be waited for without end, and a device, which may have no end, are none: who may write in a
    folder can put one where a file is expected.

    Raises:
        OSError: no such file, something else than a plain file, or one of more than ``most`` bytes.
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


def fresh(path: Path | str) -> IO[str]:
    """A new text file for what is read while it is written (a log); a file that was there before is removed first.

    A device (``/dev/null``) is opened as it stands.

    Raises:
        UserError: the file cannot be made there, or something else than a file stands there.
    """
    path = Path(path)
    with _folder(path.parent) as at, _named(path):
        for _ in range(10):
            with suppress(FileNotFoundError):
                kind = os.stat(path.name, dir_fd=at, follow_symlinks=False).st_mode
                if stat.S_ISCHR(kind):
                    return os.fdopen(os.open(path.name, os.O_WRONLY | _SAFE, dir_fd=at), "w", encoding="utf-8")
                if stat.S_ISLNK(kind):
                    raise OSError(errno.ELOOP, "a link")
                if not stat.S_ISREG(kind):
                    raise OSError(errno.ENXIO, "something else than a file stands there")
                os.unlink(path.name, dir_fd=at)
            with suppress(FileExistsError):  # somebody was faster
                return os.fdopen(os.open(path.name, _NEW, 0o666, dir_fd=at), "w", encoding="utf-8")
    raise UserError(f"{path}: somebody else makes it again and again")


def hold(path: Path | str) -> IO[str]:
    """Lock a file, which is made where it is missing, until what is returned is closed or the process ends.

    The kernel frees the lock with the process, so it is never stale. The file stays: removing it would let two in. It
    tells the number of the process.

    Raises:
        Held: another process holds the lock.
        UserError: something else than a plain file stands there, or one that this user may not open.
    """
    path = Path(path)
    file = _as_it_stands(path, os.O_RDWR | os.O_CREAT, 0o666, or_read=True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        told = os.pread(file, 20, 0).decode(errors="replace").strip()
        os.close(file)
        # Anybody may have written it: nothing but a number is shown.
        raise Held(told if told.isascii() and told.isdigit() else "") from None
    except OSError:
        pass  # a file system without locks: as safe as any other program there
    if os.fstat(file).st_nlink == 1:
        with suppress(OSError):  # a lock of another user, or a full disk
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
    return os.fdopen(file, "r", encoding="utf-8")


def private(path: Path | str) -> IO[str]:
    """A file that this user alone may read, opened at its end to be read and written; made where it is missing.

    Raises:
        UserError: something else than a plain file of this user stands there.
    """
    path = Path(path)
    file = _as_it_stands(path, flags := os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    told = os.fstat(file)
    if told.st_uid == os.geteuid() and told.st_nlink > 1:
        # It may be a file of this user that somebody gave this name. This one gets content of its own.
        with os.fdopen(file, "rb") as old, whole(path, 0o600) as part:
            part.write_bytes(old.read())
        file = _as_it_stands(path, flags, 0o600)
        told = os.fstat(file)
    if told.st_uid != os.geteuid() or told.st_nlink > 1:
        os.close(file)
        raise UserError(f"{path}: belongs to another user ({told.st_uid}); remove it, or choose another folder")
    os.fchmod(file, 0o600)
    return os.fdopen(file, "a+", encoding="utf-8")


def own_folder(path: Path | str) -> Path:
    """A folder in which nobody but this user may write, made where it is missing; for what writes by names of its own.

    The same holds for all that this process, and what it starts, makes from now on: a library makes folders of its own
    in there, and with umask 002 the group could put links into those.

    Raises:
        UserError: something else stands there: a link, a folder of another user, or one in which others may write and
            which holds a link or what is not this user's.
    """
    path = Path(path)
    before = os.umask(0o077)
    os.umask(before | 0o022)
    with _folder(path.parent) as at, _named(path):
        with suppress(FileExistsError):
            os.mkdir(path.name, 0o755, dir_fd=at)
            return path
        here = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | _SAFE, dir_fd=at)
        try:
            told = os.fstat(here)
            if told.st_uid != os.geteuid():
                raise UserError(f"{path}: a folder of another user ({told.st_uid}); remove it, or choose another place")
            if told.st_mode & 0o022:
                os.fchmod(here, stat.S_IMODE(told.st_mode) & ~0o022)
                _all_own(path, here)
        finally:
            os.close(here)
    return path


@contextmanager
def new_folder(target: Path | str) -> Iterator[Path]:
    """A folder of a random name beside ``target``, which it replaces when the block ends without an error.

    Nobody else may write in it. What killed processes left of such folders is removed first, so one process at a time
    may make a target (``langptune.stage`` holds a lock).

    Raises:
        UserError: the folder cannot be made there.
    """
    target = Path(target)
    with _folder(target.parent) as at, _named(target):
        for name in _parts(target.name, at):
            told = os.stat(name, dir_fd=at, follow_symlinks=False)
            if stat.S_ISDIR(told.st_mode) and told.st_uid == os.geteuid():
                shutil.rmtree(name, ignore_errors=True, dir_fd=at)
        name = _random(target.name)
        os.mkdir(name, 0o755, dir_fd=at)
    part = target.with_name(name)
    try:
        yield part
        publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def publish(part: Path, target: Path) -> None:
    """Put a finished folder in the place of ``target`` beside it; a link there is removed, not followed.

    Raises:
        UserError: what stands there cannot be removed.
    """
    with _folder(target.parent) as at, _named(target):
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(target.name, dir_fd=at, follow_symlinks=False).st_mode):
                shutil.rmtree(target.name, ignore_errors=True, dir_fd=at)
            else:
                os.unlink(target.name, dir_fd=at)
        os.rename(part.name, target.name, src_dir_fd=at, dst_dir_fd=at)


def whole_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all.

    Raises:
        UserError: the copy cannot be made there.
    """
    with whole(target) as part:
        shutil.copyfile(source, part)


def whole_folder(source: Path, target: Path, readme: str) -> None:
    """Copy a folder of this program's and give it a README.md, whole or not at all."""
    with new_folder(target) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)
        part.chmod(part.stat().st_mode & ~0o022)  # copytree gives it the mode of its source
        (part / "README.md").write_text(readme, encoding="utf-8")


def read_inside(root: Path, relative: Path) -> IO[bytes]:
    """A plain file of a folder, opened without following any link below ``root``.

    Raises:
        OSError: a link on the way, or something else than a plain file.
    """
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in relative.parts[:-1]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _SAFE, dir_fd=at)
            os.close(at)
            at = inner
        file = os.open(relative.name, os.O_RDONLY | os.O_NONBLOCK | _SAFE, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a plain file", str(root / relative))
    return os.fdopen(file, "rb")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the user must change about a place, as one line that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _THE_USERS:
            raise
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
            raise UserError(
                f"{path}: a link stands there, to {str(path.readlink())!r}; none is followed when writing: remove it"
            ) from None
        raise UserError(f"{path}: cannot be written: {error.strerror}; look at the folder and its rights") from None


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder, which is made where it is missing.

    Raises:
        UserError: it cannot be made, or a link on the way is somebody else's.
    """
    with _named(path):
        at = _walk(path)
    try:
        yield at
    finally:
        os.close(at)


def _walk(path: Path) -> int:
    todo, links = list(reversed(path.parts)), 0
    at = os.open(".", _WAY)
    try:
        while todo:
            name = todo.pop()
            try:
                inner = os.open(name, _WAY, dir_fd=at)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=at)
                todo.append(name)
                continue
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                links += 1
                todo += reversed(_behind(name, at, path, links).parts)
                continue
            os.close(at)
            at = inner
    except BaseException:
        os.close(at)
        raise
    return at


def _behind(name: str, at: int, path: Path, links: int) -> Path:
    """Where a link on the way to ``path`` leads, if it may be followed."""
    told, around = os.stat(name, dir_fd=at, follow_symlinks=False), os.fstat(at)
    if not stat.S_ISLNK(told.st_mode):
        raise UserError(f"{path}: cannot be made: '{name}' on the way is a file")
    leads = os.readlink(name, dir_fd=at)
    again = os.stat(name, dir_fd=at, follow_symlinks=False)
    same = (told.st_ino, told.st_ctime_ns, told.st_uid) == (again.st_ino, again.st_ctime_ns, again.st_uid)
    undisputed = told.st_uid == around.st_uid and not around.st_mode & 0o022
    if links > _LINKS or not same or not (told.st_uid in (0, os.geteuid()) or undisputed):
        raise UserError(
            f"{path}: '{name}' on the way is a link of another user ({told.st_uid}), to {leads!r}; it is not followed "
            "when writing: remove it, or name the folder that it leads to"
        )
    return Path(leads)


def _as_it_stands(path: Path, flags: int, mode: int, or_read: bool = False) -> int:
    """A descriptor of a plain file; with ``or_read`` for reading alone, where this user may not write it."""
    safe = os.O_NONBLOCK | _SAFE  # a pipe that nobody reads holds nobody up
    with _folder(path.parent) as at, _named(path):
        try:
            file = os.open(path.name, flags | safe, mode, dir_fd=at)
        except PermissionError:
            if not or_read:
                raise
            file = os.open(path.name, os.O_RDONLY | safe, dir_fd=at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(f"{path}: something else than a file stands there; remove it")
    return file


def _random(name: str) -> str:
    return f".{name}.{secrets.token_hex(8)}.part"


def _part(name: str, at: int, mode: int) -> tuple[str, int]:
    """A new file under a random name, locked, so that nobody takes it for one that a killed process left."""
    while True:
        part = _random(name)
        file = os.open(part, _NEW, mode, dir_fd=at)
        if _lock(file) is not False and os.fstat(file).st_nlink:
            return part, file
        os.close(file)  # taken for a left-over before it was locked
        with suppress(OSError):
            os.unlink(part, dir_fd=at)


def _parts(name: str, at: int) -> list[str]:
    """The names beside ``name`` of what was to become it; earlier versions had no random part in them."""
    pattern = re.compile(rf"\.{re.escape(name)}(\.[0-9a-f]{{16}})?\.part")
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    try:
        return [found for found in os.listdir(here) if pattern.fullmatch(found)]  # noqa: PTH208
    finally:
        os.close(here)


def _clear(name: str, at: int) -> None:
    """Remove this user's parts of a file that nobody is writing."""
    for part in _parts(name, at):
        try:
            file = os.open(part, os.O_RDWR | os.O_NONBLOCK | _SAFE, dir_fd=at)
        except OSError:
            continue  # a link, a folder, or another user's
        try:
            told = os.fstat(file)
            if stat.S_ISREG(told.st_mode) and told.st_uid == os.geteuid() and _lock(file):
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=at)
        finally:
            os.close(file)


def _lock(file: int) -> bool | None:
    """Whether the file could be locked; None on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _all_own(path: Path, here: int) -> None:
    """Raise a ``UserError`` where a folder in which others could write holds what they may have put there."""
    for folder, folders, names, at in os.fwalk(".", dir_fd=here):
        for name in folders + names:
            told = os.stat(name, dir_fd=at, follow_symlinks=False)
            several = stat.S_ISREG(told.st_mode) and told.st_nlink > 1
            if told.st_uid != os.geteuid() or stat.S_ISLNK(told.st_mode) or several:
                raise UserError(
                    f"{path / folder / name}: others could write in {path}, and this is a link or another user's; "
                    "remove it"
                )
