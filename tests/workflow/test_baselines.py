"""A new baseline is one new file and an entry: config, rules and script find it."""

from __future__ import annotations

import json
import re

import polars as pl
import pytest
import yaml

from tests.conftest import ROOT, copy_of_repo, jobs_of, snakemake

pytestmark = pytest.mark.workflow


def test_one_new_file_and_an_entry_are_a_baseline(tmp_path):
    """Both are those of docs/extend.md, word for word. The grid is tried, the best point is fitted and ranked."""
    page = (ROOT / "docs/extend.md").read_text()
    code, entry = re.search(r"\*\*Another baseline\*\*.*?```python\n(.*?)```.*?```yaml\n(.*?)```", page, re.S).groups()
    repo = copy_of_repo(tmp_path / "repo", tmp_path / "nothing")
    (repo / "src/langptune/baselines/transitions.py").write_text(code)
    with (repo / "config/methods.yaml").open("a") as registry:
        registry.write(f"\n{entry}")
    config = {
        "results": "results/mine",
        "datasets": ["ml-100k-small"],
        "methods": ["random", "transitions"],
        "seeds": [0, 1],
        "comparison": {"reference": "random"},
    }
    (repo / "config/mine.yaml").write_text(yaml.safe_dump(config))
    planned = jobs_of(snakemake("--configfile", "config/mine.yaml", "-n", "--", "tables", cwd=repo).stdout)
    assert (planned["try_baseline"], planned["select_baseline"], planned["fit_baseline"]) == (3, 1, 3)

    folder = repo / "results/mine/ml-100k-small/transitions/transitions"
    ranks = folder / "seed0/ranks.parquet"
    done = snakemake("--configfile", "config/mine.yaml", "--", str(ranks.relative_to(repo)), cwd=repo)
    assert done.returncode == 0, done.stdout[-3000:]
    best = json.loads((folder / "tune/best.json").read_text())
    trials = {trial["settings"]["popularity"]: trial["val"]["ndcg@10"] for trial in best["trials"]}
    assert set(trials) == {0.0, 0.1, 1.0} and trials[best["settings"]["popularity"]] == max(trials.values())
    found = pl.read_parquet(ranks)
    items = len(pl.read_parquet(repo / "results/mine/ml-100k-small/data/items.parquet"))
    assert found["rank"].median() < 0.4 * items, "it learned something: by chance it is about half"
