"""The paper's grid from end to end with small replacements: config/paper.yaml on a generated Amazon category and with
tiny models of the same architectures, both in the hub's cache. Only sizes differ from the real run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest
import yaml

from langptune.models.tiny import write_hub, write_registries
from tests.amazon import write_amazon
from tests.conftest import ROOT, snakemake
from tests.unit.test_readers import METADATA, REVIEWS, hub_cache

pytestmark = pytest.mark.workflow

METHODS = [
    "langptune-0",
    "langptune-cl-paper",
    "langptune-paper",
    "history",
    "history-cl-paper",
    "pop",
    "nmf",
    "random",
]
CL = {"batches": 2, "batch_size": 8, "micro_batch": 8, "validate_every": 1, "checkpoint_every": 1}
RLSO = {"batches": 1, "sessions_per_batch": 2, "micro_batch": 2, "validate_every": 1, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder with a config derived from config/paper.yaml, and the environment to run it in."""
    folder = tmp_path_factory.mktemp("paper")
    home = write_hub(folder / "hf")
    write_amazon(folder / "raw", reviews=4000, seed=2)
    hub_cache(home, {f"raw/{name}": (folder / "raw" / name).read_bytes() for name in (REVIEWS, METADATA)})
    config = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
    config |= {
        "results": str(folder / "results"),
        "models_dir": str(folder / "models"),
        "raw_dir": str(folder / "raw-links"),
        "registries": str(write_registries(folder / "registries")),
        "datasets": ["movies-tv"],
        "methods": METHODS,
        "seeds": [0],
        "sample": {"train": 16, "val": 4, "test": 6},
        "tune": False,
        "studies": {},
        "training": {"threads": 1, "retries": 0},
        # Tiny vocabularies split a word into many tokens.
        "dataset_overrides": {
            "movies-tv": {
                "protocol": {"limits": {**LIMITS, "prompt_tokens": 7000, "item_tokens": 2000}},
                "published": {},
            }
        },
        "recipe_overrides": {
            "cl-paper": CL,
            "cl-paper-gemma": CL,
            "cl-paper-llama": CL,
            "rlso-paper-gemma": {**RLSO, "train": {"lora_rank": 4, "lora_alpha": 8}},
            "rlso-paper-llama": {**RLSO, "train": {"last_layers": 1}},
        },
    }
    for name in METHODS:
        if "max_tokens" in config["overrides"].get(name, {}):
            config["overrides"][name]["max_tokens"] = 4
        if "iterations" in config["overrides"].get(name, {}):
            config["overrides"][name]["iterations"] = 1
    config["overrides"]["langptune-paper"]["iterations"] = 1
    config["overrides"]["nmf"] = {"components": 8}
    config["comparison"]["bootstrap"] = 200
    (folder / "paper.yaml").write_text(yaml.safe_dump(config))
    return folder, {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


LIMITS = {"encoder": "gemma-2b-it", "decoder": "mxbai-embed-large-v1", "over": "drop"}


def test_the_whole_grid_resolves_without_models_or_data():
    done = snakemake("-n", "--configfile", "config/paper.yaml", "--quiet", "rules")
    assert done.returncode == 0, done.stdout[-3000:]
    count = int(re.search(r"^total +(\d+)", done.stdout, re.M)[1])
    assert 2000 < count < 3500
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.M))
    assert jobs["prepare_data"] == "2" and jobs["prefetch_model"] == "3" and jobs["prefetch_data"] == "2"


@pytest.mark.slow
def test_the_grid_runs_with_stand_ins(grid, monkeypatch):
    folder, environment = grid
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    done = snakemake("--configfile", str(folder / "paper.yaml"))
    assert done.returncode == 0, done.stdout[-6000:]
    base = folder / "results" / "movies-tv"
    table = pl.read_csv(base / "comparison" / "table_long.csv")
    assert set(table["method"]) == set(METHODS)
    assert set(table.filter(pl.col("method") == "langptune-paper")["models"]) == {
        "gemma-2b-it+mxbai-embed-large-v1",
        "llama-3-8b-instruct+mxbai-embed-large-v1",
    }
    # Each encoder was trained by the recipe published for it.
    for encoder, other in (("gemma", "llama"), ("llama", "gemma")):
        (models,) = (base / "phases").glob(f"{encoder}*+mxbai*")
        names = [path.name for path in models.glob("seed0/*")]
        assert any(f"rlso-paper-{encoder}" in name for name in names), names
        assert not any(other in name for name in names), names
    published = pl.read_csv(base / "comparison" / "table.csv")
    assert (base / "comparison" / "published.png").stat().st_size > 10_000
    assert any("published" in column for column in published.columns)
    manifest = json.loads((base / "data" / "sessions.parquet.manifest.json").read_text())
    assert manifest["notes"]["protocol"]["name"] == "paper" and manifest["notes"]["funnel"]
    sessions = pl.read_parquet(base / "data" / "sessions.parquet")
    assert sessions["history"].list.len().unique().to_list() == [4] and sessions["reviews"].null_count() == 0
    card = (base / "data" / "card.md").read_text()
    assert "second core" in card and "raw" not in card.split("\n")[0]
