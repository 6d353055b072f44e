"""The report of choices on validation: budgets, chosen values, scores and times equal those of the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from langptune.baselines import nmf, recbole, simple
from langptune.comparison import tuning
from langptune.comparison.tuning import BaselineChoices, FusionChoices, PhaseChoices, TextChoices
from langptune.errors import UserError
from langptune.files import write_lines
from langptune.provenance import Record, manifest_of, write_json
from langptune.reading import read_json
from tests.conftest import ROOT

RANGE = {"low": 2, "high": 64}


def made(script: str, output: Path, spec: dict, seconds: float | None = None, **notes) -> str:
    """Write the manifest of an output as its script does."""
    record = Record(ROOT / "scripts" / script, spec)
    record.note(**notes)
    record.write([], [output])
    if seconds is not None:
        write_json(manifest_of(output), read_json(manifest_of(output)) | {"wall_seconds": seconds})
    return str(output)


def fitted(folder: Path, keys: dict, **notes) -> dict[str, str]:
    """Write ranks of the final fit of one seed."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = folder / "ranks.parquet"
    ranks.touch()
    return {"0": made("fit_baseline.py", ranks, {"keys": keys, "seed": 0}, **notes)}


def tried(folder: Path, points: list[dict], scores: list[float]) -> str:
    """Write trials of some points with their validation scores, and the choice; each trial takes ten seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    trials = [{"settings": p, "val": {"ndcg@10": s}} for p, s in zip(points, scores, strict=True)]
    files = []
    for at, trial in enumerate(trials):
        write_json(folder / f"trial{at}.json", trial)
        files.append(made("fit_baseline.py", folder / f"trial{at}.json", {"seed": 3}, seconds=10.0))
    best = max(trials, key=lambda trial: trial["val"]["ndcg@10"])
    write_json(folder / "best.json", {**best, "trials": trials})
    return made("select_baseline.py", folder / "best.json", {"trials_in": files})


def baseline(folder: Path, method: str, keys, **more) -> tuple[BaselineChoices, object]:
    plain = keys.model_dump(mode="json", exclude={"tune", "deterministic"})
    entry = {"method": method, "models": method, "kind": "k", "keys": plain, "tune": getattr(keys, "tune", {})}
    return BaselineChoices(**entry | {"fits": fitted(folder / method, plain)} | more), keys


def row(found, method: str, choice: str = "hyperparameters") -> dict:
    chosen = [one for one in found.iter_rows(named=True) if method in one["methods"].split("; ")]
    (only,) = [one for one in chosen if one["choice"] == choice]
    return only


def test_random_trials_are_listed_with_ranges_budget_and_the_score_of_the_own_values(tmp_path):
    keys = nmf.Keys.model_validate({"components": 32, "tune": {"components": RANGE}})
    points = keys.points(4, seed=3)
    best = tried(tmp_path / "tune", points, [0.1, 0.3, 0.2, 0.05])
    one = row(tuning.table([baseline(tmp_path, "nmf", keys, best_path=best)], [], 4, 3), "nmf")
    assert (one["how"], one["searched"], one["trials"], one["draw_seed"]) == ("random", "components: 2 to 64", 4, 3)
    assert one["chosen"] == f"components {points[1]['components']}" and one["score"] == 0.3
    assert (one["default"], one["default_score"]) == ("components 32", 0.1)
    assert one["seconds"] == 40.0 and one["seeds"] == "3" and one["remark"] is None


def test_the_score_of_the_default_is_that_of_the_trial_with_the_librarys_value(tmp_path):
    keys = recbole.Keys.model_validate({"model": "ItemKNN", "tune": {"k": [20, 100]}})
    best = tried(tmp_path / "tune", keys.points(), [0.2, 0.1])
    one = row(tuning.table([baseline(tmp_path, "itemknn", keys, best_path=best)], [], None, 0), "itemknn")
    assert (one["how"], one["searched"], one["draw_seed"]) == ("grid", "k: 20, 100", None)
    assert (one["chosen"], one["default"], one["default_score"]) == ("k 20", "k 100", 0.1)
    keys = recbole.Keys.model_validate({"model": "ItemKNN", "tune": {"k": [20, 50]}})
    best = tried(tmp_path / "other", keys.points(), [0.2, 0.1])
    one = row(tuning.table([baseline(tmp_path, "itemknn", keys, best_path=best)], [], None, 0), "itemknn")
    assert one["default"] == "k 100" and one["default_score"] is None, "it was not tried"


def test_unequal_budgets_are_stated(tmp_path):
    many = nmf.Keys.model_validate({"tune": {"components": [8, 16, 64]}})
    few = recbole.Keys.model_validate({"model": "ItemKNN", "tune": {"k": [20, 50]}})
    fixed = recbole.Keys.model_validate({"model": "EASE", "settings": {"reg_weight": 7.0}})
    entries = [
        baseline(tmp_path, "nmf", many, best_path=tried(tmp_path / "a", many.points(), [0.1, 0.2, 0.3])),
        baseline(tmp_path, "itemknn", few, best_path=tried(tmp_path / "b", few.points(), [0.1, 0.2])),
        baseline(tmp_path, "ease", fixed, note="chosen beforehand"),
        baseline(tmp_path, "pop", simple.Keys(scorer="pop")),
    ]
    found = tuning.table(entries, [], None, 0)
    assert row(found, "nmf")["remark"] is None
    assert row(found, "itemknn")["remark"] == "2 trials, other methods up to 3"
    ease = row(found, "ease")
    assert ease["remark"] == "no trials, other methods up to 3; chosen beforehand"
    assert ease["how"] == "not searched" and "reg_weight 7" in ease["chosen"]
    assert row(found, "pop")["remark"] == tuning.NOTHING
    assert "Budgets are not equal" in tuning.page(found, "D") and "3 (nmf); 2 (itemknn); 0 (ease)" in tuning.page(
        found, "D"
    )
    equal = tuning.table([entries[0], entries[3]], [], None, 0)
    assert "Every baseline with hyperparameters had 3 trials" in tuning.page(equal, "D")


@pytest.mark.parametrize(
    ("run", "remark"), [(5, None), (9, "stopped at the maximum number of epochs, not by patience")]
)
def test_epochs_are_listed_for_each_seed(tmp_path, run, remark):
    keys = recbole.Keys.model_validate({"model": "BPR", "epochs": 9, "patience": 2, "validate_every": 2})
    entry, _ = baseline(tmp_path, "bpr", keys)
    notes = {"best_epoch": 3, "epochs_run": run, "val": {"ndcg@10": 0.25}, "train_seconds": 7.5}
    fits = fitted(tmp_path / "bpr", entry.keys, **notes) | {"1": fitted(tmp_path / "s1", entry.keys, **notes)["0"]}
    found = tuning.table([(entry.model_copy(update={"fits": fits}), keys)], [], None, 0)
    epochs = found.filter(found["choice"] == "epochs")
    assert epochs["seeds"].to_list() == ["0", "1"] and epochs["remark"].to_list() == [remark] * 2
    assert epochs["chosen"].to_list() == ["3", "3"] and epochs["score"].to_list() == [0.25, 0.25]
    assert epochs["searched"][0] == "at most 9, validated every 2, patience 2 validations"


@pytest.fixture
def texts(tmp_path) -> list[TextChoices]:
    """Write two methods that share a phase and a chosen weight, and one with a fixed weight."""
    folder = tmp_path / "phase" / "decoder"
    folder.mkdir(parents=True)
    recipe = {"title": "CL", "kind": "contrastive", "batches": 6, "validate_every": 3, "patience": 2, "select": "best"}
    notes = {"best_batch": 3, "best_ndcg": 0.4, "train_seconds": 20.0}
    made("train_decoder.py", folder, {"recipe": {**recipe, "learning_rate": 0.001}, "seed": 0}, **notes)
    rows = [{"batch": 0, "val_ndcg": 0.2}, {"batch": 1, "loss": 1.0}, {"batch": 3, "val_ndcg": 0.4}]
    write_lines(folder.parent / "curve.jsonl", [*rows, {"batch": 6, "val_ndcg": 0.3}])
    weight = tmp_path / "popularity.json"
    grid = [{"weight": 0.0, "ndcg": 0.1}, {"weight": 2.0, "ndcg": 0.3}]
    write_json(weight, {"weight": 2.0, "grid": grid, "largest_of_grid": True})
    made("choose_popularity.py", weight, {}, seconds=5.0)
    ranks = tmp_path / "ranks.parquet"
    ranks.touch()
    made("rank_texts.py", ranks, {"source": "history", "history_items": 4, "profiles_in": None})
    phase = PhaseChoices(title="CL", folders={"0": str(folder)})
    keys = {"models": "m", "ranks": {"0": str(ranks)}, "phases": [phase]}
    shared = [TextChoices(method=name, weights={"0": str(weight)}, **keys) for name in ("a", "b")]
    return [*shared, TextChoices(method="c", models="m", ranks={"0": str(ranks)}, weights={"0": 1.5})]


def test_phases_and_weights_that_methods_share_are_listed_once(texts):
    found = tuning.table([], texts, None, 0)
    state = row(found, "a", "state: CL")
    assert state["methods"] == "a; b" and (state["how"], state["trials"]) == ("validations", 3)
    assert (state["chosen"], state["score"], state["default_score"]) == ("batch 3", 0.4, 0.2)
    assert state["searched"] == "batches 0 to 6, validated every 3, patience 2 validations" and state["seconds"] == 20.0
    weight = row(found, "b", "weight of popularity")
    assert weight["methods"] == "a; b" and (weight["how"], weight["searched"], weight["trials"]) == ("grid", "0, 2", 2)
    assert (weight["chosen"], weight["score"], weight["default_score"], weight["seconds"]) == ("2", 0.3, 0.1, 5.0)
    assert weight["remark"] == "the largest of the grid"


def test_what_a_config_fixes_is_not_searched(texts):
    found = tuning.table([], texts, None, 0)
    fixed = row(found, "c", "weight of popularity")
    assert (fixed["how"], fixed["trials"], fixed["chosen"], fixed["score"]) == ("not searched", 0, "1.5", None)
    recipe = row(found, "a", "recipe: CL")
    assert recipe["how"] == "not searched" and "learning_rate 0.001" in recipe["chosen"]
    text = row(found, "a", "text of a session")
    assert text["methods"] == "a; b; c" and text["chosen"] == "text history, history_items 4"


def test_a_phase_that_keeps_its_last_state_is_not_searched(texts, tmp_path):
    folder = Path(texts[0].phases[0].folders["0"])
    recipe = read_json(manifest_of(folder))["spec"]["recipe"] | {"select": "last"}
    made("train_decoder.py", folder, {"recipe": recipe}, best_batch=6, best_ndcg=0.3)
    state = row(tuning.table([], texts, None, 0), "a", "state: CL")
    assert (state["how"], state["trials"], state["searched"], state["chosen"]) == ("not searched", 0, None, "batch 6")


@pytest.mark.parametrize("broken", ["[]", "{}", '{"trials": [{"settings": {}}]}', "no JSON"])
def test_a_broken_choice_is_one_line(tmp_path, broken):
    keys = nmf.Keys.model_validate({"tune": {"components": [8, 16]}})
    best = tried(tmp_path / "tune", keys.points(), [0.1, 0.2])
    Path(best).write_text(broken)
    with pytest.raises(UserError, match=r"best\.json: no choice of select_baseline\.py"):
        tuning.table([baseline(tmp_path, "nmf", keys, best_path=best)], [], None, 0)


def test_a_missing_manifest_leaves_cells_empty(tmp_path):
    keys = nmf.Keys.model_validate({"tune": {"components": [8, 16]}})
    best = tried(tmp_path / "tune", keys.points(), [0.1, 0.2])
    for path in tmp_path.rglob("*.manifest.json"):
        path.unlink()
    one = row(tuning.table([baseline(tmp_path, "nmf", keys, best_path=best)], [], None, 0), "nmf")
    assert one["seconds"] is None and one["score"] == 0.2


def test_the_weight_of_a_fusion_is_a_choice(tmp_path):
    grid = [{"weight": 0.0, "ndcg": 0.3}, {"weight": 0.5, "ndcg": 0.4}, {"weight": 1.0, "ndcg": 0.2}]
    path = tmp_path / "choice.json"
    write_json(path, {"weight": 0.5, "grid": grid})
    made("fuse.py", path, {}, seconds=2.0)
    entry = FusionChoices(method="both", models="a+b", of=["ease", "langptune"], choices={"1": str(path)})
    found = tuning.table([], [], None, 0, [entry])
    only = row(found, "both", "weight of langptune")
    assert (only["seeds"], only["how"], only["trials"], only["chosen"], only["score"]) == ("1", "grid", 3, "0.5", 0.4)
    assert (only["default"], only["default_score"], only["seconds"]) == ("0 (ease alone)", 0.3, 2.0)
