"""Shared fixtures: a small raw dataset in RecBole's atomic format, and the real embedded models, made once."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from langptune.config.datasets import DatasetEntry

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """CI has an hour, on machines of any speed: late in it, tests marked ``slow`` are skipped, and say so."""
    until = os.environ.get("LANGPTUNE_TEST_UNTIL")
    if until and time.time() > float(until) and item.get_closest_marker("slow"):
        pytest.skip("slow, and it is past LANGPTUNE_TEST_UNTIL")


def snakemake(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the workflow; output of both streams comes back as text."""
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "2", *args]
    return subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def jobs_of(dry_run: str) -> dict[str, int]:
    """Rule -> number of jobs, from what a dry run prints."""
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total", dry_run, re.S | re.M)
    return {} if not table else {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()}


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The embedded encoder and decoder as local folders, materialised by the workflow itself if they are not there."""
    folder = ROOT / "results" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    # Tests may run in several processes: one makes the models, the others wait.
    with (folder / ".tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = snakemake("--configfile", "config/smoke.yaml", "--", "prefetch")
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


def copy_of_repo(target: Path, models: Path) -> Path:
    """A copy of the tracked and new files, with the materialised models of the original."""
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
def smoke_run(tmp_path_factory, real_models) -> Path:
    """A copy of the repository with one finished run of config/smoke.yaml on this machine.

    tests/workflow/test_smoke.py works in it; others that compute anew do so in a ``copy_of_run``.
    """
    copy = copy_of_repo(tmp_path_factory.mktemp("repo"), real_models)
    done = snakemake("--configfile", "config/smoke.yaml", cwd=copy)
    assert done.returncode == 0, done.stdout[-5000:]
    return copy


def copy_of_run(run: Path, target: Path) -> Path:
    """A copy of a repository with its results, for Snakemake as finished as they are."""
    shutil.copytree(run, target, symlinks=True)
    return target


@pytest.fixture
def one_thread():
    """torch on one CPU thread, where the same work gives the same bytes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    """Base URL of a real chat API on this machine: the embedded encoder behind `transformers serve`, in float32."""
    from langptune.endpoint.serve import served

    with served(real_models / "smollm2-135m", tmp_path_factory.mktemp("server") / "log", 1, "float32") as url:
        yield url
