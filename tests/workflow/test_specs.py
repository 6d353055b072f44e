"""What a local run hands to its jobs: specs and GPUs, from the graph of jobs, without running any."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from langptune import gpus
from tests.conftest import ROOT, jobs_of

pytestmark = pytest.mark.workflow
ASKED = """
import json, os, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.enums import Quietness
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

TEXTS = ("rank_profiles", "rank_history_text")
with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    workflow = api.workflow(
        resource_settings=ResourceSettings(cores=8),
        config_settings=ConfigSettings(configfiles=[Path(sys.argv[1])]),
        snakefile=Path("Snakefile"),
    )
    workflow.dag(DAGSettings()).printrulegraph()
    workflow = workflow._workflow
    jobs = {job.rule.name: [job.resources.get("gpu"), job.params.get("spec")] for job in workflow.dag.jobs}
    ranked = {job.wildcards.method: json.loads(job.params.spec) for job in workflow.dag.jobs if job.rule.name in TEXTS}
    told = {"gpus": workflow.global_resources["gpu"].value, "jobs": jobs, "run": os.environ["LANGPTUNE_RUN"]}
    told["ranked"] = ranked
    fits = [job for job in workflow.dag.jobs if job.rule.name == "fit_baseline"]
    told["baselines"] = {job.wildcards.method: job.resources.get("gpu") for job in fits}
    Path(sys.argv[2]).write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("asked")
    config = {
        "datasets": ["ml-100k-small"],
        "encoders": ["smollm2-135m"],
        "decoders": ["minilm-l6"],
        "methods": ["pop", "sasrec", "langptune-0", "shuffled-profiles", "history", "mean-langptune"],
        "overrides": {
            "langptune-0": {"history_items": 7},
            "mean-langptune": {"of": "history"},
        },
        "results": "results/none",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    env = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "LANGPTUNE_RUN")}
    command = [sys.executable, "-c", ASKED, str(folder / "config.yaml"), str(folder / "told.json")]
    done = subprocess.run(command, cwd=ROOT, env=env | {gpus.COUNT: "2"}, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / "told.json").read_text())


def test_a_local_run_starts_no_more_jobs_than_there_are_gpus(asked):
    """What a plain `snakemake --cores all` goes by: GPUs in all, those of a training, those of a table."""
    given = {rule: count for rule, (count, _) in asked["jobs"].items()}
    assert asked["gpus"] == 2
    assert given["write_profiles"] == given["embed_items"] == 1
    assert asked["baselines"] == {"pop": 0, "sasrec": 1}, "one rule: each baseline asks for what it needs"
    assert given["compare"] == given["prepare_data"] == 0


def test_a_control_is_ranked_as_its_method_with_one_thing_changed(asked):
    """Its prompt, decoder and vectors are its method's; the text and what is changed are its own."""
    own, shuffled = (asked["ranked"][name] for name in ("langptune-0", "shuffled-profiles"))
    assert shuffled.pop("change") == "shuffled" and shuffled.pop("seed") == 0
    assert own["history_items"] == 7
    assert {**own, "ranks_out": ""} == {**shuffled, "ranks_out": ""}
    history, mean = (asked["ranked"][name] for name in ("history", "mean-langptune"))
    assert mean.pop("change") == "mean-vector" and "seed" not in mean
    assert {**history, "ranks_out": ""} == {**mean, "ranks_out": ""}


def test_jobs_know_their_run(asked):
    assert len(asked["run"]) == 32


def test_a_decoder_on_histories_is_trained_once_for_all_that_begin_with_it(tmp_path):
    """A text method, and profile methods of two encoders with prompts of their own: one job a seed."""
    config = {
        "datasets": ["ml-100k-small"],
        "encoders": ["smollm2-135m", "qwen2.5-0.5b-instruct"],
        "decoders": ["minilm-l6"],
        "methods": ["history-cl", "langptune-cl", "langptune"],
        "overrides": {
            "langptune-cl": {"phases": ["cl-history"], "max_tokens": 16, "prompt": "movies-sentence"},
            "langptune": {"phases": ["cl-history", "rlso"], "max_tokens": 32},
        },
        "seeds": [0, 1],
        "comparison": {"reference": "history-cl"},
        "results": "results/none",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--nolock", "-n", "tables", "--configfile", tmp_path / "config.yaml"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    jobs = jobs_of(done.stdout)
    assert jobs["train_decoder"] == jobs["embed_phase_items"] == 2
    # One weight for all that is ranked by that decoder.
    assert jobs["choose_popularity"] == 2 and jobs["train_encoder"] == 2 * 2
