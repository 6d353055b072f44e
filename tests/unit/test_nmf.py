"""NMF finds planted blocks, folds unknown users in, selects on validation, and never sees a held-out target."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from langptune.baselines import nmf
from langptune.baselines.frame import fit
from langptune.data import contracts
from langptune.errors import UserError
from tests.conftest import ROOT
from tests.unit.test_controls import sessions

BLOCKS, PER_BLOCK = 4, 12
N = BLOCKS * PER_BLOCK


def planted(users=60, seed=0):
    """Each user has items of one block. Held-out users have no train session."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        own = rng.permutation(PER_BLOCK)[:7] + PER_BLOCK * (user % BLOCKS)
        split = "test" if user % 6 == 4 else "val" if user % 6 == 5 else "train"
        rows.append((f"u{user}", split, own[:6].tolist(), int(own[6])))
    return sessions(rows)


def scores(fitted, chosen):
    return fitted.scores(chosen.select(fitted.asks))


def fitted(table, components=BLOCKS, seed=0):
    model = nmf.Model(nmf.Keys(components=components, max_iterations=300))
    model.fit(fit.lesson(table, N, "val", seed, print))
    return model


def test_planted_blocks_are_found_for_users_who_were_not_trained_on():
    table = planted()
    tests = table.filter(pl.col("split") == "test")
    found = scores(fitted(table), tests)
    for row, history in zip(found, tests["history"].to_list(), strict=True):
        block = history[0] // PER_BLOCK
        assert set(np.argsort(-row)[:PER_BLOCK] // PER_BLOCK) == {block}
    ranks = fit.ranks(fitted(table), tests, N)
    assert (ranks["rank"] <= PER_BLOCK - 6).all(), "behind unseen items of its own block at most"


def test_validation_tells_how_many_components_are_right():
    lines = []
    lesson = fit.lesson(planted(), N, "val", 0, lines.append)
    trials = {n: fit.select(nmf.Model(nmf.Keys(components=n, max_iterations=300)), lesson) for n in (1, BLOCKS)}
    assert trials[BLOCKS].val["ndcg@10"] > trials[1].val["ndcg@10"] and len(lines) == 2
    with pytest.raises(UserError, match="no validation split"):
        fit.select(nmf.Model(nmf.Keys()), fit.lesson(planted().filter(pl.col("split") != "val"), N, "val", 0, print))


def test_the_same_seed_gives_the_same_scores_whatever_else_is_scored():
    table = planted()
    tests = table.filter(pl.col("split") == "test")
    whole = scores(fitted(table), tests)
    assert (scores(fitted(table), tests) == whole).all()
    assert np.allclose(scores(fitted(table), tests[3:]), whole[3:], atol=1e-6)


def test_mistakes_are_one_line():
    table = planted()
    with pytest.raises(UserError, match=r"kind nmf: components 99: the train sessions have 40 users .*at most 40"):
        fitted(table, components=99)


def run(folder, components=BLOCKS):
    table = planted()
    items = [str(i) for i in range(N)]
    columns = {"item": range(N), "item_id": items, "title": items, "text": items, "first_seen": [0] * N}
    contracts.write(pl.DataFrame(columns, schema=contracts.ITEMS), folder / "items.parquet", "items")
    contracts.write(table, folder / "sessions.parquet", "sessions")
    spec = {
        "mode": "final",
        "baseline": "nmf",
        "keys": {"components": components, "max_iterations": 300},
        "seed": 3,
        "items_in": str(folder / "items.parquet"),
        "sessions_in": str(folder / "sessions.parquet"),
        "ranks_out": str(folder / "ranks.parquet"),
        "curve_out": str(folder / "curve.jsonl"),
    }
    command = [sys.executable, str(ROOT / "scripts" / "fit_baseline.py"), "--spec", json.dumps(spec)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_script_ranks_and_notes_whether_it_converged(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(contracts.read(tmp_path / "ranks.parquet", "ranks")) == 10
    notes = json.loads((tmp_path / "ranks.parquet.manifest.json").read_text())["notes"]
    assert notes["settings"]["components"] == BLOCKS and notes["converged"] == (notes["iterations"] < 300)
    assert (tmp_path / "curve.jsonl").read_text() == ""
    bad = run(tmp_path, components=500)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "components 500" in bad.stderr
