"""Transfer: a method whose profiles are written by an encoder that was trained on another dataset."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from langptune.comparison.grid import ContrastEntry
from langptune.config.base import read_yaml
from langptune.config.checks import check
from langptune.config.layout import Layout
from langptune.config.load import load
from langptune.config.phases import VALIDATION
from langptune.config.settings import Contrast
from langptune.config.workflow import Run, Workflow
from langptune.cost import SCHEMA, remarks
from langptune.errors import UserError
from langptune.explorer.finished import Choice, Finished
from langptune.survey.runs import surveyed
from langptune.workflow import comparison, stages, targets
from langptune.workflow.job import Job
from langptune.workflow.load import load as load_project
from langptune.workflow.project import Project
from tests.conftest import ROOT

MODELS = "smollm2-135m+minilm-l6"
FROM = "langptune-from-ml-100k"
A, B = "ml-100k", "ml-small-2016"


def config() -> dict:
    """A run with one transferred method, from dataset A to B."""
    return {
        "datasets": [A, B],
        "encoders": ["smollm2-135m"],
        "decoders": ["minilm-l6"],
        "methods": ["langptune-0", "langptune-cl", "langptune", FROM],
        "seeds": [0, 1],
    }


@pytest.fixture(scope="module")
def project() -> Project:
    return load_project(read_yaml(ROOT / "config/two-datasets.yaml"), ROOT, "config/two-datasets.yaml")


@pytest.fixture(scope="module")
def plain() -> Workflow:
    return load(config(), ROOT)


def changed(workflow: Workflow, entries: dict[str, dict], **keys) -> Workflow:
    """The same workflow with changed keys of methods and of the config; checked."""
    methods = {
        name: type(workflow.methods[name]).model_validate({**workflow.methods[name].model_dump(), **change})
        for name, change in entries.items()
    }
    out = replace(workflow, methods=workflow.methods | methods, config=workflow.config.model_copy(update=keys))
    check(out, "config")
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_from": {"method": "langptune", "dataset": "ml-100"}},
            "encoder_from: dataset: 'ml-100' is not among this run's datasets; did you mean 'ml-100k'?",
        ),
        (
            {"encoder_from": {"method": "pop", "dataset": A}},
            "encoder_from: method: 'pop' is not a profile method that trains an encoder",
        ),
        (
            {"encoder_from": {"method": "langptun", "dataset": A}},
            "encoder_from: method: 'langptun' is not a profile method that trains an encoder; did you mean 'langptune",
        ),
        ({"encoder_from": {"method": "langptune-0", "dataset": A}}, "method: 'langptune-0' is not a profile method"),
        ({"encoder_from": {"method": FROM, "dataset": A}}, f"method: '{FROM}' is not a profile method that trains"),
        (
            {"encoder_from": {"method": "langptune-cl", "dataset": A}},
            "encoder_from: method: none of the phases of 'langptune-cl' (cl-history) trains an encoder",
        ),
        (
            {"phases": ["cl-history", "rlso"]},
            "phases: 'rlso' trains the encoder, but encoder_from takes that of 'langptune' on 'ml-100k'",
        ),
        ({"encoder_from": {"method": "langptune-paper", "dataset": A}}, "has no recipe for encoder 'smollm2-135m'"),
        ({"max_tokens": 40}, "max_tokens is 40, but 512 in 'langptune', which trains its encoder; make them equal"),
        ({"history_items": 3}, "history_items is 3, but 10 in 'langptune'"),
        ({"prompt": "movies-sentence"}, "prompt is movies-sentence, but null in 'langptune'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_any_job(plain, change, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        changed(plain, {FROM: change})
    assert str(caught.value).startswith("config: method '") and "\n" not in str(caught.value)


def test_one_dataset_is_refused(plain):
    with pytest.raises(UserError, match="'ml-100k' is this run's only dataset, and the method has no run on it"):
        changed(plain, {}, datasets=[A])
    with pytest.raises(UserError, match="'ml-100k' is not among this run's datasets; valid: ml-small-2016; name"):
        changed(plain, {}, datasets=[B])


def test_what_is_compared_with_must_run_everywhere(plain):
    comparison, interpretability = plain.config.comparison, plain.config.interpretability
    with pytest.raises(UserError, match=f"comparison.reference: '{FROM}' has no run on '{A}'"):
        changed(plain, {}, comparison=comparison.model_copy(update={"reference": FROM}))
    with pytest.raises(UserError, match=f"interpretability.reference: '{FROM}' has no run on '{A}'"):
        changed(plain, {}, interpretability=interpretability.model_copy(update={"reference": FROM}))
    both = [FROM, "langptune-from-ml-small-2016"]
    never = comparison.model_copy(update={"contrasts": {"two": Contrast.model_validate(both)}})
    with pytest.raises(UserError, match=f"contrasts: 'two': no dataset has runs of all of {', '.join(both)}"):
        changed(plain, {}, comparison=never, methods=[*plain.config.methods, both[1]])


def test_it_has_no_run_on_the_dataset_of_its_encoder(plain):
    control = {"shuffled-profiles": {"of": FROM}}
    workflow = changed(plain, control, methods=[*plain.config.methods, *control])
    runs = {dataset: {(run.method, run.seed) for run in workflow.runs(dataset)} for dataset in (A, B)}
    # It has a run for each seed, because the encoder is trained for each seed.
    mine = {(name, seed) for name in (FROM, "shuffled-profiles") for seed in (0, 1)}
    assert runs[B] - runs[A] == mine and not runs[A] & mine
    assert {run.dataset for run in surveyed(workflow) if run.method == FROM} == {B}
    assert {run.dataset for run in surveyed(workflow)} == {A, B}
    # Its control has no such run either, and has the same profiles.
    own, shuffled = (Run(B, name, MODELS, 1) for name in (FROM, "shuffled-profiles"))
    assert Layout(workflow).run_profiles(own) == Layout(workflow).run_profiles(shuffled)


def test_the_encoder_is_the_other_datasets_and_all_else_is_its_own(plain):
    layout = Layout(plain)
    moved, theirs = Run(B, FROM, MODELS, 1), Run(A, "langptune", MODELS, 1)
    adapters = {run: layout.adapter_of(run.dataset, MODELS, 1, layout.run_phase(run)) for run in (moved, theirs)}
    (adapter,) = adapters[moved]
    assert adapters[moved] == adapters[theirs] and re.fullmatch(
        r"results/ml-100k/phases/smollm2-135m\+minilm-l6/seed1/cl-history\+rlso-\w{8}/encoder", adapter
    )
    cl, own = Run(B, "langptune-cl", MODELS, 1), Run(B, "langptune", MODELS, 1)
    for path in (layout.run_decoder, layout.run_vectors, layout.run_weight):
        assert path(moved) == path(cl) and path(moved).startswith(f"results/{B}/phases/minilm-l6/seed1/cl-history-")
    profiles = [layout.run_profiles(run) for run in (moved, cl, own, theirs)]
    assert len(set(profiles)) == 4
    assert re.fullmatch(
        r"results/ml-small-2016/phases/smollm2-135m\+minilm-l6/seed1/from-ml-100k-\w{8}/profiles/test.parquet",
        profiles[0],
    )


def test_names_follow_from_what_trained_the_encoder(plain):
    def profiles(workflow: Workflow) -> str:
        return Layout(workflow).run_profiles(Run(B, FROM, MODELS, 0))

    def taken(method: str) -> str:
        return profiles(changed(plain, {FROM: {"encoder_from": {"method": method, "dataset": A}}}))

    first = profiles(plain)
    shorter = plain.recipes | {"rlso": plain.recipes["rlso"].model_copy(update={"batches": 3})}
    assert profiles(replace(plain, recipes=shorter)) != first != taken("langptune-rlso")
    assert taken("langptune") == first
    # Phases of the source after its encoder do not affect the profiles; neither does the method's own decoder.
    assert taken("langptune-mixed") == first == profiles(changed(plain, {FROM: {"phases": []}}))
    assert profiles(changed(plain, {}, methods=["langptune-0", FROM])) == first, (
        "its source may be no method of the run"
    )


def test_a_decoder_that_is_trained_on_profiles_reads_those_of_the_transferred_encoder(plain):
    workflow = changed(plain, {FROM: {"phases": ["cl"]}})
    layout, phase = Layout(workflow), workflow.phase_of(B, FROM, MODELS)
    start = f"results/{B}/phases/{MODELS}/seed0/{phase.parent.id}"
    assert phase.parent.id.startswith("from-ml-100k-") and phase.id.startswith("from-ml-100k+cl-")
    for draw in (*phase.draws(), VALIDATION):
        assert layout.profiles_of(B, MODELS, 0, phase, draw) == f"{start}/profiles/{draw.name}.parquet"
    assert layout.run_decoder(Run(B, FROM, MODELS, 0)) == f"results/{B}/phases/{MODELS}/seed0/{phase.id}/decoder"
    assert phase.id != plain.phase_of(B, "langptune-cl-profiles", MODELS).id


def test_jobs_of_the_shipped_config_write_with_the_other_datasets_adapter(plain, project):
    adapters = {}
    for run in project.runs():
        if run.method.startswith("langptune-from-"):
            folder = Path(project.paths.run_profiles(run)).parents[1]
            names = {"dataset": run.dataset, "models": MODELS, "seed": "0", "phase": folder.name, "draw": "test"}
            job = Job(project, names | {"shard": "1", "shards": "2"})
            assert job.written == project.paths.run_profiles(run)
            assert job.sample == f"results/{run.dataset}/data/evaluation.parquet"
            assert job.encoder_folder == "results/models/smollm2-135m"
            spec = stages.stage(ROOT / "scripts/write_profiles.py").spec(project, job)
            assert (spec["prompt"], spec["history_items"], spec["max_tokens"]) == ("movies-comparable", 5, 40)
            adapters[run.dataset] = job.adapter
    own = {
        run.dataset: project.paths.adapter_of(run.dataset, MODELS, 0, project.paths.run_phase(run))[0]
        for run in project.runs()
        if run.method == "langptune"
    }
    assert adapters == {A: own[B], B: own[A]} and own[A].startswith(f"results/{A}/")
    # The phases that train it are among those of the run, even if the source method is not.
    alone = Project(changed(plain, {}, methods=["langptune-0", FROM]), ROOT)
    assert [name for name in alone.trained("encoder") if name.startswith("cl-history+rlso-")]


def test_contrasts_of_a_method_without_runs_are_left_out_with_a_note(plain, project):
    compare = stages.stage(ROOT / "scripts/compare.py").spec
    found = {dataset: compare(project, Job(project, {"dataset": dataset})) for dataset in (A, B)}
    names = {dataset: [one["name"] for one in spec["contrasts"]] for dataset, spec in found.items()}
    moved = {A: ["transfer-2016", "transfer-2016-own"], B: ["transfer", "transfer-own"]}
    shared = list(project.config.comparison.contrasts)[:-4]
    assert names == {dataset: [*shared, *moved[dataset]] for dataset in (A, B)}
    for here, other in ((A, B), (B, A)):
        (note,) = [fact for fact in found[here]["facts"] if fact.startswith("Contrasts left out")]
        assert note.endswith(f"no run on it: {', '.join(moved[other])}.")
        methods = {entry["method"] for entry in found[here]["runs"]}
        for contrast in map(ContrastEntry.model_validate, found[here]["contrasts"]):
            assert {contrast.of, contrast.against, *contrast.beyond} <= methods
    without = Project(plain, ROOT)
    assert not [f for f in compare(without, Job(without, {"dataset": A}))["facts"] if f.startswith("Contrasts")]


def test_a_dataset_on_which_nothing_of_a_study_runs_has_no_such_study():
    study = {"title": "Share", "key": "train_fraction", "values": [0.5, 1.0], "methods": [FROM]}
    made = targets.studies(load_project(config() | {"studies": {"share": study}}, ROOT))
    assert made == [f"results/{B}/studies/share.{end}" for end in ("csv", "png", "pdf")]


def test_other_prompts_are_named_in_the_row(plain):
    there = plain.datasets | {B: plain.datasets[B].model_copy(update={"prompt": "movies-sentence"})}
    both = (Project(one, ROOT) for one in (plain, replace(plain, datasets=there)))
    equal, other = (comparison.run_entry(one, Run(B, FROM, MODELS, 0))["note"] for one in both)
    assert "prompt" not in equal
    assert other == f"{equal}; its encoder was trained with prompt 'movies' and writes here with 'movies-sentence'"


def test_tokens_of_its_encoder_are_those_of_the_training_elsewhere(project):
    own, moved = Run(A, "langptune", MODELS, 0), Run(B, FROM, MODELS, 0)
    assert comparison.encoder_curves(project, moved) == comparison.encoder_curves(project, own) != []


def test_the_cost_page_names_training_on_another_dataset_as_shared():
    def shared(*rules: str) -> list[str]:
        rows = [{"rule": rule, "shared": True, "jobs": 1, "missing": 0, "resumed": 0} for rule in rules]
        lines = remarks(pl.DataFrame(rows, schema=SCHEMA), ["here (cpu)"])
        return [line for line in lines if line.startswith("Shared: ")]

    assert shared("prefetch_model", "prefetch_data") == [
        "Shared: models and raw data, which several datasets may use; they are not in the total."
    ]
    (moved,) = shared("prefetch_model", "train_encoder")
    assert "the training of encoders from other datasets, which several datasets may use" in moved


def test_the_explorer_names_the_dataset_of_the_encoders_training(plain):
    finished = Finished(plain, ROOT)
    writers = [
        finished.writer(Choice(Run(B, name, MODELS, 0), name, "profiles", "profiles"))
        for name in ("langptune-0", "langptune", FROM)
    ]
    encoder = plain.models["smollm2-135m"].title
    assert writers == [
        f"Written by {encoder}, untrained",
        f"Written by {encoder}, trained (cl-history+rlso)",
        f"Written by {encoder}, trained on MovieLens-100K (cl-history+rlso)",
    ]
