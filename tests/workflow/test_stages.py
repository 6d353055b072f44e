"""A new stage is a script and a rule, as in docs/extend.md; nothing else in the repository changes."""

from __future__ import annotations

import json
import re

import polars as pl
import pytest

from tests.conftest import ROOT, copy_of_repo, jobs_of, snakemake

pytestmark = pytest.mark.workflow
FILE = "results/smoke/ml-100k-small/data/counts.json"


def test_two_files_are_a_stage(tmp_path):
    page = (ROOT / "docs/extend.md").read_text()
    script, rule = re.search(r"\*\*A stage\*\*.*?```python\n(.*?)```.*?```python\n(.*?)```", page, re.S).groups()
    repo = copy_of_repo(tmp_path / "repo", tmp_path / "nothing")
    file, rules = repo / "scripts/count_sessions.py", repo / "workflow/rules/data.smk"
    file.write_text(script)
    rules.write_text(rules.read_text() + "\n\n" + rule)
    asked = ("--configfile", "config/smoke.yaml", "--", FILE)
    done = snakemake(*asked, cwd=repo)
    assert done.returncode == 0, done.stdout[-3000:]
    sessions = pl.read_parquet(repo / "results/smoke/ml-100k-small/data/sessions.parquet")
    assert json.loads((repo / FILE).read_text()) == dict(sessions["split"].value_counts().iter_rows())
    assert json.loads((repo / f"{FILE}.manifest.json").read_text())["spec"]["splits"] == ["train", "val", "test"]

    # A job runs again if its settings or its code change, but not if only its resources change.
    for old, new, jobs in (
        ("memory=500", "memory=600", 0),
        ('["train", "val", "test"]}', '["train"]}', 1),
        ("splits == split", "split == splits", 1),
    ):
        assert old in script
        file.write_text(script.replace(old, new))
        done = snakemake("-n", *asked, cwd=repo)
        assert done.returncode == 0 and jobs_of(done.stdout).get("count_sessions", 0) == jobs, done.stdout[-3000:]
