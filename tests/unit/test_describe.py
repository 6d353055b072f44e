"""The dataset card, the counts after each filter beside published ones, and limits that only count."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import polars as pl
import pytest
from markdown_it import MarkdownIt

from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.data import protocols, readers
from langptune.data.card import card
from langptune.data.limits import TokenLimits
from langptune.training.card import card as model_card
from tests import conftest
from tests.amazon import write_amazon
from tests.conftest import ROOT
from tests.unit.test_readers import amazon


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("amazon")
    write_amazon(made, reviews=3000, seed=3)
    return made


def run(script: str, **spec) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--spec", json.dumps(spec)]
    return subprocess.run(command, capture_output=True, text=True)


def files(out, published) -> tuple[dict, dict]:
    names = {key: str(out / f"{key}.parquet") for key in ("items", "sessions", "users")}
    return (
        {**{f"{key}_out": path for key, path in names.items()}, "funnel_out": str(out / "funnel.csv")},
        {
            "items_in": names["items"],
            "sessions_in": names["sessions"],
            "funnel_in": str(out / "funnel.csv"),
            "manifest_in": f"{names['sessions']}.manifest.json",
            "card_out": str(out / "card.md"),
            "statistics_out": str(out / "statistics.csv"),
            "figure_out": [str(out / "funnel.png")],
        },
    )


def test_card_statistics_and_funnel(folder, tmp_path):
    published = {"core": {"users": 1000, "items": 70}, "test sessions": {"users": 12}}
    settings = amazon(folder, published=published).model_dump(mode="json")
    made, described = files(tmp_path, published)
    done = run("prepare_data", name="movies-tv", dataset=settings, **made)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "items.parquet.scratch").exists()
    done = run("describe_data", name="movies-tv", dataset=settings, **described)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "card.md").read_text()
    funnel = pl.read_csv(tmp_path / "funnel.csv")
    core = funnel.row(by_predicate=pl.col("step") == "core", named=True)
    assert f"| core | {core['interactions']} | {core['users']} | {core['items']} |  | 1000 | 70 |" in card
    assert str(folder) not in card.split("## Left out")[1]
    numbers = pl.read_csv(tmp_path / "statistics.csv")
    sessions = pl.read_parquet(tmp_path / "sessions.parquet")
    assert numbers["sessions"].to_list() == [(sessions["split"] == split).sum() for split in ("train", "val", "test")]
    assert (tmp_path / "funnel.png").stat().st_size > 5000
    assert "| cold users | 1.000 | attention |" in card, "the paper's protocol is user-disjoint"

    settings["published"] = {"cores": {"users": 1}}
    done = run("describe_data", name="movies-tv", dataset=settings, **described)
    assert done.returncode != 0 and "published: 'cores' is not a step of this protocol: reviews, usable" in done.stderr


def test_text_of_a_file_is_not_markup_of_its_card():
    """Ids and titles come from untrusted files, and notes quote them."""
    entry = conftest.entry(title="<b>T</b>", licence="<img src=x onerror=alert(1)>", url="https://x.org/ <script>")
    table = pl.DataFrame({"step": ["all"], "interactions": [1]})
    steps = table.with_columns(
        users=1, items=1, interactions_published=None, users_published=None, items_published=None
    )
    items = pl.DataFrame({"text": ["a"], "title": ["a"], "first_seen": [1]})
    facts = {
        "raw": {"<u>.inter": "00"},
        "drops": {"lines of user '</td><script>alert(2)</script>'": 2},
        "notes": ["/data/x.inter: id '<script>alert(3)</script>\x1b[2J' stands twice", "no colon <i>"],
    }
    text = card("toy", entry, steps, steps, facts, items, [])
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert not re.search(r"<(script|img|b|u|i)\b", text + page) and "\x1b" not in text
    assert "&lt;script&gt;alert(3)&lt;/script&gt;" in page and "- x.inter: id" in text
    url = "https://grouplens.org/datasets/movielens/100k/"
    assert f" <{url}>" in card("toy", conftest.entry(url=url), steps, steps, facts, items, [])


def test_a_model_card_quotes_names_as_names():
    """People copy its code, and hubs show its text."""
    recipe = load(read_yaml(ROOT / "config/smoke.yaml"), ROOT).recipes["cl"]
    state = {"curve": [{"batch": 0, "val_ndcg": 0.1}], "best_step": 0}
    base = 'x")\nimport os; os.system("id")\n```\n<script>alert(1)</script>'
    for role in ("encoder", "decoder"):
        text = model_card(base, "cl", "<b>data</b>", "<i>", recipe, state, 0, role, 9)
        body = text.split("---", 2)[2]
        assert len(re.findall("^```", body, re.M)) == 4 and "\nimport os" not in body
        shown = MarkdownIt("commonmark").enable("table").render(body)
        assert not re.search(r"<(script|b|i)>", shown)


def test_limits_drop_or_only_count(folder, tmp_path):
    """``truncate`` keeps all users and has the same counts."""
    counters = {
        "item_tokens_of": lambda texts: [len(text.split()) for text in texts],
        "prompts_of": lambda histories: [" ".join(item["review"] for item in history) for history in histories],
        "prompt_tokens_of": lambda texts: [len(text.split()) for text in texts],
    }
    limits = TokenLimits(**counters, item_limit=150, prompt_limit=500)
    models = {"encoder": "gemma-2b-it", "decoder": "mxbai-embed-large-v1"}
    done = {}
    for over in ("drop", "truncate"):
        settings = amazon(folder, protocol={"name": "paper", "limits": {**models, "over": over}})
        scratch = tmp_path / over
        scratch.mkdir()
        done[over] = protocols.prepare(readers.read(settings, "x", scratch), settings, "x", limits)
    counts = [{k: v for k, v in d.facts["drops"].items() if "limit" in k} for d in done.values()]
    assert counts[0] == counts[1] and all(counts[0].values())
    steps = {
        over: {step["step"]: step["users"] for step in d.facts["funnel"] if "users" in step} for over, d in done.items()
    }
    assert steps["truncate"]["limits"] == steps["truncate"]["core"] > steps["drop"]["limits"]
