"""Writing is atomic, follows no links of others, and removes left-overs of killed processes."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from langptune import files
from langptune.endpoint.answers import Answer, Request
from langptune.endpoint.client import Client
from langptune.errors import UserError
from langptune.stage import Log
from tests.conftest import ROOT

NEIGHBOUR = "langptune-nb"
PRECIOUS = b"all that I ever wrote\n"


@pytest.fixture
def precious(tmp_path) -> Path:
    """A file of the user, which the links of the tests point to."""
    path = tmp_path / "home" / "thesis.tex"
    path.parent.mkdir()
    path.write_bytes(PRECIOUS)
    return path


@pytest.fixture
def shared(tmp_path) -> Path:
    path = tmp_path / "shared"
    path.mkdir()
    return path


def _answered(folder: Path) -> Client:
    from langptune.config.models import ModelSource

    fields = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "input_price": 0, "output_price": 0}
    return Client(ModelSource.model_validate({**fields, "requests_per_minute": 60}), folder)


REQUEST = Request((("user", "what I read"),), 4)
GOOD = Answer("text", True, "stop", 3, 1, True, "m")
FAULTY = Answer("", False, "stop", 3, 1, True, "m", fault="empty", why="an empty text")

WRITERS: dict[str, tuple[Callable[[Path], str], Callable[[Path], object]]] = {
    "an output": (lambda _: "out.txt", lambda folder: _write(folder / "out.txt")),
    "a log": (lambda _: "job.log", lambda folder: Log(folder / "job.log", quiet=True)("line")),
    "a lock": (lambda _: ".out.lock", lambda folder: files.hold(folder / ".out.lock").close()),
    "an answer": (
        lambda folder: str(_answered(folder).cache.path(REQUEST).relative_to(folder)),
        lambda folder: _answered(folder).cache.keep(REQUEST, GOOD),
    ),
    "an account": (
        lambda folder: str(_charges_path(folder).relative_to(folder)),
        lambda folder: _answered(folder).cache.charge(REQUEST, FAULTY),
    ),
    "a pace": (
        lambda folder: _pace_file(folder),
        lambda folder: _answered(folder).rate_limit.wait(10, threading.Event()),
    ),
    "a folder": (lambda _: "model", lambda folder: _write_folder(folder / "model")),
    "checkpoints": (lambda _: "run", lambda folder: (files.own_folder(folder / "run") / "seal.json").write_text("{}")),
}


def _write(path: Path) -> None:
    with files.whole(path) as part:
        part.write_text("new")


def _write_folder(path: Path) -> None:
    with files.new_folder(path) as part:
        (part / "config.json").write_text("{}")


def _charges_path(folder: Path) -> Path:
    cache = _answered(folder).cache
    return cache.charges_path(cache.key_of(REQUEST))


def _pace_file(folder: Path) -> str:
    beside = folder.with_name("elsewhere")
    _answered(beside).rate_limit.wait(10, threading.Event())
    return next(beside.glob("pace-*")).name


def _kept(precious: Path) -> bool:
    return precious.read_bytes() == PRECIOUS and precious.stat().st_nlink <= 2


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("plant", ["link", "dangling", "hard link", "pipe"])
def test_a_link_at_the_end_of_a_path_is_not_followed_when_writing(what, plant, shared, precious):
    """A neighbour's link, hard link or pipe with the output's name is replaced or refused; its target is unchanged."""
    name, write = WRITERS[what]
    at = shared / name(shared)
    at.parent.mkdir(parents=True, exist_ok=True)
    born = precious.with_name("born")
    match plant:
        case "link":
            at.symlink_to(precious.parent if what in ("a folder", "checkpoints") else precious)
        case "dangling":
            at.symlink_to(born)
        case "hard link":
            at.hardlink_to(precious)
        case "pipe":
            os.mkfifo(at)
    ended = threading.Thread(target=_quietly, args=(write, shared), daemon=True)
    ended.start()
    ended.join(30)
    assert not ended.is_alive(), "it waits for the pipe"
    assert _kept(precious) and not born.exists() and sorted(precious.parent.iterdir()) == [precious]


def _quietly(write: Callable[[Path], object], folder: Path) -> None:
    try:
        write(folder)
    except UserError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize("what", WRITERS)
def test_links_on_names_that_parts_had_are_left_alone(what, shared, precious):
    """Names that earlier versions used, and every name of the current pattern that can be predicted."""
    name, write = WRITERS[what]
    at = shared / name(shared)
    at.parent.mkdir(parents=True, exist_ok=True)
    planted = [at.with_name(f".{at.name}.part"), at.with_name(f".{at.name}.{'0' * 16}.part")]
    planted += [at.with_name(f".{at.name}.{os.getpid()}-{threading.get_ident()}.part")]
    for link in planted:
        link.symlink_to(precious)
    write(shared)
    assert at.exists() and _kept(precious)


@pytest.mark.skipif(os.geteuid() != 0, reason="two users need root")
class TestTwoUsers:
    """A real neighbour in a real group folder (mode 2775, as in docs/cluster.md); the victim is root."""

    @pytest.fixture(autouse=True)
    def neighbour(self):
        added = subprocess.run(["useradd", "--no-create-home", NEIGHBOUR], capture_output=True, text=True)
        if added.returncode not in (0, 9):  # 9: the account exists
            pytest.skip(f"useradd: {added.stderr.strip()}")
        self.user = pwd.getpwnam(NEIGHBOUR)
        yield
        if added.returncode == 0:
            subprocess.run(["userdel", NEIGHBOUR], capture_output=True)

    @pytest.fixture
    def group(self, tmp_path) -> Path:
        """A folder of the neighbour's group, in a place that the neighbour can reach."""
        folder = Path("/tmp") / f"langptune-shared-{os.getpid()}"
        folder.mkdir()
        os.chown(folder, 0, self.user.pw_gid)
        folder.chmod(0o2775)
        yield folder
        shutil.rmtree(folder)

    def as_neighbour(self, code: str, *args: object) -> None:
        subprocess.run(
            ["/usr/bin/env", "python3", "-c", textwrap.dedent(code), *map(str, args)],
            user=self.user.pw_uid,
            group=self.user.pw_gid,
            extra_groups=[],
            check=True,
            cwd="/",
        )

    LINK = "import os, sys; os.makedirs(os.path.dirname(sys.argv[2]), exist_ok=True); os.symlink(*sys.argv[1:])"

    @pytest.mark.parametrize("what", WRITERS)
    def test_a_neighbours_link_at_the_name(self, what, group, precious):
        name, write = WRITERS[what]
        self.as_neighbour(self.LINK, precious, group / name(group))
        _quietly(write, group)
        assert _kept(precious)

    def test_a_neighbours_link_on_the_way_is_refused(self, group, precious):
        self.as_neighbour(self.LINK, precious.parent, group / "ml-100k")
        with pytest.raises(UserError, match="'ml-100k' in its path is a link of another user"):
            _write(group / "ml-100k" / "thesis.tex")
        assert _kept(precious)

    def test_ones_own_link_on_the_way_is_followed(self, group, tmp_path):
        (group / "scratch").symlink_to(tmp_path)
        _write(group / "scratch" / "new" / "out.txt")
        assert (tmp_path / "new" / "out.txt").read_text() == "new"

    def test_a_loop_of_links_is_named(self, tmp_path):
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(UserError, match="links, or they form a loop"):
            _write(tmp_path / "a" / "out.txt")

    def test_a_link_in_a_folder_that_its_owner_alone_may_write_is_followed(self, tmp_path):
        """An administrator's account may link a project to its disk."""
        place = tmp_path / "lab"
        place.mkdir()
        (place / "project").symlink_to(tmp_path)
        os.chown(place, self.user.pw_uid, self.user.pw_gid)
        os.chown(place / "project", self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)
        _write(place / "project" / "out.txt")
        place.chmod(0o2775)
        with pytest.raises(UserError, match="a link of another user"):
            _write(place / "project" / "out.txt")

    def test_checkpoints_in_a_neighbours_folder_are_refused(self, group):
        """Checkpoints are loaded again, by libraries that may run code in them."""
        self.as_neighbour("import os, sys; os.makedirs(sys.argv[1])", group / "run")
        with pytest.raises(UserError, match="a folder of another user"):
            files.own_folder(group / "run")

    def test_a_neighbours_answers_are_not_appended_to(self, group):
        name, write = WRITERS["an account"]
        at = group / name(group)
        code = "import os, sys; os.makedirs(os.path.dirname(sys.argv[1])); open(sys.argv[1], 'w').write('x')"
        self.as_neighbour(code, at)
        with pytest.raises(UserError, match="belongs to another user"):
            write(group)

    def test_a_free_lock_of_another_user_is_taken_and_a_held_one_is_reported(self, group):
        """Users of a group may create each other's lock files; only a number in a lock file is trusted."""
        lock = group / ".out.lock"
        write = "import sys; open(sys.argv[1], 'w').write('\\x1b[2Jevil' * 10**6)"
        self.as_neighbour(write, lock)
        lock.chmod(0o644)
        with lock.open() as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(files.Held) as held:
                files.hold(lock)
        assert held.value.by == ""
        files.hold(lock).close()

    def test_locks_of_gpus_are_in_a_folder_of_ones_own(self, group, monkeypatch):
        from langptune import gpus

        monkeypatch.setattr("tempfile.tempdir", str(group))
        monkeypatch.setenv("LANGPTUNE_GPUS", "1")
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        monkeypatch.delenv(gpus.VISIBLE, raising=False)
        self.as_neighbour("import os, sys; os.makedirs(sys.argv[1])", group / f"langptune-gpus-{os.getuid()}")
        with pytest.raises(UserError, match="a folder of another user"):
            gpus.claim(1, print)


def test_a_folder_that_others_could_write_in_is_looked_through(tmp_path, precious):
    folder = tmp_path / "run"
    (folder / "checkpoint-1").mkdir(parents=True)
    folder.chmod(0o775)
    (folder / "checkpoint-1" / "model.bin").write_text("mine")
    assert files.own_folder(folder) == folder and stat.S_IMODE(folder.stat().st_mode) == 0o755
    folder.chmod(0o775)
    (folder / "checkpoint-1" / "link").symlink_to(precious)
    with pytest.raises(UserError, match=r"checkpoint-1/link: others could write"):
        files.own_folder(folder)


def test_what_killed_processes_left_is_removed_and_what_is_being_written_stays(tmp_path):
    """Writers are killed several times; a later writer must not remove an output that is still being written."""
    code = """
        import sys, time
        from langptune.files import new_folder, whole
        with whole(sys.argv[1] + "/out.txt") as part, new_folder(sys.argv[1] + "/model") as folder:
            part.write_text("half")
            (folder / "weights").write_text("half")
            print("there", flush=True)
            time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    for _ in range(3):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert child.stdout.readline() == "there\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    left = list(tmp_path.iterdir())
    assert len([p for p in left if p.is_file()]) == len([p for p in left if p.is_dir()]) == 1, "each removes the last"
    (tmp_path / ".out.txt.part").write_text("of an earlier version")
    with files.whole(tmp_path / "out.txt") as part:
        part.write_text("first")
        _write(tmp_path / "out.txt")  # written at the same time: neither removes the other's part
        assert (tmp_path / "out.txt").read_text() == "new"
    _write_folder(tmp_path / "model")
    assert (tmp_path / "out.txt").read_text() == "first"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out.txt"]


def test_an_error_leaves_nothing_and_keeps_what_was_there(tmp_path):
    _write(tmp_path / "out.txt")
    with pytest.raises(ZeroDivisionError), files.whole(tmp_path / "out.txt") as part:
        part.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "model"):
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"] and (tmp_path / "out.txt").read_text() == "new"


def test_a_part_that_is_exchanged_while_it_is_written_is_not_written_through(tmp_path, precious):
    """Replace the part after its creation and before a library opens it, faster than any neighbour could."""
    with files.whole(tmp_path / "out.parquet") as part:
        there = next(tmp_path.glob(".out.parquet.*.part"))
        there.unlink()
        there.symlink_to(precious)
        part.write_text("new")
    assert _kept(precious)


@pytest.mark.parametrize("kind", ["a file on the way", "a folder at the name", "a long name"])
def test_what_the_user_must_change_is_one_line(tmp_path, kind):
    path = {"a file on the way": tmp_path / "f" / "out", "a folder at the name": tmp_path / "d"}.get(kind)
    (tmp_path / "f").write_text("")
    (tmp_path / "d" / "inside").mkdir(parents=True)
    for make in (_write, files.fresh, files.hold):
        with pytest.raises(UserError) as error:
            make(path or tmp_path / ("x" * 300))
        assert str(tmp_path) in str(error.value)


def test_answers_are_for_ones_own_eyes(tmp_path):
    """Prompts contain what people read and bought, and umask 022 makes new files readable by all."""
    before = os.umask(0o022)
    try:
        client = _answered(tmp_path)
        client.cache.keep(REQUEST, GOOD)
        client.cache.charge(REQUEST, FAULTY)
        client.rate_limit.wait(10, threading.Event())
        made = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(made) == 3 and {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
        _write(tmp_path / "out.txt")
        assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == 0o644
    finally:
        os.umask(before)


def test_accounts_are_appended_to_by_several_at_once(tmp_path):
    first, second = files.private(tmp_path / "account"), files.private(tmp_path / "account")
    with first, second:
        first.write("one\n")
        first.flush()
        second.write("two\n")
    assert (tmp_path / "account").read_text() == "one\ntwo\n"


def test_a_device_stays_where_it_is():
    """`--log /dev/null` must work, also as root."""
    Log(Path("/dev/null"), quiet=True)("line")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_nobody_else_writes_in_what_libraries_make_in_an_own_folder(tmp_path):
    """With umask 002 the group could put links into folders of checkpoints, downloads and Snakemake's benchmarks."""
    before = os.umask(0o002)
    try:
        (inner := files.own_folder(tmp_path / "own") / "made" / "by" / "a-library").mkdir(parents=True)
        (inner / "file").write_text("x")
        made = [tmp_path / "own", *(tmp_path / "own").rglob("*")]
        assert len(made) == 5 and not any(path.stat().st_mode & 0o022 for path in made)
        os.umask(0o077)
        files.own_folder(tmp_path / "own")
        assert os.umask(0o077) == 0o077, "what was narrower stays so"
    finally:
        os.umask(before)
