"""How edited profiles are read: the formula, what a config must have, and what the explorer shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from langptune.config.load import load
from langptune.config.workflow import Run
from langptune.errors import UserError
from langptune.language.claims import Titles
from langptune.language.denials import Splitter
from langptune.ranking.edited import EditReader
from langptune.ranking.queries import Denials
from langptune.workflow.job import Job
from langptune.workflow.project import Project
from tests.conftest import ROOT
from tests.unit.test_config import MODELS, base


class Stub:
    """A decoder with three items; a text's similarities are fixed, less the weight of denials for texts that deny."""

    def __init__(self, **known: tuple[float, float, float]):
        self.known = known

    def similarities(self, texts: Sequence[str], denials: Denials | None) -> np.ndarray:
        weight = denials.weight if denials else 0.0
        rows = [np.float32(self.known[text]) - np.float32(weight * ("deny" in text)) for text in texts]
        return np.stack(rows)


TRAINED = Stub(old=(0.5, 0.25, 0.0), new=(0.25, 0.5, 0.0), deny=(0.5, 0.5, 0.5), deny2=(0.0, 0.5, 0.5))
UNTRAINED = Stub(old=(0.25, 0.0, 0.25), new=(0.0, 0.25, 1.0), deny=(0.25, 0.0, 0.25), deny2=(0.0, 0.0, 0.0))
HALF, ONE = (Denials(weight, Splitter(Titles([]))) for weight in (0.5, 1.0))


@pytest.mark.parametrize(
    ("reader", "before", "after", "expected"),
    [
        # Without a reading of their own, edits are texts like others, to the last bit.
        (EditReader(TRAINED), "old", "new", (0.25, 0.5, 0.0)),
        (EditReader(TRAINED, HALF, HALF), "deny", "deny2", (-0.5, 0.0, 0.0)),
        # old + (new - old) + 2 x (new0 - old0)
        (EditReader(TRAINED, untrained=UNTRAINED, weight=2.0), "old", "new", (0.25 - 0.5, 0.5 + 0.5, 0.0 + 1.5)),
        (EditReader(TRAINED, untrained=UNTRAINED, weight=2.0), "old", "old", (0.5, 0.25, 0.0)),
        # A denial of the edit counts with the weight of edits, by both decoders.
        (EditReader(TRAINED, None, HALF), "old", "deny", (0.0, 0.0, 0.0)),
        (EditReader(TRAINED, None, HALF, UNTRAINED, 1.0), "old", "deny", (0.0 - 0.5, 0.0 - 0.5, 0.0 - 0.5)),
        # One that was there before changes nothing.
        (EditReader(TRAINED, None, ONE), "deny", "deny2", (0.0, 0.5, 0.5)),
        (EditReader(TRAINED, None, ONE, UNTRAINED, 1.0), "deny", "deny2", (-0.25, 0.5, 0.25)),
    ],
)
def test_an_edit_adds_the_changes_that_both_decoders_see(reader, before, after, expected):
    assert reader.edited([before], [after]).tolist() == [list(expected)]
    several = reader.edited([before, "old", before], [after, "old", after])
    assert several[0].tolist() == several[2].tolist() == list(expected)
    assert several[1].tolist() == reader.similarities(["old"])[0].tolist()


def configured(**reading) -> dict:
    names = ["langptune-0", "langptune", "langptune-editable", "langptune-text", "history-cl"]
    return base() | {
        "methods": names,
        "comparison": {"reference": "langptune-0"},
        "overrides": {"langptune": {"edit_reading": reading}},
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
    # A control reads edits as its method does.
    for name in ("langptune", "langptune-editable", "langptune-text"):
        found = job(edited, name)
        assert found.edit_reading() == {"untrained_edits": 1.0, "edited_denials": 0.5}
        assert found.reading() == {} and found.untrained_folder == "results/models/minilm-l6" != found.decoder_folder
        assert found.untrained_vectors.endswith("ml-100k/data/vectors/minilm-l6.safetensors") != found.vectors
    assert job(edited, "langptune-0").untrained_folder is None
    run = Run("ml-100k", "langptune", MODELS, 1)
    assert plain.paths.untrained_decoder(run) is None and edited.paths.run_denials(run) == 0
    # Denials of edits alone need no second decoder; 0 reads edits whole.
    alone = Project(load(configured(denials=0), ROOT), ROOT)
    assert job(alone, "langptune").edit_reading() == {"edited_denials": 0}
    assert job(alone, "langptune").untrained_folder is None


def test_an_override_of_one_weight_keeps_the_other():
    config = configured() | {"overrides": {"langptune-editable": {"edit_reading": {"denials": 0.25}}}}
    reading = load(config, ROOT).methods["langptune-editable"].edit_reading
    assert (reading.untrained, reading.denials) == (1.0, 0.25)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            {"langptune-0": {"edit_reading": {"untrained": 1}}},
            "'langptune-0': edit_reading: untrained is 1, but no phase",
        ),
        (
            {"history-cl": {"edit_reading": {"untrained": 1}, "phases": []}},
            "'history-cl': edit_reading: untrained is 1",
        ),
        ({"langptune": {"edit_reading": {"untrained": -1}}}, "untrained"),
        ({"langptune": {"edit_reading": {"untraned": 1}}}, "untraned"),
    ],
)
def test_what_cannot_be_read(overrides, line):
    with pytest.raises(UserError, match=line):
        load(configured() | {"overrides": overrides}, ROOT)


def test_text_methods_may_have_an_untrained_reader_too():
    config = configured() | {"overrides": {"history-cl": {"edit_reading": {"untrained": 1}}}}
    project = Project(load(config, ROOT), ROOT)
    run = Run("ml-100k", "history-cl", "minilm-l6", 1)
    folder, vectors = project.paths.untrained_decoder(run)
    assert folder == "results/models/minilm-l6" and vectors.endswith("data/vectors/minilm-l6.safetensors")


def test_a_recipe_that_depends_on_the_encoder_may_train_the_decoder():
    config = base() | {
        "encoders": ["gemma-2b-it"],
        "methods": ["langptune-0", "langptune-cl"],
        "comparison": {"reference": "langptune-0"},
        "overrides": {"langptune-cl": {"phases": ["cl-paper-joint"], "edit_reading": {"untrained": 1}}},
    }
    assert load(config, ROOT).methods["langptune-cl"].edit_reading.untrained == 1
