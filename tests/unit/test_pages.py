"""The profile page and the study table, from files as the workflow writes them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import polars as pl

from langptune.data import contracts
from tests.conftest import ROOT


def run(script, spec):
    command = [sys.executable, str(ROOT / "scripts" / script), "--spec", json.dumps(spec)]
    return subprocess.run(command, capture_output=True, text=True)


def test_profile_page_escapes_every_text_and_is_drawn_by_seed(tmp_path):
    items = pl.DataFrame(
        {
            "item": [0, 1],
            "item_id": ["a", "b"],
            "title": ["<b>One</b>", "Two & more"],
            "text": ["x", "y"],
            "first_seen": [0, 0],
        },
        schema=contracts.ITEMS,
    )
    sessions = pl.DataFrame(
        {
            "session": [4],
            "user_id": ["<u>"],
            "split": ["test"],
            "history": [[0]],
            "ratings": [[5.0]],
            "reviews": [None],
            "seen": [[0]],
            "target": [1],
            "target_time": [9],
        },
        schema=contracts.SESSIONS,
    )
    profiles = pl.DataFrame(
        {
            "session": [4],
            "sample": [0],
            "profile": ["likes <script>alert(1)</script>"],
            "prompt_tokens": [5],
            "tokens": [6],
            "finished": [False],
            "logprob": [-1.0],
        },
        schema=contracts.PROFILES,
    )
    ranks = pl.DataFrame(
        {"session": [4], "target": [1], "rank": [1], "top": [[1]], "top_scores": [[0.5]]}, schema=contracts.RANKS
    )
    contracts.write(items, tmp_path / "items.parquet", "items")
    contracts.write(sessions, tmp_path / "sessions.parquet", "sessions")
    contracts.write(sessions.select("session", "split"), tmp_path / "evaluation.parquet", "evaluation")
    contracts.write(profiles, tmp_path / "profiles.parquet", "profiles")
    contracts.write(ranks, tmp_path / "ranks.parquet", "ranks")
    column = {"profiles": str(tmp_path / "profiles.parquet"), "ranks": str(tmp_path / "ranks.parquet")}
    spec = {
        "title": "T & T",
        "columns": [{"title": "Before", **column}, {"title": "After <i>", **column}],
        **{f"{name}_in": str(tmp_path / f"{name}.parquet") for name in ("items", "sessions", "evaluation")},
        "page_out": str(tmp_path / "page.html"),
    }
    done = run("show_profiles.py", spec)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    for text in ("&lt;script&gt;", "&lt;b&gt;One&lt;/b&gt;", "Two &amp; more", "&lt;u&gt;", "After &lt;i&gt;"):
        assert text in page
    assert "<script" not in page and "http" not in page and page.count("cut at the limit") == 2


def test_study_means_are_those_of_its_runs(tmp_path):
    runs = []
    for value in (1, 2):
        path = tmp_path / f"m{value}.parquet"
        pl.DataFrame({"session": [0, 1], "rank": [1, 9], "ndcg@10": [1.0 * value / 2, 0.0]}).write_parquet(path)
        runs.append(
            {
                "method": f"h.history_items-{value}",
                "models": "d",
                "seed": 0,
                "title": f"H {value}",
                "group": "text controls",
                "metrics_path": str(path),
                "of": "h",
                "label": "H",
                "value": float(value),
            }
        )
    spec = {
        "title": "S",
        "key": "history_items",
        "runs": runs,
        "table_out": str(tmp_path / "s.csv"),
        "figure_out": [str(tmp_path / "s.png")],
    }
    done = run("study.py", spec)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [(row["value"], float(row["mean"])) for row in rows] == [("1.0", 0.25), ("2.0", 0.5)]
    assert (tmp_path / "s.png").stat().st_size > 1000
