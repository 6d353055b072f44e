"""Shared fixtures: a small raw dataset in RecBole's atomic format, and the real embedded models, made once."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from xdist.scheduler import LoadScopeScheduling

from langptune.config.datasets import DatasetEntry
from langptune.data.contracts import SESSIONS
from tests import preload

ROOT = Path(__file__).resolve().parents[1]
PRELOAD = "LANGPTUNE_TEST_PYTHON"
# The preloading interpreter starts the workers of xdist. They get the plain interpreter's path from their parent.
PLAIN_PYTHON = os.environ.setdefault("LANGPTUNE_TEST_PLAIN_PYTHON", sys.executable)
"""The environment's interpreter, for jobs on a cluster. All other jobs use ``sys.executable``, see tests/preload.py."""
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Let all processes that tests start share one import of torch."""
    if PRELOAD not in os.environ and preload.possible():
        # A short path, because sockets lie below it and the length of their paths is limited.
        python = preload.make(Path(tempfile.mkdtemp(prefix="langptune-python-")) / "env")
        os.environ[PRELOAD] = str(python)
        config.add_cleanup(lambda: preload.remove(python))
    sys.executable = os.environ.get(PRELOAD, sys.executable)


LATE = "slow, and it is past LANGPTUNE_TEST_UNTIL"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip and report tests marked ``slow`` late in the run: CI has one hour, on machines of any speed."""
    until = os.environ.get("LANGPTUNE_TEST_UNTIL")
    if until and time.time() > float(until) and item.get_closest_marker("slow"):
        pytest.skip(LATE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the cluster's tests first, then units, then whole workflows, and slow tests last, as time may run out.

    The cluster comes first because its tests run one after another and mostly wait for a queue: meanwhile, the other
    workers have the machine to themselves.
    """
    places = {}
    for item in items:
        slurm, slow = (item.get_closest_marker(name) is not None for name in ("slurm", "slow"))
        # The tests of faults take longest of the cluster's tests.
        places[item] = not slurm, slow, slurm and item.path.name == "test_faults.py", item.path.parent.name != "unit"
    items.sort(key=places.__getitem__)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Tests of a file stay in one process, because they share fixtures; so do all tests of the cluster."""
    return ByFile(config, log)


class ByFile(LoadScopeScheduling):
    """Like ``--dist loadfile``, except that the cluster's files run in one process, because they share one cluster.

    ``--dist loadgroup`` would need no class, but has no effect with pytest 9.2: xdist 3.8 writes the group to a place
    that pytest no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "cluster" if file.startswith("tests/slurm/") else file


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the tests that were skipped for lack of time at the end of the run."""
    reports = terminalreporter.stats.get("skipped", [])
    late = [report for report in reports if isinstance(report.longrepr, tuple) and LATE in report.longrepr[2]]
    if late:
        terminalreporter.section(f"NOT RUN: {len(late)} slow tests, for lack of time", sep="!", bold=True)
        for report in late:
            terminalreporter.line(f"{report.nodeid}")
        terminalreporter.line("LANGPTUNE_TEST_UNTIL sets the time; without it every test runs.")


def snakemake(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the workflow; both output streams are returned as text."""
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "2", *args]
    return subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def environment_of(python: str) -> dict[str, str]:
    """The environment in which Snakemake's jobs run with this interpreter."""
    return {**os.environ, "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}


def sessions_table(rows: list[tuple[str, str, list[int], int, int]]) -> pl.DataFrame:
    """A table by the contract ``sessions``, from user, split, history (also all that is seen), target and its time."""
    return pl.DataFrame(
        [
            {
                "session": number,
                "user_id": user,
                "split": split,
                "history": history,
                "seen": history,
                "target": target,
                "target_time": time,
                "ratings": [1.0] * len(history),
                "reviews": None,
            }
            for number, (user, split, history, target, time) in enumerate(rows)
        ],
        schema=SESSIONS,
    )


AFTER_ALL = {"cost": 1, "fill_checklist": 1, "all": 1}
"""The jobs that the smoke grid reruns when any result changes."""
AFTER_RANKS = {"compare": 1, "slice_metrics": 1, "list_metrics": 1, "report_tuning": 1, "plot": 6, **AFTER_ALL}
"""The jobs that it reruns when a run's ranks and metrics change: all figures but those of curves and training."""


def jobs_of(dry_run: str) -> dict[str, int]:
    """Rule -> number of jobs, from what a dry run prints."""
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total", dry_run, re.S | re.M)
    return {} if not table else {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()}


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The embedded encoder and decoder as local folders; the workflow itself writes them if they do not exist."""
    folder = ROOT / "results" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    # Tests may run in several processes: one writes the models, the others wait.
    with (folder / ".tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = snakemake("--configfile", "config/smoke.yaml", "--", "prefetch")
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


def copy_of_repo(target: Path, models: Path) -> Path:
    """A copy of the tracked and new files, with a link to the original's models."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name, follow_symlinks=False)
    (target / "results").mkdir(exist_ok=True)
    (target / "results" / "models").symlink_to(models)
    return target


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """One folder for all processes of a test run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def smoke_run(shared_folder, real_models) -> Path:
    """A copy of the repository with one finished run of config/smoke.yaml on this machine, made once for all processes.

    Tests must not change it: to edit, delete or recompute, use a ``copy_of_run``.
    """
    copy, log = shared_folder / "smoke", shared_folder / "smoke.log"
    with (shared_folder / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            done = snakemake("--configfile", "config/smoke.yaml", cwd=copy_of_repo(copy, real_models))
            log.write_text(f"{done.returncode}\n{done.stdout}")
    code, _, output = log.read_text().partition("\n")
    assert code == "0", output[-5000:]
    return copy


def copy_of_run(run: Path, target: Path) -> Path:
    """A copy of a repository with its results, which Snakemake regards as finished."""
    shutil.copytree(run, target, symlinks=True)
    return target


@pytest.fixture
def small_disk():
    """A function that mounts a tmpfs of a given size (as mount's ``size=``) on a folder; this needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"the small disk cannot be mounted: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one CPU thread, so that the same work gives the same bytes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """``single_thread`` for a test."""
    with single_thread():
        yield


def entry(**changes) -> DatasetEntry:
    """A dataset entry for files written by ``write_raw``."""
    fields = {
        "title": "Toy",
        "reader": "recbole-atomic",
        "source": {"folder": "unset"},
        "licence": "none",
        "columns": {"title": "movie_title", "year": "release_year", "genres": "class"},
        "lists": ["genres"],
        "move_articles": True,
        "item_text": "{{ title }} ({{ year }}). Genres: {{ genres }}",
        "prompt": "movies",
        "protocol": {"name": "leave-one-out", "history_length": 4},
    }
    return DatasetEntry.model_validate({**fields, **changes})


def write_raw(folder: Path, rows: list[tuple], items: list[tuple], users: list[tuple] = ()) -> Path:
    """Atomic files: rows (user, item, rating, time), items (id, title, year, genres), users (id, occupation)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        *("\t".join(map(str, r)) for r in rows),
    ]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    (folder / "toy.item").write_text(
        "\n".join([*lines, *("\t".join(map(str, i)) for i in items)]) + "\n", encoding="utf-8"
    )
    if users:
        lines = ["user_id:token\toccupation:token", *("\t".join(u) for u in users)]
        (folder / "toy.user").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def chat_server(tmp_path_factory, real_models) -> str:
    """Socket of a real chat API on this machine: `transformers serve` with the embedded encoder, in float32."""
    from langptune.endpoint.serve import served

    with served(real_models / "smollm2-135m", tmp_path_factory.mktemp("server") / "log", 1, "float32") as socket:
        yield socket
