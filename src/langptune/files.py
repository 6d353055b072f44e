"""Opens all files that are written: atomically, and without following links of other users.

Results and models may be in folders where others can write too. If somebody puts a link where a file is expected, this
program could truncate or overwrite a file elsewhere, with the rights of whoever runs it. So:

* the path to a file is resolved folder by folder, and a link on it is followed only if it belongs to this user or the
  system, or is in a folder that only its owner may write;
* a link as the last part of a path is never followed;
* a new file is created under a random name that must not exist yet, and put in place by a rename, which replaces a link
  without following it;
* a file that is opened in place (a lock, a log) must be a plain file, and nothing is written to it if it has other
  names as well (hard links).

``langptune.reading`` reads.
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
_PATH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | _SAFE
_LINKS = 40
"""Limit on the links in a path, as in Linux."""
_HANDLES = Path("/proc/self/fd")
_PERMANENT = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENOTEMPTY),
}
"""Errors that a retry does not change; a full disk is not among them."""


class Held(Exception):
    """Another process holds a lock; ``by`` is its process id, or empty."""

    def __init__(self, by: str):
        super().__init__(by)
        self.by = by


@contextmanager
def whole(path: Path | str, mode: int = 0o666) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, and rename it to ``path`` if the block ends without an error.

    A reader, or a rerun after a kill, never sees an incomplete file. The temporary file has a random name beside
    ``path``; temporary files of killed processes are removed. On Linux the yielded path refers to the open file itself,
    so that another file that replaces it in the meantime is not touched.

    Args:
        mode: mode of the new file, before the umask.

    Raises:
        UserError: the file cannot be created.
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
    """Write one JSON object per line, atomically."""
    with whole(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fresh(path: Path | str) -> IO[str]:
    """A new text file that is read while it is written (a log); an existing file is removed first.

    A device (``/dev/null``) is opened in place.

    Raises:
        UserError: the file cannot be created, or the path is not a file.
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
                    raise OSError(errno.ENXIO, "it is not a file")
                os.unlink(path.name, dir_fd=at)
            with suppress(FileExistsError):  # another process was faster
                return os.fdopen(os.open(path.name, _NEW, 0o666, dir_fd=at), "w", encoding="utf-8")
    raise UserError(f"{path}: another process keeps creating it")


def hold(path: Path | str) -> IO[str]:
    """Lock a file (created if missing) until the returned file is closed or the process ends.

    The kernel releases the lock with the process, so it is never stale. The file stays: if it were removed, two
    processes could hold the lock. It contains the process id.

    Raises:
        Held: another process holds the lock.
        UserError: the path is not a plain file, or this user may not open it.
    """
    path = Path(path)
    file = _in_place(path, os.O_RDWR | os.O_CREAT, 0o666, or_read=True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip()
        os.close(file)
        # The content may be anybody's: only a number is shown.
        raise Held(holder if holder.isascii() and holder.isdigit() else "") from None
    except OSError:
        pass  # a file system without locks
    if os.fstat(file).st_nlink == 1:
        with suppress(OSError):  # a lock of another user, or a full disk
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
    return os.fdopen(file, "r", encoding="utf-8")


def private(path: Path | str) -> IO[str]:
    """A file that only this user may read, opened for reading and appending; created if missing.

    Raises:
        UserError: the path is not a plain file of this user.
    """
    path = Path(path)
    file = _in_place(path, flags := os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    state = os.fstat(file)
    if state.st_uid == os.geteuid() and state.st_nlink > 1:
        # It may be another file of this user that somebody linked here, so its content is copied to a new file.
        with os.fdopen(file, "rb") as old, whole(path, 0o600) as part:
            part.write_bytes(old.read())
        file = _in_place(path, flags, 0o600)
        state = os.fstat(file)
    if state.st_uid != os.geteuid() or state.st_nlink > 1:
        os.close(file)
        raise UserError(f"{path}: belongs to another user ({state.st_uid}); remove it, or choose another folder")
    os.fchmod(file, 0o600)
    return os.fdopen(file, "a+", encoding="utf-8")


def own_folder(path: Path | str) -> Path:
    """A folder that only this user may write, created if missing; for libraries that choose their own file names.

    The umask of this process, and of its children, changes accordingly: libraries create sub-folders, and with umask
    002 the group could put links into those.

    Raises:
        UserError: the path is a link, a folder of another user, or a folder that others may write and that contains a
            link or another user's file.
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
            state = os.fstat(here)
            if state.st_uid != os.geteuid():
                raise UserError(
                    f"{path}: a folder of another user ({state.st_uid}); remove it, or choose another place"
                )
            if state.st_mode & 0o022:
                os.fchmod(here, stat.S_IMODE(state.st_mode) & ~0o022)
                _all_own(path, here)
        finally:
            os.close(here)
    return path


@contextmanager
def new_folder(target: Path | str) -> Iterator[Path]:
    """Write a folder atomically: yield a temporary one, which replaces ``target`` if the block ends without an error.

    Nobody else may write in it. Temporary folders of killed processes are removed first, so only one process at a time
    may write a target (``langptune.stage`` holds a lock).

    Raises:
        UserError: the folder cannot be created.
    """
    target = Path(target)
    with _folder(target.parent) as at, _named(target):
        for name in _parts(target.name, at):
            state = os.stat(name, dir_fd=at, follow_symlinks=False)
            if stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid():
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
    """Replace ``target`` by a finished folder beside it; a link is removed, not followed.

    Raises:
        UserError: ``target`` cannot be removed.
    """
    with _folder(target.parent) as at, _named(target):
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(target.name, dir_fd=at, follow_symlinks=False).st_mode):
                shutil.rmtree(target.name, ignore_errors=True, dir_fd=at)
            else:
                os.unlink(target.name, dir_fd=at)
        os.rename(part.name, target.name, src_dir_fd=at, dst_dir_fd=at)


def whole_file(source: Path, target: Path) -> None:
    """Copy a file atomically.

    Raises:
        UserError: the copy cannot be created.
    """
    with whole(target) as part:
        shutil.copyfile(source, part)


def whole_folder(source: Path, target: Path, readme: str) -> None:
    """Copy a folder of this program and add a README.md, atomically."""
    with new_folder(target) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)
        part.chmod(part.stat().st_mode & ~0o022)  # copytree copied the mode of the source
        (part / "README.md").write_text(readme, encoding="utf-8")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn errors that the user must fix into one line that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _PERMANENT:
            raise
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
            raise UserError(
                f"{path}: is a link, to {str(path.readlink())!r}; links are not followed when writing: remove it"
            ) from None
        raise UserError(f"{path}: cannot be written: {error.strerror}; check the folder and its permissions") from None


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder, which is created if missing.

    Raises:
        UserError: it cannot be created, or its path contains another user's link.
    """
    with _named(path):
        at = _walk(path)
    try:
        yield at
    finally:
        os.close(at)


def _walk(path: Path) -> int:
    todo, links = list(reversed(path.parts)), 0
    at = os.open(".", _PATH)
    try:
        while todo:
            name = todo.pop()
            try:
                inner = os.open(name, _PATH, dir_fd=at)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=at)
                todo.append(name)
                continue
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                links += 1
                todo += reversed(_resolved(name, at, path, links).parts)
                continue
            os.close(at)
            at = inner
    except BaseException:
        os.close(at)
        raise
    return at


def _resolved(name: str, at: int, path: Path, links: int) -> Path:
    """The target of a link in ``path``, if it may be followed."""
    state, around = os.stat(name, dir_fd=at, follow_symlinks=False), os.fstat(at)
    if not stat.S_ISLNK(state.st_mode):
        raise UserError(f"{path}: cannot be created: '{name}' in its path is a file")
    target = os.readlink(name, dir_fd=at)
    again = os.stat(name, dir_fd=at, follow_symlinks=False)
    same = (state.st_ino, state.st_ctime_ns, state.st_uid) == (again.st_ino, again.st_ctime_ns, again.st_uid)
    protected = state.st_uid == around.st_uid and not around.st_mode & 0o022
    if links > _LINKS:
        raise UserError(f"{path}: its path has more than {_LINKS} links, or they form a loop; name the folder itself")
    if not same or not (state.st_uid in (0, os.geteuid()) or protected):
        raise UserError(
            f"{path}: '{name}' in its path is a link of another user ({state.st_uid}), to {target!r}; it is not "
            "followed when writing: remove it, or name its target"
        )
    return Path(target)


def _in_place(path: Path, flags: int, mode: int, or_read: bool = False) -> int:
    """A descriptor of a plain file; with ``or_read`` only for reading if this user may not write it."""
    safe = os.O_NONBLOCK | _SAFE  # a pipe without a reader must not block
    with _folder(path.parent) as at, _named(path):
        try:
            file = os.open(path.name, flags | safe, mode, dir_fd=at)
        except PermissionError:
            if not or_read:
                raise
            file = os.open(path.name, os.O_RDONLY | safe, dir_fd=at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(f"{path}: is not a plain file; remove it")
    return file


def _random(name: str) -> str:
    return f".{name}.{secrets.token_hex(8)}.part"


def _part(name: str, at: int, mode: int) -> tuple[str, int]:
    """A new file under a random name, locked so that it is not mistaken for one of a killed process."""
    while True:
        part = _random(name)
        file = os.open(part, _NEW, mode, dir_fd=at)
        if _lock(file) is not False and os.fstat(file).st_nlink:
            return part, file
        os.close(file)  # it was removed as a left-over before it was locked
        with suppress(OSError):
            os.unlink(part, dir_fd=at)


def _parts(name: str, at: int) -> list[str]:
    """The names of temporary files for ``name``; earlier versions had no random part in them."""
    pattern = re.compile(rf"\.{re.escape(name)}(\.[0-9a-f]{{16}})?\.part")
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    try:
        return [found for found in os.listdir(here) if pattern.fullmatch(found)]  # noqa: PTH208
    finally:
        os.close(here)


def _clear(name: str, at: int) -> None:
    """Remove this user's temporary files for ``name`` that no process is writing."""
    for part in _parts(name, at):
        try:
            file = os.open(part, os.O_RDWR | os.O_NONBLOCK | _SAFE, dir_fd=at)
        except OSError:
            continue  # a link, a folder, or another user's file
        try:
            state = os.fstat(file)
            if stat.S_ISREG(state.st_mode) and state.st_uid == os.geteuid() and _lock(file):
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
    """Raise a ``UserError`` if a folder that others could write contains anything that they may have put there."""
    for folder, folders, names, at in os.fwalk(".", dir_fd=here):
        for name in folders + names:
            state = os.stat(name, dir_fd=at, follow_symlinks=False)
            several = stat.S_ISREG(state.st_mode) and state.st_nlink > 1
            if state.st_uid != os.geteuid() or stat.S_ISLNK(state.st_mode) or several:
                raise UserError(
                    f"{path / folder / name}: others could write in {path}, and this is a link or another user's; "
                    "remove it"
                )
