"""Follows the instructions of docs/extend.md for a dataset of your own, word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import ROOT, copy_of_repo

pytestmark = [pytest.mark.workflow, pytest.mark.models, pytest.mark.slow]


def test_a_dataset_of_ones_own(tmp_path, real_models):
    repo = copy_of_repo(tmp_path / "repo", real_models)
    commands = re.search(
        r"\*\*A dataset of your own\*\*.*?```bash\n(.*?)```", (ROOT / "docs/extend.md").read_text(), re.S
    )[1]
    # The environment of these tests replaces the one of `make env`.
    python = Path(sys.executable)
    (repo / ".venv/bin").mkdir(parents=True)
    for name in ("python", "snakemake"):
        command = f'exec "{python}"' + (" -m snakemake" if name == "snakemake" else "")
        (repo / f".venv/bin/{name}").write_text(f'#!/bin/sh\n{command} "$@"\n')
        (repo / f".venv/bin/{name}").chmod(0o755)
    (repo / ".venv/.ready").touch()
    environment = {**os.environ, "PYTHONPATH": str(repo / "src")}
    done = subprocess.run(["bash", "-euc", commands], cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    table = pl.read_csv(repo / "results/mine/mine/comparison/table_long.csv")
    assert set(table["method"]) == {"langptune-0", "history", "pop", "ease", "random"}
    assert (repo / "results/mine/report.html").is_file()
    sessions = pl.read_parquet(repo / "results/mine/mine/data/sessions.parquet")
    # The same films as the embedded dataset, through another format.
    assert dict(sessions["split"].value_counts().iter_rows()) == {"train": 97171, "val": 943, "test": 943}
