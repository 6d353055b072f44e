"""From a config to jobs, without Snakemake: entries, files, resources, and the parts of rules."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from langptune.config.base import read_yaml, validate
from langptune.config.cluster import Cluster
from langptune.errors import UserError
from langptune.launch import Shape
from langptune.workflow import comparison, driver, load, settings, stages, targets
from langptune.workflow.bind import Binding
from langptune.workflow.job import Job
from langptune.workflow.needs import Needs
from langptune.workflow.project import Project
from langptune.workflow.resources import demand, resources
from tests.conftest import ROOT

STAGES = sorted(path for path in (ROOT / "scripts").glob("*.py") if "\ndef needs(" in path.read_text())


@pytest.fixture(scope="module")
def project() -> Project:
    return load.load(read_yaml(ROOT / "config/smoke.yaml"), ROOT, "config/smoke.yaml")


@pytest.fixture(scope="module")
def binding(project) -> Binding:
    return Binding(project, load.shapes(project), None, local_gpus=True)


def trained(project: Project, kind: str) -> Job:
    """A job that trains a phase by one kind of recipe."""
    phase = next(one for one in project.phases.values() if one.chain and one.recipe.kind == kind and one.prompt)
    names = {"dataset": "ml-100k-small", "models": "smollm2-135m+minilm-l6", "seed": "1", "phase": phase.id}
    return Job(project, names)


class Named(dict):
    """Wildcards, or files of a rule, as Snakemake passes them: iteration gives the values."""

    def __iter__(self):
        return iter(self.values())

    def __getattr__(self, name):
        return self[name]


def test_a_phase_starts_from_the_one_before_it(project):
    job = trained(project, "reinforcement")
    folder = f"results/smoke/ml-100k-small/phases/{job.models}/seed1"
    assert job.phase.id.startswith("cl+rlso-") and job.before.phase.id.startswith("cl-")
    assert job.decoder_folder == job.before.decoder_folder == f"{folder}/{job.before.phase.id}/decoder"
    assert job.adapter == f"{folder}/{job.phase.id}/encoder" and job.before.adapter is None
    assert job.encoder_folder == "results/models/smollm2-135m"
    assert job.popularity == f"{folder}/{job.before.phase.id}/popularity.json" and job.number_of_weight() == {}


def test_a_control_has_the_files_of_its_method(project):
    models = {"encoder": "smollm2-135m", "decoder": "minilm-l6"}
    own, control = (
        Job(project, {"dataset": "ml-100k-small", "method": name, "seed": "1", **models})
        for name in ("langptune-0", "shuffled-profiles")
    )
    assert (own.change(), control.change()) == ({}, {"change": "shuffled", "seed": 1})
    assert own.profiles == control.profiles and own.vectors == control.vectors and own.source is control.source
    with pytest.raises(KeyError, match="phase"):
        own.card("minilm-l6")


def test_needs_grow_with_the_model_and_the_processes(project):
    encoder = project.models["smollm2-135m"]
    needs = Needs(1000, 10, gpus=1, model=encoder, per_million=2, per_billion=100, launch="two.yaml")
    millions = encoder.parameters / 1e6
    wanted = demand(needs, {"two.yaml": Shape(machines=2, processes=4, cpu=False)})
    assert (wanted.gpus, wanted.machines, wanted.weights) == (4, 2, encoder.parameters)
    assert wanted.memory == pytest.approx(2 * (1000 + 2 * millions))
    assert wanted.minutes == pytest.approx(10 + millions / 10)
    assert demand(needs, {"two.yaml": Shape(machines=1, processes=4, cpu=True)}).gpus == 0
    remote = encoder.model_copy(update={"source": encoder.source.model_copy(update={"endpoint": "http://a"})})
    assert demand(Needs(1000, 10, gpus=1, model=remote), {}).gpus == 0


def test_a_local_run_asks_for_memory_and_a_cluster_for_what_its_site_names(tmp_path):
    def needs(w):
        return Needs(memory=100.5, minutes=10, gpus=1)

    assert set(resources(needs, {}, None, local_gpus=False)) == {"mem_mb"}
    local = resources(needs, {}, None, local_gpus=True)
    files = Named(sessions_in=str(tmp_path / "sessions.parquet"))
    assert local["gpu"](None) == 1
    assert local["mem_mb"](None, Named()) == local["mem_mb"](None, files) == 101, "no sessions, or not made yet"
    (tmp_path / "sessions.parquet").write_bytes(b"0" * 2_000_000)
    assert local["mem_mb"](None, files) == math.ceil(100.5 + 2 * 80), "as much as the default says for each MB"
    site = validate(Cluster, {"account": "lab", "warn_seconds": 0}, "cluster.yaml")
    asked = {key: value(None, files, 2) for key, value in resources(needs, {}, site, local_gpus=False).items()}
    assert asked["mem_mb"] > 1.5 * 260
    assert asked["slurm_account"] == "lab" and asked["runtime"] == 20 and asked["gpu"] == 1 and asked["qos"] is None


def test_a_rule_fills_the_spec_from_its_files(project, binding):
    stage = binding.stage("train_encoder", by="{dataset}-{phase}")
    job = trained(project, "reinforcement")
    names, files = Named(job.wildcards), Named(items_in="items", start_in=[], other="left out")
    spec = json.loads(stage.params["spec"](names, files, Named(encoder_out="out", curve_out="curve")))
    assert (spec["items_in"], spec["start_in"], spec["encoder_out"], spec["seed"]) == ("items", None, "out", 1)
    assert "other" not in spec and spec["recipe"]["kind"] == "reinforcement"
    assert stage.threads(names) == 1 and stage.resources["gpu"](names) == 1
    assert stage.log == "results/smoke/logs/train_encoder/{dataset}-{phase}.log"
    assert stage.launcher(names) == "python" and len(stage.params["code"](names)) == 16
    assert binding.job(names) is binding.job(Named(job.wildcards))


def test_what_only_rounds_is_no_setting(project):
    fields = {"threads": 1, "batch_size": 8, "seed": 0, "recipe": {"title": "a", "learning_rate": 0.1}}
    same = {**fields, "threads": 2, "batch_size": 4, "recipe": {"title": "b", "learning_rate": 0.1}}
    assert settings.digest(fields) == settings.digest(same) != settings.digest({**fields, "seed": 1})
    assert settings.digest(fields) != settings.digest({**fields, "recipe": {"learning_rate": 0.2}})
    encoder = project.used("smollm2-135m")
    retitled = encoder.model_copy(update={"title": "another"})
    assert encoder.title == "" and settings.digest({"encoder": encoder}) != settings.digest({"encoder": retitled})


def test_a_spec_that_no_command_line_takes_goes_into_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = settings.as_text({"facts": ["</script>" * 10_000]})
    assert "<" not in long and settings.fitting("{}") == "{}"
    assert Path(settings.fitting(long)).read_text() == long


@pytest.mark.parametrize("script", STAGES, ids=lambda path: path.stem)
def test_every_stage_declares_spec_and_needs(script):
    declared = stages.stage(script)
    assert callable(declared.spec) and callable(declared.needs) and not hasattr(declared, "Spec")


def test_a_stage_without_needs_is_one_line(tmp_path):
    (tmp_path / "half.py").write_text("def spec(project, job):\n    return {}\n")
    with pytest.raises(UserError, match=r"half.py: a stage defines needs\(project, job\)"):
        stages.stage(tmp_path / "half.py")


def test_a_declaration_that_another_job_reads_has_a_digest(tmp_path):
    amount = "UNIT = 'a'\ndef amount(spec, sizes): return UNIT\n"
    (tmp_path / "one.py").write_text(amount + "def needs(project, job): return 1\n")
    before = stages.digest(tmp_path, "amount")
    (tmp_path / "one.py").write_text("# A comment.\n" + amount + "def needs(project, job): return 2\n")
    (tmp_path / "two.py").write_text("def needs(project, job): return 3\n")
    assert stages.digest(tmp_path, "amount") == before
    (tmp_path / "one.py").write_text(amount.replace("'a'", "'b'"))
    assert stages.digest(tmp_path, "amount") != before


def test_declarations_import_no_more_than_they_need():
    """They do not import the libraries that jobs compute with, although scripts import these at their top."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom langptune.workflow.stages import declared\n"
        "for script in sys.argv[1:]: declared(Path(script))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, *map(str, STAGES)]
    loaded = subprocess.run(command, env=env, text=True, capture_output=True, check=True).stdout.split()
    assert "pydantic" in loaded and not {"polars", "matplotlib", "scipy", "sklearn", "recbole"} & set(loaded)


def test_targets_are_files_of_every_dataset(project):
    tables, figures = targets.tables(project), targets.final_figures(project)
    assert len(tables) == len(targets.TABLES) + 4 and not set(tables) & set(figures)
    folder = "results/smoke/ml-100k-small"
    assert {f"{folder}/comparison/profiles.html", f"{folder}/studies/models.pdf", f"{folder}/data/card.md"} <= {
        *figures
    }
    assert targets.results(project, "ml-100k-small") == [*tables, *figures]
    last = {*targets.costs(project), *targets.checklists(project)}
    assert f"{folder}/comparison/checklist.md" in last and not last & {*tables, *figures}
    assert set(targets.untrained(project)) < set(targets.ranks(project))
    assert len(targets.curves(project)) == len(comparison.phase_curves(project, "ml-100k-small"))


def test_interpretability_needs_a_reference_that_is_run():
    config = {"datasets": ["ml-100k-small"], "methods": ["pop"]}
    with pytest.raises(UserError, match=r"'langptune-0' is not run here; name one of \(this run has no profiles"):
        targets.interpretations(load.load(config, ROOT))


def test_the_shell_finds_this_checkout_wherever_it_lies():
    line = driver.shell_prefix(Path("/a {b} 'c'"), deployed=False).format()
    shown = subprocess.run(
        ["sh", "-c", line + 'printf %s "$LANGPTUNE|$HF_HUB_OFFLINE"'], text=True, capture_output=True
    )
    assert shown.stdout == "/a {b} 'c'|1"
    assert "PATH=" not in driver.shell_prefix(Path("/a"), deployed=True).replace("PYTHONPATH=", "").replace(
        "SAFEPATH=", ""
    )


def test_environments_have_no_braces_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv(driver.IMAGE, raising=False)
    braces = tmp_path / "{x}"
    assert driver.environments(braces, deployed=False, in_containers=False) == (None, None)
    with pytest.raises(UserError, match="takes braces for wildcards"):
        driver.environments(braces, deployed=True, in_containers=False)
    with pytest.raises(UserError, match="no such image"):
        driver.environments(tmp_path, deployed=True, in_containers=True)


@pytest.mark.parametrize("content", [None, b"def (", b"# \xe9", b"import nosuchpackage\ndef spec(): nosuchpackage"])
def test_a_stage_that_cannot_be_read_is_one_line(content, tmp_path):
    script = tmp_path / "broken.py"
    if content is not None:
        script.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.py: "):
        stages.stage(script)
