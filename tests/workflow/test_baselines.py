"""A new baseline is one new file and an entry: config, rules and script find it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.conftest import ROOT, copy_of_repo, jobs_of, snakemake

pytestmark = pytest.mark.workflow


FUSIONS = """
pop-plus-transitions: {title: Pop + Transitions, kind: fusion, of: [pop, transitions]}
pop-or-transitions:
  {title: Pop or Transitions, group: bounds, kind: fusion, of: [pop, transitions], combine: better-rank}
"""


def test_one_new_file_and_an_entry_are_a_baseline(tmp_path):
    """File and entry are copied from docs/extend.md. The grid is tried, and the best point is fitted and ranked.

    Then a fusion combines the new baseline with another one.
    """
    page = (ROOT / "docs/extend.md").read_text()
    code, entry = re.search(r"\*\*Another baseline\*\*.*?```python\n(.*?)```.*?```yaml\n(.*?)```", page, re.S).groups()
    repo = copy_of_repo(tmp_path / "repo", tmp_path / "nothing")
    (repo / "src/langptune/baselines/transitions.py").write_text(code)
    with (repo / "config/methods.yaml").open("a") as registry:
        registry.write(f"\n{entry}{FUSIONS}")
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
    assert found["rank"].median() < 0.4 * items, "the baseline learned nothing: chance level is about half"
    assert not (ranks.parent / "scores.parquet").exists()
    fused(repo, config, found)


def fused(repo: Path, config: dict, alone: pl.DataFrame) -> None:
    """A fusion of the new baseline and Pop, and its upper bound: fits, rows of the table and a contrast."""
    config["methods"] = ["random", "transitions", "pop-plus-transitions", "pop-or-transitions"]
    config["comparison"]["contrasts"] = {"adds": ["pop-plus-transitions", "transitions"]}
    config["seeds"] = [0]
    (repo / "config/mine.yaml").write_text(yaml.safe_dump(config))
    results = Path("results/mine/ml-100k-small")
    table = results / "comparison/table_long.csv"
    done = snakemake("--configfile", "config/mine.yaml", "--", str(table), cwd=repo)
    assert done.returncode == 0, done.stdout[-3000:]
    assert jobs_of(done.stdout)["fit_fused_baseline"] == 2, "Pop, not a method of the run, and the new one"
    folders = {name: repo / results / f"{name}-transitions/pop-transitions/seed0" for name in ("pop-plus", "pop-or")}
    pop, own, added, bound = (
        pl.read_parquet(folder / "ranks.parquet")
        for folder in (repo / results / "pop/pop/seed0", repo / results / "transitions/transitions/seed0",
                       *folders.values())
    )  # fmt: skip
    assert own.equals(alone), "keeping scores must change no rank"
    assert bound["rank"].to_list() == list(map(min, pop["rank"], own["rank"]))
    choice = json.loads((folders["pop-plus"] / "choice.json").read_text())
    val = {row["weight"]: row["ndcg"] for row in choice["grid"]}
    assert len(val) == 21 and val[choice["weight"]] == max(val.values()) and choice["sessions"] == 60
    assert (added["rank"] != own["rank"]).any() == (choice["weight"] != 1)
    means = {row["method"]: row for row in pl.read_csv(repo / table).filter(metric="ndcg@10").iter_rows(named=True)}
    assert means["pop-plus-transitions"]["weight"] == choice["weight"] and means["random"]["weight"] is None
    contrast = pl.read_csv(repo / results / "comparison/contrasts.csv").filter(metric="ndcg@10").row(0, named=True)
    gain = means["pop-plus-transitions"]["mean"] - means["transitions"]["mean"]
    assert contrast["difference"] == pytest.approx(gain, abs=1e-9)
