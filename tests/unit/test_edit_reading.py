"""How edited profiles are read: the formula, and what a config must have."""

from __future__ import annotations

import numpy as np
import pytest

from langptune.config.load import load
from langptune.config.workflow import Run
from langptune.errors import UserError
from langptune.ranking.scoring import of_edited
from langptune.workflow.job import Job
from langptune.workflow.project import Project
from tests.conftest import ROOT
from tests.unit.test_config import MODELS, base


def test_an_unedited_text_keeps_its_similarities_and_an_edit_adds_both_changes():
    original, before, after, start, end = np.random.default_rng(0).normal(size=(5, 2, 7)).astype(np.float32)
    assert np.array_equal(of_edited(original, (before, before), (start, start), 3.0), original)
    assert np.array_equal(of_edited(original, (before, after)), original + (after - before))
    found = of_edited(original, (before, after), (start, end), 0.5)
    assert np.allclose(found, original + after - before + 0.5 * end - 0.5 * start, atol=1e-6)


def configured(**edits) -> dict:
    names = ["langptune-0", "langptune", "langptune-editable", "langptune-text"]
    return base() | {
        "methods": names,
        "comparison": {"reference": "langptune-0"},
        "overrides": {"langptune": {"edits": edits}},
    }


def job(project: Project, method: str) -> Job:
    encoder, decoder = MODELS.split("+")
    names = {"dataset": "ml-100k", "method": method, "encoder": encoder, "decoder": decoder, "seed": "1"}
    return Job(project, names)


def test_reading_edits_changes_neither_training_nor_ranking():
    plain = Project(load(configured(), ROOT), ROOT)
    edited = Project(load(configured(untrained=1.0, denials=0.5), ROOT), ROOT)
    phases = [project.workflow.phase_of("ml-100k", "langptune", MODELS) for project in (plain, edited)]
    assert phases[0] == phases[1] == edited.workflow.phase_of("ml-100k", "langptune-editable", MODELS)
    assert job(plain, "langptune").edit_reading() == {}
    for name in ("langptune", "langptune-editable", "langptune-text"):
        found = job(edited, name)
        assert found.edit_reading() == {"untrained_edits": 1.0, "edited_denials": 0.5, "taste_field": "genres"}
        assert found.reading() == {} and found.untrained_folder == "results/models/minilm-l6" != found.decoder_folder
        assert found.untrained_vectors.endswith("ml-100k/data/vectors/minilm-l6.safetensors") != found.vectors
    assert job(edited, "langptune-0").untrained_folder is None
    run = Run("ml-100k", "langptune", MODELS, 1)
    assert plain.paths.untrained(run) is None and edited.paths.run_denials(run) == 0
    # Denials of edits alone need no second decoder; 0 reads edits whole.
    alone = Project(load(configured(denials=0), ROOT), ROOT)
    assert job(alone, "langptune").edit_reading() == {"edited_denials": 0}
    assert job(alone, "langptune").untrained_folder is None


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"langptune-0": {"edits": {"untrained": 1}}}, "method 'langptune-0': edits: untrained is 1, but no phase"),
        ({"langptune": {"edits": {"untrained": -1}}}, "untrained"),
        ({"langptune": {"edits": {"untraned": 1}}}, "untraned"),
    ],
)
def test_what_cannot_be_read(overrides, line):
    with pytest.raises(UserError, match=line):
        load(configured() | {"overrides": overrides}, ROOT)
