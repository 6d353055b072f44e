"""Specs and GPUs that a local run passes to its jobs, from the graph of jobs, without running any."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from langptune import gpus
from langptune.provenance import code_hash
from langptune.stage import StageSpec
from tests.conftest import ROOT, jobs_of

pytestmark = pytest.mark.workflow
PINNED = Path(__file__).with_name("specs.json")
"""Config -> rule -> number of jobs, and a digest of their wildcards, files and specs. After a change of the workflow
that is meant to change them, write the file again: LANGPTUNE_PIN=1 pytest tests/workflow/test_specs.py."""
LISTED = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.enums import Quietness
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    workflow = api.workflow(
        resource_settings=ResourceSettings(cores=8),
        config_settings=ConfigSettings(configfiles=[Path(sys.argv[1])]),
        snakefile=Path("Snakefile"),
    )
    targets = {"all", "partial", "interpretability", "survey"}
    workflow.dag(DAGSettings(targets=targets, forceall=True)).printrulegraph()
    with open(sys.argv[2], "w") as listed:
        for job in workflow._workflow.dag.jobs:
            if not job.rule.shellcmd:
                continue
            params = dict(job.params.items())
            if not params["spec"].startswith("{"):
                params["spec"] = Path(params["spec"]).read_text()
            facts = {
                "rule": job.rule.name,
                "command": job.rule.shellcmd,
                "wildcards": dict(job.wildcards.items()),
                "files": [*map(str, job.input), *map(str, job.output), *map(str, job.log), str(job.benchmark)],
                "threads": job.threads,
                "spec": json.loads(params["spec"]),
                "settings": params["settings"],
                "code": params["code"],
            }
            print(json.dumps(facts), file=listed)
"""
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
    facts = {"gpus": workflow.global_resources["gpu"].value, "jobs": jobs, "run": os.environ["LANGPTUNE_RUN"]}
    facts["ranked"] = ranked
    fits = [job for job in workflow.dag.jobs if job.rule.name == "fit_baseline"]
    facts["baselines"] = {job.wildcards.method: job.resources.get("gpu") for job in fits}
    Path(sys.argv[2]).write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("asked")
    config = {
        "datasets": ["ml-100k-small"],
        "encoders": ["smollm2-135m"],
        "decoders": ["minilm-l6"],
        "methods": [
            *("pop", "sasrec", "langptune-0", "shuffled-profiles", "history", "mean-langptune"),
            "ease-plus-langptune",
        ],
        "overrides": {
            "langptune-0": {"history_items": 7},
            "mean-langptune": {"of": "history"},
            "ease-plus-langptune": {"of": ["nmf", "best-of-8"]},
        },
        "results": "results/none",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    env = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "LANGPTUNE_RUN")}
    command = [sys.executable, "-c", ASKED, str(folder / "config.yaml"), str(folder / "facts.json")]
    done = subprocess.run(command, cwd=ROOT, env=env | {gpus.COUNT: "2"}, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / "facts.json").read_text())


def test_a_local_run_starts_no_more_jobs_than_there_are_gpus(asked):
    """`snakemake --cores all` limits jobs by these numbers: GPUs of the machine, of a training job, of a table job."""
    given = {rule: count for rule, (count, _) in asked["jobs"].items()}
    assert asked["gpus"] == 2
    assert given["write_profiles"] == given["embed_items"] == 1
    assert asked["baselines"] == {"pop": 0, "sasrec": 1}, "one rule, but each baseline requests the GPUs that it needs"
    assert given["compare"] == given["prepare_data"] == 0


def test_a_control_is_ranked_as_its_method_with_one_thing_changed(asked):
    """The prompt, decoder and vectors are the method's. Only the kind of change and its seed differ."""
    own, shuffled = (asked["ranked"][name] for name in ("langptune-0", "shuffled-profiles"))
    assert shuffled.pop("change") == "shuffled" and shuffled.pop("seed") == 0
    assert own["history_items"] == 7
    assert {**own, "ranks_out": ""} == {**shuffled, "ranks_out": ""}
    history, mean = (asked["ranked"][name] for name in ("history", "mean-langptune"))
    assert mean.pop("change") == "mean-vector" and "seed" not in mean
    assert {**history, "ranks_out": ""} == {**mean, "ranks_out": ""}


def test_a_fusion_reads_the_scores_of_its_methods(asked):
    """It reads scores of both splits. Profiles of validation sessions are drawn like those of test sessions."""
    rules = {"fit_fused_baseline": "fit_baseline", "rank_fused_texts": "rank_texts", "fuse": "fuse"}
    first, second, fused = (
        spec_of(script).model_validate_json(asked["jobs"][rule][1]) for rule, script in rules.items()
    )
    for split in ("scores", "val_scores"):
        outputs = [getattr(part, f"{split}_out") for part in (first, second)]
        assert getattr(fused, f"{split}_in") == outputs
        assert outputs[0].endswith(f"/nmf/NMF/seed0/{split}.parquet")
    assert second.profiles_in.replace("/test-t1", "/val-t1") == second.val_profiles_in
    assert first.training_in == second.training_in == fused.training_in and fused.parts_in is None
    assert asked["jobs"]["fuse"][0] == 0 and asked["jobs"]["rank_fused_texts"][0] == 1, "GPUs"


def test_jobs_know_their_run(asked):
    assert len(asked["run"]) == 32


def test_a_decoder_on_histories_is_trained_once_for_all_that_begin_with_it(tmp_path):
    """A text method and profile methods of two encoders with different prompts share one job per seed."""
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
    # All methods that rank by that decoder share one weight.
    assert jobs["choose_popularity"] == 2 and jobs["train_encoder"] == 2 * 2


@pytest.fixture(scope="module", params=["smoke", "config", pytest.param("paper", marks=pytest.mark.slow)])
def listed(request, tmp_path_factory) -> tuple[str, list[dict]]:
    """A shipped config and all of its jobs."""
    file = tmp_path_factory.mktemp("listed") / "jobs"
    command = [sys.executable, "-c", LISTED, f"config/{request.param}.yaml", str(file)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return request.param, [json.loads(line) for line in file.read_text().splitlines()]


def test_jobs_of_shipped_configs_are_as_pinned(listed):
    """Paths, wildcards and specs are compared; a null counts as a missing field."""
    name, jobs = listed
    found: dict[str, list] = {}
    for job in jobs:
        spec = {key: value for key, value in job["spec"].items() if value is not None}
        facts = [job["wildcards"], sorted(job["files"]), job["threads"], spec]
        found.setdefault(job["rule"], []).append(json.dumps(facts, sort_keys=True))
    digests = {rule: [len(all_of), digest(*sorted(all_of))] for rule, all_of in sorted(found.items())}
    pinned = json.loads(PINNED.read_text())
    if "LANGPTUNE_PIN" in os.environ:
        pinned[name] = digests
        PINNED.write_text(json.dumps(pinned, indent=1, sort_keys=True) + "\n")
    assert digests == pinned[name]


def digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


@cache
def spec_of(script: str) -> type[StageSpec]:
    """The spec that a script takes."""
    found = importlib.util.spec_from_file_location(f"script_{script}", ROOT / "scripts" / f"{script}.py")
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)  # where pydantic looks up types
    found.loader.exec_module(module)
    return getattr(module, re.search(r"\brun\((\w+),", Path(module.__file__).read_text())[1])


def test_every_script_takes_the_spec_of_its_jobs(listed):
    """The script also reaches exactly the modules that the rule counts: manifest and rule have the same hash."""
    hashes: dict[tuple, str] = {}
    for job in listed[1]:
        script = re.search(r"scripts/(\w+)\.py\" --spec", job["command"])[1]
        spec = spec_of(script).model_validate(job["spec"])
        key = (script, spec.unreached(), spec.loads())
        if key not in hashes:
            hashes[key] = code_hash(ROOT / "scripts" / f"{script}.py", *key[1:])
        assert job["code"] == hashes[key], job["rule"]


def test_settings_are_those_of_the_spec(listed):
    """Two jobs of a rule whose specs differ in more than files differ in ``settings``, which Snakemake compares."""
    neutral = ("threads", "batch_size", "cache", "max_usd")
    kinds: dict[tuple[str, str], set[str]] = {}
    for job in listed[1]:
        own = {
            key: value
            for key, value in job["spec"].items()
            if not key.endswith(("_in", "_out")) and key not in neutral and value is not None
        }
        text = json.dumps(own, sort_keys=True)
        kinds.setdefault((job["rule"], job["settings"]), set()).add(text)
    assert not [rule for (rule, _), texts in kinds.items() if len(texts) > 1]
