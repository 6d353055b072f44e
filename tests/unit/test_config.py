"""Config and registries: every mistake gives one line that names file, key, value and the nearest valid key."""

from __future__ import annotations

import copy
import inspect
import re
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, RootModel

from langptune.config import document
from langptune.config.base import read_yaml, retype
from langptune.config.cluster import Cluster
from langptune.config.datasets import DatasetEntry
from langptune.config.judges import Judge
from langptune.config.layout import Layout
from langptune.config.load import load
from langptune.config.methods import MethodEntry
from langptune.config.models import ModelEntry
from langptune.config.phases import VALIDATION, Draw
from langptune.config.prompts import Prompt
from langptune.config.rates import Rates
from langptune.config.recipes import RecipeEntry
from langptune.config.settings import Config
from langptune.config.workflow import Run
from langptune.errors import UserError
from tests.conftest import ROOT

MODELS = "smollm2-135m+minilm-l6"
ON_PROFILES = {"langptune-cl": {"phases": ["cl"]}, "langptune": {"phases": ["cl", "rlso"]}}
"""Overrides that put a phase of CL on profiles before RLSO."""
CONFIGS = sorted(p.name for p in (ROOT / "config").glob("*.yaml") if "methods" in read_yaml(p))


def base() -> dict:
    return {
        "datasets": ["ml-100k"],
        "encoders": ["smollm2-135m"],
        "decoders": ["minilm-l6"],
        "methods": ["langptune-0", "history", "ease", "random"],
        "seeds": [0, 1],
    }


def test_the_reference_follows_the_methods():
    assert load(base(), ROOT).reference == "langptune-0"
    assert load({"datasets": ["ml-100k"], "methods": ["pop", "ease"]}, ROOT).reference == "pop"
    assert load({**base(), "comparison": {"reference": "ease"}}, ROOT).reference == "ease"


@pytest.mark.parametrize("keys", [{"decoders": ["minilm-l6"]}, {"encoders": ["smollm2-135m"]}, {}])
def test_methods_without_their_models_are_named(keys):
    with pytest.raises(UserError, match=r"^config: method 'langptune-0' needs encoders and decoders, but"):
        load({"datasets": ["ml-100k"], "methods": ["pop", "langptune-0"], **keys}, ROOT)
    alone = load({"datasets": ["ml-100k"], "methods": ["pop"], **keys}, ROOT)
    assert alone.interpreters == [] and [run.method for run in alone.runs()] == ["pop"]


@pytest.mark.parametrize("key", ["results", "models_dir", "raw_dir"])
@pytest.mark.parametrize("value", ["", "a{b}", "a\nb"])
def test_folders_that_snakemake_would_misread_are_refused(key, value):
    with pytest.raises(UserError, match=rf"^config: key '{key}': name a folder without braces"):
        load({**base(), key: value}, ROOT)


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_are_valid(name):
    assert load(read_yaml(ROOT / "config" / name), ROOT, name).runs()


def test_readme_is_in_step_with_the_models():
    assert document.README.read_text() == document.page(), "run `make docs`"


ROOTS = {
    "config.yaml": Config,
    "datasets.yaml": DatasetEntry,
    "models.yaml": ModelEntry,
    "methods.yaml": MethodEntry,
    "recipes.yaml": RecipeEntry,
    "prompts.yaml": Prompt,
    "judges.yaml": Judge,
    "rates.yaml": Rates,
    "cluster.yaml": Cluster,
}
"""File name -> the model of its content, or of one entry."""


def models_within(annotation, found: dict) -> dict:
    """Every pydantic model that an annotation contains, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in found:
            found[annotation] = None
            for field in annotation.model_fields.values():
                models_within(field.annotation, found)
        return found
    for part in get_args(annotation):
        models_within(part, found)
    return found


def test_readme_has_every_key_of_every_file():
    """The models, not the list of sections, decide: each model has a section with a row for each of its keys."""
    page = document.README.read_text()
    sections = [(text, re.findall(r"^\| `(\w+)` \|", text, re.M)) for text in re.split(r"^## ", page, flags=re.M)[1:]]
    for file, root in ROOTS.items():
        for model in models_within(root, {}):
            if issubclass(model, RootModel):
                continue  # its entries are among the models found
            about = inspect.cleandoc(model.__doc__)
            found = [keys for text, keys in sections if text.partition("\n")[2].strip().startswith(about)]
            assert found == [list(model.model_fields)], f"{file}: {model.__module__}.{model.__name__}"
    files = [*(ROOT / "config").glob("*.yaml"), ROOT / "slurm" / "cluster.yaml", ROOT / "slurm" / "profile.yaml"]
    for file in files:
        assert re.search(rf"^\|.*`[./\w]*{file.name}`.*\|", page.partition("\n## ")[0], re.M), file.name


MISTAKES = {
    "typo in a key": (
        lambda c: c.update(methds=["pop"]),
        r"my\.yaml: unknown key 'methds'; did you mean 'methods'\?",
    ),
    "nested typo": (
        lambda c: c.update(comparison={"bootstrp": 10}),
        r"unknown key 'comparison\.bootstrp'; did you mean 'bootstrap'\?",
    ),
    "unknown method": (
        lambda c: c.update(methods=["langptune0"]),
        r"methods: unknown entry 'langptune0'; did you mean 'langptune-0'\?",
    ),
    "one title for two methods": (
        lambda c: c.update(overrides={"ease": {"title": "Raw history (EMB-0)"}}),
        r"my\.yaml: methods 'history' and 'ease' have the same title 'Raw history \(EMB-0\)'; change one of them",
    ),
    "titles that differ in spaces": (
        lambda c: c.update(overrides={"ease": {"title": "Same "}, "random": {"title": " Same"}}),
        r"methods 'ease' and 'random' have the same title 'Same'",
    ),
    "a method titled like a study's point": (
        lambda c: c.update(
            overrides={"ease": {"title": "LangPTune-0 (zero-shot), max tokens 16"}},
            studies={"s": {"title": "S", "key": "max_tokens", "values": [16], "methods": ["langptune-0"]}},
        ),
        r"methods 'ease' and 'langptune-0\.max_tokens-16' have the same title",
    ),
    "unknown dataset": (lambda c: c.update(datasets=["ml100k"]), r"did you mean 'ml-100k'\?"),
    "decoder as encoder": (
        lambda c: c.update(encoders=["minilm-l6"]),
        r"encoders: unknown entry 'minilm-l6'",
    ),
    "wrong type": (lambda c: c.update(seeds="0"), r"key 'seeds': .*\(found '0'\)"),
    "negative seed": (lambda c: c.update(seeds=[-1]), r"key 'seeds\.0': .*\(found -1\)"),
    "twice": (lambda c: c.update(seeds=[1, 1]), r"is repeated"),
    "no methods": (lambda c: c.pop("methods"), r"key 'methods' is missing"),
    "no decoder": (lambda c: c.update(decoders=[]), r"needs encoders and decoders"),
    "unknown metric": (lambda c: c.update(comparison={"metrics": ["ndgc@10"]}), r"unknown metric 'ndgc@10'"),
    "metric without k": (lambda c: c.update(comparison={"metrics": ["recall"]}), r"unknown metric 'recall'"),
    "reference not run": (
        lambda c: c.update(comparison={"reference": "pop"}),
        r"comparison\.reference: 'pop' is not among",
    ),
    "override of nothing": (
        lambda c: c.update(overrides={"eas": {}}),
        r"unknown method 'eas'; did you mean 'ease'\?",
    ),
    "override typo": (
        lambda c: c.update(overrides={"ease": {"epoch": 3}}),
        r"ease \(with my\.yaml: overrides\): unknown key 'epoch'; did you mean 'epochs'\?",
    ),
    "override typo, right kind": (
        lambda c: c.update(
            methods=["random"], comparison={"reference": "random"}, overrides={"random": {"scorers": 1}}
        ),
        r"unknown key 'scorers'; did you mean 'scorer'\?",
    ),
    "empty grid": (
        lambda c: c.update(overrides={"ease": {"tune": {"reg_weight": []}}}),
        r"'reg_weight' lists no values",
    ),
    "cut-off beyond the catalogue": (
        lambda c: c.update(comparison={"metrics": ["ndcg@5000"], "main_metric": "ndcg@5000"}),
        r"'ndcg@5000': the cut-off is larger than the catalogue of 1682 items of 'ml-100k'",
    ),
    "metric twice": (lambda c: c.update(comparison={"metrics": ["mrr", "mrr"], "main_metric": "mrr"}), r"is repeated"),
    "prompt of nothing": (
        lambda c: c.update(overrides={"langptune-0": {"prompt": "movie"}}),
        r"unknown prompt 'movie'; did you mean 'movies'\?",
    ),
    "no room": (
        lambda c: c.update(overrides={"langptune-0": {"max_tokens": 9000}}),
        r"max_tokens 9000 leaves no room",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    change, message = MISTAKES[name]
    config = copy.deepcopy(base())
    change(config)
    with pytest.raises(UserError, match=message) as caught:
        load(config, ROOT, "my.yaml")
    assert "\n" not in str(caught.value)


def test_runs_of_a_config():
    workflow = load(base(), ROOT)
    folders = [run.folder for run in workflow.runs()]
    assert folders == [
        "ml-100k/langptune-0/smollm2-135m+minilm-l6/seed0",  # greedy decoding, so one seed
        "ml-100k/history/minilm-l6/seed0",
        "ml-100k/ease/EASE/seed0",  # a closed form, so one seed
        "ml-100k/random/random/seed0",
        "ml-100k/random/random/seed1",
    ]


def test_overrides_merge_settings_and_change_nothing_else():
    config = base() | {"overrides": {"ease": {"settings": {"reg_weight": 7.0}}}}
    before, after = load(base(), ROOT).methods["ease"], load(config, ROOT).methods["ease"]
    assert after.settings["reg_weight"] == 7.0
    assert after.model_copy(update={"settings": before.settings}) == before


def test_an_override_can_empty_a_grid():
    config = base() | {"overrides": {"ease": {"tune": {}}}}
    assert len(load(base(), ROOT).points("ease")) > 1
    assert load(config, ROOT).points("ease") == []


def test_command_line_values_get_their_types():
    texts = {"seeds": ["0", "1"], "ease": {"reg_weight": ["100.0"], "flag": "true"}, "name": "ml-100k", "none": "null"}
    typed = {"seeds": [0, 1], "ease": {"reg_weight": [100.0], "flag": True}, "name": "ml-100k", "none": None}
    assert retype(texts) == typed


def test_yaml_mistakes(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seeds: [0]\nseeds: [1]\n")
    with pytest.raises(UserError, match=r"line 2: key 'seeds' is repeated"):
        read_yaml(path)
    path.write_text("a: [1\n")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="expected a mapping"):
        read_yaml(path)
    with pytest.raises(UserError, match="no such config file"):
        read_yaml(tmp_path / "none.yaml")


def registries(tmp_path, name, change):
    """A copy of the registries in which a test can change one."""
    for file in ("datasets", "models", "methods", "recipes", "prompts"):
        data = yaml.safe_load((ROOT / "config" / f"{file}.yaml").read_text())
        if file == name:
            change(data)
        (tmp_path / f"{file}.yaml").write_text(yaml.safe_dump(data))
    return base() | {"registries": str(tmp_path)}


def test_a_new_recbole_model_decoder_or_prompt_is_one_entry(tmp_path):
    config = registries(
        tmp_path,
        "methods",
        lambda d: d.update(neumf2={"title": "X", "group": "baselines", "kind": "recbole", "model": "NeuMF"}),
    )
    workflow = load(config | {"methods": ["neumf2"], "comparison": {"reference": "neumf2"}}, ROOT)
    assert [run.folder for run in workflow.runs()] == [f"ml-100k/neumf2/NeuMF/seed{s}" for s in (0, 1)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"hub": "a/b", "revision": "main"}, "full 40-digit commit hash"),
        ({"hub": "a/b"}, "full 40-digit commit hash"),
        ({"hub": "a/b", "revision": "0" * 40, "folder": "x"}, "exactly one"),
        ({"package": "x"}, "needs 'module'"),
    ],
)
def test_model_sources_are_pinned(tmp_path, source, message):
    config = registries(tmp_path, "models", lambda d: d["minilm-l6"].update(source=source))
    with pytest.raises(UserError, match=message):
        load(config, ROOT)


def test_reserved_and_odd_names_are_refused(tmp_path):
    for name in ("data", "a+b", "a/b", "ok\n", "a" * 65, "..", ""):
        config = registries(tmp_path, "datasets", lambda d, name=name: d.update({name: d["ml-100k"]}))
        with pytest.raises(UserError, match="a name has 1 to 64 letters"):
            load(config, ROOT)


@pytest.mark.parametrize("name", ["../../x", "a/b", "ok\n", "a" * 65])
def test_a_study_is_named_as_its_files_can_be(name):
    smoke = read_yaml(ROOT / "config/smoke.yaml")
    with pytest.raises(UserError, match="a name has 1 to 64 letters"):
        load({**smoke, "studies": {name: smoke["studies"]["history"]}}, ROOT)


def test_algorithms_are_compared_at_equal_tokens():
    recipes = load(base(), ROOT).recipes
    spent = {
        name: recipes[name].batches * recipes[name].sessions_per_batch * recipes[name].samples * recipes[name].epochs
        for name in ("rlso", "grpo", "grpo-2", "rloo", "sft")
    }
    assert len(set(spent.values())) == 1, spent


def test_phases_are_shared_and_named_by_what_changes_results():
    methods = ["langptune-0", "langptune-cl", "langptune"]
    profile = {"max_tokens": 16, "history_items": 3}
    overrides = {name: profile | ON_PROFILES.get(name, {}) for name in methods}
    config = base() | {"methods": methods, "comparison": {"reference": "langptune-0"}, "overrides": overrides}
    workflow = load(config, ROOT)
    start, cl, full = (workflow.phase_of("ml-100k", name, MODELS) for name in methods)
    assert full.parent == cl and cl.parent == start and full.encoder == full and full.decoder == cl
    assert [phase.id for phase in full.all()] == [start.id, cl.id, full.id]
    neutral = load(config | {"recipe_overrides": {"cl": {"micro_batch": 3, "title": "x"}}}, ROOT)
    assert neutral.phase_of("ml-100k", "langptune", MODELS).id == full.id
    other = load(config | {"recipe_overrides": {"cl": {"batches": 3}}}, ROOT)
    assert other.phase_of("ml-100k", "langptune", MODELS).id != full.id
    assert other.phase_of("ml-100k", "langptune-0", MODELS).id == start.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe_overrides": {"rlsoo": {}}}, "unknown recipe 'rlsoo'; did you mean 'rlso'"),
        ({"recipe_overrides": {"rlso": {"epoch": 2}}}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"recipe_overrides": {"rlso": {"samples": 1}}}, "samples"),
        (
            {"overrides": {"langptune": {"phases": ["rlso-paper-gemma", "rlso"]}}},
            "phases: 'rlso' continues the adapter of 'rlso-paper-gemma', but its train.lora_rank is 16 and not 1024; "
            "make them equal",
        ),
        (
            {"recipe_overrides": {"rlso-shuffled-rewards": {"sessions_per_batch": 1}}},
            "shuffle_rewards needs sessions_per_batch of at least 2",
        ),
        ({"overrides": {"langptune": {"popularity": float("inf")}}}, "finite"),
        ({"training": {"popularity_weights": [0, float("inf")]}}, "finite"),
        (
            {
                "overrides": {"langptune": {"phases": ["cl-paper-joint"]}},
                "recipe_overrides": {
                    "cl-paper-joint": {"recipes": {"smollm2-135m": "cl-paper"}},
                    "cl-paper": {"sessions": "all"},
                },
            },
            "phases: 'cl-paper': sessions: 'all' is for histories",
        ),
        (
            {"overrides": ON_PROFILES, "recipe_overrides": {"cl": {"sessions": "all"}}},
            "method 'langptune': phases: 'cl': sessions: 'all' is for histories",
        ),
        ({"recipe_overrides": {"cl": {"profile_samples": 4}}}, "profile_samples needs a profile_temperature"),
        ({"recipe_overrides": {"cl-mixed": {"profile_share": 1.0}}}, "less than 1"),
        ({"overrides": {"langptune": {"popularity": "of"}}}, "key 'popularity"),
        ({"overrides": {"langptune": {"popularity": -1}}}, "greater than or equal to 0"),
        ({"training": {"popularity_weights": []}}, "key 'training.popularity_weights'"),
        ({"overrides": {"langptune": {"phases": ["cl", "rl"]}}}, "unknown recipe 'rl'"),
        ({"overrides": {"history-cl": {"phases": ["rlso"]}}}, "the method has none"),
        ({"overrides": {"langptune-0": {"best_of": 4}}}, "best_of needs a temperature"),
        (
            {"recipe_overrides": {"cl": {"negatives": 48}}},
            "key 'negatives': batch_size 128 must be a multiple of it; change one of the two (found 48)",
        ),
        (
            {"recipe_overrides": {"cl": {"negatives": 1}}},
            "key 'negatives': give 'batch', or a number of rows, at least 2 (fo",
        ),
        ({"recipe_overrides": {"cl": {"negatives": "rows"}}}, "at least 2 (found 'rows')"),
        (
            {"overrides": {"langptune": {"phases": ["rlso-paper"]}}},
            "method 'langptune': phases: 'rlso-paper' has no recipe for encoder 'smollm2-135m', only for gemma-2b-it, "
            "llama-3-8b-instruct; add it to its 'recipes' in recipes.yaml",
        ),
        (
            {
                "overrides": {"langptune": {"phases": ["rlso-paper"]}},
                "recipe_overrides": {"rlso-paper": {"recipes": {"smollm2-135m": "rlsoo"}}},
            },
            "'rlso-paper': recipes: smollm2-135m: unknown recipe 'rlsoo'; did you mean 'rlso'",
        ),
        (
            {"overrides": {"history-cl": {"phases": ["cl-paper-joint"]}}},
            "depends on an encoder, but the method has none",
        ),
        ({"overrides": {"nmf": {"components": 0}}}, "greater than or equal to 1"),
        ({"overrides": {"nmf": {"tune": {"factors": [3]}}}}, "tune.factors"),
        ({"studies": {"s": {"title": "s", "key": "max_tokens", "methods": ["langptune"]}}}, "list the values"),
        (
            {"studies": {"s": {"title": "s", "key": "max_tokens", "values": [1, 2], "methods": ["history"]}}},
            "has no key 'max_tokens'",
        ),
        (
            {"studies": {"s": {"title": "s", "key": "max_tokens", "values": [0, 2], "methods": ["langptune"]}}},
            "greater than or equal to 1",
        ),
    ],
)
def test_training_mistakes_are_reported_before_any_job(change, message):
    config = base() | {
        "methods": ["langptune-0", "langptune", "history-cl"],
        "comparison": {"reference": "langptune-0"},
    }
    with pytest.raises(UserError, match=re.escape(message)):
        load(config | change, ROOT)


def test_what_is_like_another_recipe_follows_its_overrides():
    over = {"rlso": {"batches": 3, "train": {"lora_rank": 2}}, "grpo": {"epochs": 2}}
    recipes = load(base() | {"recipe_overrides": over}, ROOT).recipes
    likes = {name: recipes[name] for name in ("grpo", "grpo-2", "rloo", "sft", "rlso-shuffled-rewards")}
    assert {recipe.batches for recipe in likes.values()} == {3}
    assert (
        all(recipe.train == recipes["rlso"].train for recipe in likes.values()) and recipes["rlso"].train.lora_rank == 2
    )
    assert (likes["grpo"].epochs, likes["rloo"].epochs) == (2, 1) and likes["grpo-2"].samples == 2
    for name, own in {"rlso-shuffled-rewards": "shuffle_rewards", "rloo": "algorithm", "sft": "algorithm"}.items():
        differ = {key for key, value in likes[name].identity().items() if recipes["rlso"].identity().get(key) != value}
        assert differ == {own}, "else the control is of more than one thing"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": {"like": "rlsoo"}}, "recipes.yaml: a: like: unknown recipe 'rlsoo'; did you mean 'rlso'"),
        ({"a": {"like": ["rlso"]}}, "recipes.yaml: a: like: unknown recipe '['rlso']'"),
        ({"a": {"like": "b"}, "b": {"like": "a"}}, "recipes.yaml: b: like: 'a' is itself like 'b'; write out"),
        ({"a": {"like": "rlso"}}, "key 'title' is missing"),
    ],
)
def test_mistakes_about_like_are_one_line(tmp_path, entries, message):
    for path in (ROOT / "config").glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    recipes = read_yaml(ROOT / "config" / "recipes.yaml") | entries
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(recipes))
    with pytest.raises(UserError, match=re.escape(message)):
        load(base() | {"registries": str(tmp_path)}, ROOT)


REWARDS = {
    "title": "R",
    "key": "recipe",
    "recipe": "rlso",
    "methods": ["langptune-cl", "langptune"],
    "grid": {"reward": ["ndcg", "log-rank"], "algorithm": ["rebel", "rloo"]},
    "variants": {"a price on copying": {"reward": "log-rank", "terms": {"copied": -1}}},
}


def test_a_study_of_a_recipe_derives_recipes_and_methods():
    workflow = load(base() | {"studies": {"r": REWARDS}}, ROOT)
    settings = {one.name: one.setting for one in workflow.variants("r")}
    assert list(settings.values()) == [
        {},
        {"variant": "ndcg", "reward": "ndcg", "algorithm": "rebel"},
        {"variant": "ndcg", "reward": "ndcg", "algorithm": "rloo"},
        {"variant": "log-rank", "reward": "log-rank", "algorithm": "rebel"},
        {"variant": "log-rank", "reward": "log-rank", "algorithm": "rloo"},
        {"variant": "a price on copying", "reward": "log-rank", "algorithm": "rebel"},
    ]
    base_recipe = workflow.recipes["rlso"]
    method = workflow.methods["langptune.reward-log-rank.algorithm-rloo"]
    assert method.phases == ["cl-history", "rlso.reward-log-rank.algorithm-rloo"] and "log-rank" in method.title
    recipe = workflow.recipes[method.phases[1]]
    same = base_recipe.model_copy(update={"reward": "log-rank", "algorithm": "rloo", "title": recipe.title})
    assert recipe == same
    priced = workflow.recipes["rlso.a-price-on-copying"]
    assert priced.terms == {**base_recipe.terms, "copied": -1.0} and priced.algorithm == "rebel"
    phases = {workflow.phase_of("ml-100k", name, MODELS).id for name in settings if settings[name]}
    assert len(phases) == 5, "each is trained by itself"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": None}, "needs 'recipe' and 'grid' or 'variants'"),
        ({"grid": {}, "variants": {}}, "needs 'recipe' and 'grid' or 'variants'"),
        ({"values": [1]}, "'models' and 'recipe' take none"),
        ({"key": "models"}, "other keys take none of them"),
        ({"recipe": "rlsoo"}, "recipe: unknown recipe 'rlsoo'; did you mean 'rlso'"),
        ({"recipe": "rlso-paper"}, "depends on the encoder; name one of rlso-paper-gemma, rlso-paper-llama"),
        ({"methods": ["langptune-cl"]}, "none of its methods has 'rlso' among its phases"),
        ({"grid": {"rewad": ["ndcg"]}}, "did you mean 'reward'"),
        ({"grid": {"reward": ["ndgc"]}}, "unknown reward 'ndgc'"),
        ({"grid": {"reward": ["ndcg", "ndcg"]}}, "two variants have the name 'reward-ndcg'"),
        (
            {"reference": "langptune"},
            "reference: 'langptune' is not a method that the study leaves unchanged (langptune-cl)",
        ),
        (
            {"variants": {"more": {"samples": 4, "algorithm": "rloo"}}},
            "'langptune.reward-ndcg.algorithm-rebel' writes at most",
        ),
    ],
)
def test_mistakes_in_a_study_of_a_recipe_are_reported_before_any_job(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(base() | {"studies": {"r": {**REWARDS, **change}}}, ROOT)


def test_two_studies_may_share_variants_but_not_names():
    other = {**REWARDS, "variants": {"a price on copying": {"terms": {"copied": -2}}}}
    assert len(load(base() | {"studies": {"r": REWARDS, "q": REWARDS}}, ROOT).variants("q")) == 6
    with pytest.raises(UserError, match="is also the name of a different variant of 'rlso'; rename one of them"):
        load(base() | {"studies": {"r": REWARDS, "q": other}}, ROOT)


def test_a_study_derives_methods():
    studies = {"s": {"title": "s", "key": "train_fraction", "values": [0.1, 1.0], "methods": ["history-cl"]}}
    workflow = load(base() | {"studies": studies}, ROOT)
    assert [run.method for run in workflow.runs("ml-100k", "s")][::2] == [
        "history-cl.train_fraction-0.1",
        "history-cl.train_fraction-1",
    ]
    assert workflow.methods["history-cl.train_fraction-0.1"].train_fraction == 0.1


def paper(methods, encoders=("gemma-2b-it", "llama-3-8b-instruct")):
    return base() | {
        "encoders": list(encoders),
        "decoders": ["mxbai-embed-large-v1"],
        "methods": methods,
        "comparison": {"reference": methods[0]},
    }


def test_published_recipes_depend_on_the_encoder_of_the_run():
    workflow = load(paper(["langptune-paper", "langptune-rlso-paper", "langptune-cl-paper"]), ROOT)
    chains = {
        (name, encoder): [
            recipe for recipe, _ in workflow.phase_of("ml-100k", name, f"{encoder}+mxbai-embed-large-v1").chain
        ]
        for name in workflow.config.methods
        for encoder in workflow.config.encoders
    }
    for encoder, short in (("gemma-2b-it", "gemma"), ("llama-3-8b-instruct", "llama")):
        assert chains["langptune-paper", encoder] == [f"cl-paper-{short}", f"rlso-paper-{short}"] * 5
        assert chains["langptune-rlso-paper", encoder] == [f"rlso-paper-{short}"] * 5
        assert set(chains["langptune-cl-paper", encoder]) == {"cl-paper"}
    longest = workflow.phase_of("ml-100k", "langptune-paper", "gemma-2b-it+mxbai-embed-large-v1")
    assert longest.id.startswith("phase-10-rlso-paper-gemma-"), "ten names would be too long for a file's"
    assert longest.all()[2].id.startswith("cl-paper-gemma+rlso-paper-gemma-")
    assert len({phase.id for phase in longest.all()}) == 11
    own = paper(["langptune-paper"], ["gemma-2b-it"])
    own["overrides"] = {"langptune-paper": {"phases": ["cl-paper-gemma", "rlso-paper-gemma"]}}
    models = "gemma-2b-it+mxbai-embed-large-v1"
    named = load(own, ROOT).phase_of("ml-100k", "langptune-paper", models)
    assert named.id == workflow.phase_of("ml-100k", "langptune-paper", models).id, (
        "one phase, whichever way it is named"
    )


def controls(**overrides) -> dict:
    """A config that has only controls: the methods that they name are not run."""
    methods = ["shuffled-profiles", "mean-langptune", "langptune-text"]
    return base() | {"methods": methods, "comparison": {"reference": methods[0]}, "overrides": overrides}


def test_a_control_has_the_models_phases_and_seeds_of_its_method():
    workflow = load(controls(), ROOT)
    assert {run.models for run in workflow.runs()} == {MODELS}
    assert [run.seed for run in workflow.runs()] == [0, 1] * 3, "dealing draws, and so does training"
    mean, written = (Run("ml-100k", name, MODELS, 1) for name in ("mean-langptune", "langptune"))
    layout = Layout(workflow)
    for path in (layout.run_profiles, layout.run_decoder, layout.run_vectors):
        assert path(mean) == path(written)
    untrained = {"of": "langptune-0"}
    workflow = load(controls(**{"mean-langptune": untrained, "langptune-text": {"of": "history"}}), ROOT)
    seeds = {name: [run.seed for run in workflow.runs() if run.method == name] for name in workflow.config.methods}
    assert seeds == {"shuffled-profiles": [0, 1], "mean-langptune": [0], "langptune-text": [0]}
    assert workflow.models_of("langptune-text") == ["minilm-l6"], "a control of a text method needs no encoder"


def test_only_other_users_profiles_are_measured_beside_a_methods_own():
    config = controls()
    config["methods"] = ["langptune-0", "langptune", *config["methods"], "shuffled-langptune"]
    assert load(config, ROOT).readable == ["langptune-0", "langptune", "shuffled-profiles", "shuffled-langptune"]
    config["interpretability"] = {"methods": ["langptune-0", "mean-langptune"]}
    with pytest.raises(UserError, match="'mean-langptune' does not have exactly one profile per session"):
        load(config, ROOT)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"shuffled-profiles": {"of": "lang"}}, "of: 'lang' is not a profile method, which change 'shuffled' needs"),
        ({"shuffled-profiles": {"of": "history"}}, "of: 'history' is not a profile method"),
        ({"mean-langptune": {"of": "pop"}}, "of: 'pop' is not a profile or text method, which change 'mean-vector'"),
        ({"mean-langptune": {"of": "shuffled-profiles"}}, "of: 'shuffled-profiles' is not a profile or text method"),
        ({"mean-langptune": {"change": "mean"}}, "key 'change'"),
    ],
)  # fmt: skip
def test_mistakes_about_controls_are_reported_before_any_job(overrides, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load(controls(**overrides), ROOT)
    assert "\n" not in str(caught.value)


def test_the_phases_of_a_controls_method_are_checked_too():
    config = controls(**{"shuffled-profiles": {"of": "langptune-paper"}})
    with pytest.raises(UserError, match="'cl-paper-joint' has no recipe for encoder 'smollm2-135m'"):
        load(config, ROOT)


NAMES = ["start-5a7a5977", "cl-6ee5b18a", "cl+rlso-8650ee58", "cl-paper-ced8c6b1"]


def test_names_of_phases_stay_when_keys_are_added():
    """Results from before a key existed are still found: a key with its default value is not part of the name."""
    methods = ["langptune-0", "langptune-cl", "langptune", "langptune-cl-paper"]
    alone = {"overrides": ON_PROFILES | {"langptune": {**ON_PROFILES["langptune"], "popularity": 0}}}
    workflow = load(base() | {"methods": methods, "comparison": {"reference": "langptune-0"}} | alone, ROOT)
    names = [workflow.phase_of("ml-100k", name, MODELS).id for name in methods]
    assert names == NAMES
    grouped = load(
        base()
        | {
            "methods": methods,
            "comparison": {"reference": "langptune-0"},
            "recipe_overrides": {"cl": {"negatives": 32}, "cl-paper": {"negatives": "batch"}},
        }
        | alone,
        ROOT,
    )
    found = [grouped.phase_of("ml-100k", name, MODELS).id for name in methods]
    assert [a == b for a, b in zip(found, names, strict=True)] == [True, False, False, True]


HISTORIES = {
    "history-cl": {"history_items": 5},
    "langptune-cl": {"phases": ["cl-history"], "history_items": 5, "max_tokens": 16, "prompt": "movies-sentence"},
    "langptune": {"phases": ["cl-history", "rlso", "cl-mixed"], "history_items": 5, "max_tokens": 24},
}
"""Three methods that begin with the same phase, although they differ in prompt and length."""


def on_histories(**changes):
    config = base() | {"methods": ["langptune-0", *HISTORIES], "comparison": {"reference": "langptune-0"}}
    config["overrides"] = {name: entry | changes.get(name, {}) for name, entry in HISTORIES.items()}
    return load(config | {"encoders": ["smollm2-135m", "qwen2.5-0.5b-instruct"]}, ROOT)


def test_a_phase_on_histories_is_one_for_all_encoders_prompts_and_text_methods():
    workflow = on_histories()
    layout = Layout(workflow)
    folders = set()
    for name in HISTORIES:
        for models in workflow.models_of(name):
            first = workflow.phase_of("ml-100k", name, models).all()[1]
            folders.add(layout.phase_folder("ml-100k", models, 0, first))
    (folder,) = folders
    assert folder.startswith("results/ml-100k/phases/minilm-l6/seed0/cl-history-")
    run = Run("ml-100k", "langptune-cl", MODELS, 0)
    assert layout.run_decoder(run) == f"{folder}/decoder" and layout.run_vectors(run) == f"{folder}/vectors.safetensors"
    assert "/smollm2-135m/" in layout.run_profiles(run), "the untrained encoder still writes by the method's prompt"
    longer = on_histories(langptune={"history_items": 7}).phase_of("ml-100k", "langptune", MODELS)
    assert longer.all()[1].id not in folder, "texts of seven items are others"
    named = on_histories(**{"langptune-cl": {"train_fraction": 0.5}}).phase_of("ml-100k", "langptune-cl", MODELS)
    assert named.decoder.id not in folder


def test_phases_in_any_order():
    """What each phase of `cl-history, rlso, cl-mixed` starts from and reads, and which decoder rewards it."""
    workflow = on_histories()
    layout = Layout(workflow)
    last = workflow.phase_of("ml-100k", "langptune", MODELS)
    _, first, rlso, mixed = last.all()
    assert (first.draws(), rlso.draws()) == ([], [])
    assert [draw.name for draw in mixed.draws()] == ["train-t0.8-2-n4", "val"]
    assert mixed.encoder == rlso and rlso.encoder == rlso and rlso.decoder == first and mixed.parent == rlso
    writes = layout.profiles_of("ml-100k", MODELS, 0, mixed, mixed.draws()[0])
    assert writes.startswith(layout.phase_folder("ml-100k", MODELS, 0, rlso))
    assert mixed.recipe.sessions == "all" and mixed.recipe.history_items == 5
    assert layout.decoder_folder("ml-100k", MODELS, 0, mixed.parent).startswith("results/ml-100k/phases/minilm-l6/")


def test_one_weight_of_popularity_for_all_that_rank_by_a_decoder():
    config = base() | {
        "methods": [
            *("langptune-0", "langptune-rlso", "langptune-cl", "langptune", "shuffled-profiles", "history"),
            *("langptune-text", "mean-langptune"),
        ],
        "comparison": {"reference": "langptune-0"},
    }
    layout = Layout(load(config, ROOT))
    weight = {
        name: layout.run_weight(Run("ml-100k", name, MODELS, 1)) for name in config["methods"] if name != "history"
    }
    # Controls take their method's weight, except the control that removes it.
    assert weight["langptune-text"] == 0.0 and weight["mean-langptune"] == weight["langptune"]
    assert weight["langptune-0"] == weight["langptune-rlso"] == weight["shuffled-profiles"]
    assert weight["langptune-cl"] == weight["langptune"] != weight["langptune-0"]
    assert "/seed0/start-" in weight["langptune-0"] and "/seed1/cl-" in weight["langptune"]
    assert layout.run_weight(Run("ml-100k", "history", "minilm-l6", 0)) == weight["langptune-0"]
    after = load(config, ROOT).phase_of("ml-100k", "langptune", MODELS)
    assert layout.reward_weight("ml-100k", MODELS, 1, after) == weight["langptune"]
    # A fixed weight is a number, not a file, and the encoder that is trained with it is another phase.
    fixed = load(config | {"overrides": {"langptune": {"popularity": 1.5}}}, ROOT)
    assert Layout(fixed).run_weight(Run("ml-100k", "langptune", MODELS, 1)) == 1.5
    assert Layout(fixed).run_weight(Run("ml-100k", "langptune-text", MODELS, 1)) == 0.0
    other = fixed.phase_of("ml-100k", "langptune", MODELS)
    assert Layout(fixed).reward_weight("ml-100k", MODELS, 1, other) == 1.5
    assert other.id != after.id and other.decoder == after.decoder


def test_what_no_seed_changes_lies_under_one_seed_whichever_are_listed():
    """Otherwise a seed that is added later would change the inputs of finished trainings."""
    found = set()
    for seeds in ([1], [0, 1], [2, 0, 1]):
        config = base() | {"methods": ["langptune-0", "langptune-rlso"], "seeds": seeds}
        layout = Layout(load(config, ROOT))
        phase = load(config, ROOT).phase_of("ml-100k", "langptune-rlso", MODELS)
        greedy = [layout.profiles_of("ml-100k", MODELS, 1, phase.parent, VALIDATION)]
        greedy.append(layout.run_profiles(Run("ml-100k", "langptune-0", MODELS, 1)))
        found.add((*greedy, layout.reward_weight("ml-100k", MODELS, 1, phase)))
    assert len(found) == 1 and all("/seed0/" in path for path in found.pop())
    sampled = Draw("test", temperature=1.0)
    assert "/seed1/" in layout.profiles_of("ml-100k", MODELS, 1, phase.parent, sampled)


def test_the_grids_of_all_compared_baselines_have_the_same_budget():
    entries, compared = (read_yaml(ROOT / "config" / name) for name in ("methods.yaml", "baselines.yaml"))
    names = [name for name in compared["methods"] if "tune" in entries[name]]
    config = base() | {"methods": names, "comparison": {"reference": "ease"}}
    workflow = load(config, ROOT)
    trials = {name: len(workflow.points(name)) for name in names}
    assert len(trials) >= 13 and set(trials.values()) == {8}, trials


def test_nmf_has_a_grid_of_components():
    config = base() | {"methods": ["nmf"], "comparison": {"reference": "nmf"}}
    assert [run.folder for run in load(config, ROOT).runs()] == [f"ml-100k/nmf/NMF/seed{s}" for s in (0, 1)]
    assert len(load(config, ROOT).points("nmf")) > 1
    untuned = load(config | {"tune": False, "overrides": {"nmf": {"components": 7}}}, ROOT)
    assert untuned.points("nmf") == [] and untuned.methods["nmf"].keys()["components"] == 7
    with pytest.raises(UserError, match="'components' lists no values"):
        load(config | {"overrides": {"nmf": {"tune": {"components": []}}}}, ROOT)


def test_two_datasets_are_the_default_run_with_one_dataset_more_and_transfer():
    one, two = (read_yaml(ROOT / "config" / name) for name in ("config.yaml", "two-datasets.yaml"))
    assert two["datasets"] == [*one["datasets"], "ml-small-2016"]
    moved = [f"langptune-from-{dataset}" for dataset in two["datasets"]]
    assert [two["overrides"].pop(name) for name in moved] == [one["overrides"]["langptune"]] * 2
    contrasts = two["comparison"]["contrasts"]
    transfers = [contrasts.pop(name) for name in list(contrasts) if name.startswith("transfer")]
    assert [{one["of"], one["against"]} & set(moved) for one in transfers] == [{name} for name in moved for _ in "ab"]
    methods = [name for name in two["methods"] if name not in moved]
    assert len(methods) == len(two["methods"]) - 2
    assert two | {"methods": methods} == one | {"datasets": two["datasets"]}


def test_nobody_asks_for_the_class_of_a_method_or_a_recipe():
    """Methods and recipes answer by attributes: a new kind is one class, and no other file needs to know it."""
    kinds = {kind.__name__ for kind in (*models_within(MethodEntry, {}), *models_within(RecipeEntry, {}))}
    asked = re.compile(rf"\b(?:isinstance|issubclass)\(.*?[\s,(|](?:\w+\.)?(?:{'|'.join(kinds)})\b")
    assert asked.search("if isinstance(METHODS[name], (kinds.ProfileMethod, kinds.TextMethod)):")
    files = [path for room in ("src", "scripts", "workflow") for path in (ROOT / room).rglob("*")]
    assert [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        if path.suffix in (".py", ".smk")
        for line in path.read_text().splitlines()
        if asked.search(line)
    ] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "rlo"}, r"unknown algorithm 'rlo'; did you mean 'rloo'\?"),
        (
            {"algorithm": "rloo", "settings": {"clop": 0.1}},
            r"algorithm 'rloo' has no setting 'clop'; did you mean 'clip'\?",
        ),
        ({"settings": {"clip": 0.1}}, r"algorithm 'rebel' has no setting 'clip'; it has no settings"),
    ],
)
def test_an_algorithm_and_its_own_settings_are_known(change, message):
    with pytest.raises(UserError, match=message):
        load(base() | {"recipe_overrides": {"rlso": change}}, ROOT)


def test_an_algorithms_own_settings_name_the_phase_where_they_are_given():
    def phase(**settings):
        config = base() | {"methods": ["langptune-rloo"], "comparison": {"reference": "langptune-rloo"}}
        config |= {"recipe_overrides": {"rloo": {"settings": settings}}}
        return load(config, ROOT).phase_of("ml-100k", "langptune-rloo", MODELS)

    assert phase().id == load(base(), ROOT).phase_of("ml-100k", "langptune-rloo", MODELS).id != phase(clip=0.1).id
    assert "settings" not in phase().recipe.identity() and phase(clip=0.1).recipe.identity()["settings"] == {
        "clip": 0.1
    }
