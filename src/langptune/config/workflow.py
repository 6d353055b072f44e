"""The run's config: which datasets, models, methods and seeds, and how they are compared."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, RootModel, ValidationInfo, field_validator, model_validator

from langptune import metrics
from langptune.config.base import NAME_RULE, Strict, nearest, read_yaml, sound_name, validate
from langptune.config.datasets import DatasetEntry
from langptune.config.judges import Judge, read_judges
from langptune.config.methods import Method, MethodEntry
from langptune.config.models import DecoderEntry, EncoderEntry, ModelEntry
from langptune.config.phases import Phase
from langptune.config.prompts import Prompt
from langptune.config.published import Published, read_published
from langptune.config.recipes import PerEncoder, Recipe, RecipeEntry
from langptune.config.sample import Sample
from langptune.errors import UserError

RECIPE_MAPPINGS = ("train", "terms", "guard", "settings")
"""Keys of recipes whose mappings a config changes key by key."""
RESERVED = {"data", "comparison", "models", "phases", "report", "reference", "answers"}


class Generation(Strict):
    """How profiles are written.

    Shards change nothing; batch size, dtype and threads may change rounding, and with it a word (docs/numerics.md).
    """

    shards: Annotated[int, Field(ge=1)] = Field(1, description="jobs that share one run's profiles")
    batch_size: Annotated[int, Field(ge=1)] = 32
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: the fastest that the hardware supports"
    )
    threads: Annotated[int, Field(ge=1)] = Field(2, description="CPU threads of one profile job")
    max_usd: Annotated[float, Field(ge=0, strict=False)] = Field(
        10.0, description="most that one profile job may cost, in US dollars, where the encoder is an endpoint"
    )


class Training(Strict):
    """How phases are trained."""

    threads: Annotated[int, Field(ge=1)] = Field(2, description="CPU threads of one training job")
    retries: Annotated[int, Field(ge=0)] = Field(
        2, description="how often a training job that failed or was stopped is started again, from its checkpoint"
    )
    popularity_weights: Annotated[
        list[Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)]], Field(min_length=1)
    ] = Field(
        [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3],
        description="weights of popularity in the score that methods with `popularity: auto` choose from, by NDCG "
        "without cut-off on validation",
    )


class Contrast(Strict):
    """Two methods of the run that are tested against each other. `[langptune, pop]` is short for `of` and `against`.

    With `beyond` it is tested whether their difference is another one than that of two further methods.
    """

    of: str = Field(description="method")
    against: str = Field(description="method that it is set against: differences are `of` minus `against`")
    beyond: list[str] = Field(
        [],
        description="two methods, as in `[of, against]`: what is tested is then a difference of differences, `of` "
        "minus `against` less the first of these minus the second",
    )
    title: str = Field("", description="the question that the pair answers, in a few words")

    @field_validator("beyond")
    @classmethod
    def _two(cls, value: list[str]) -> list[str]:
        if len(value) not in (0, 2):
            raise ValueError(f"it is of two methods, found {len(value)}; write [of, against]")
        return value

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(value) != 2:
                raise ValueError(f"a contrast is of two methods, found {len(value)}; write [of, against]")
            return {"of": value[0], "against": value[1]}
        return value


class Comparison(Strict):
    """What the tables report."""

    metrics: list[str] = list(metrics.DEFAULT)
    main_metric: str = Field("ndcg@10", description="sorts the table, and is drawn in the plots")
    reference: str | None = Field(
        None,
        description="the method every other one is tested against, paired by session; of several models, each row "
        "against the run of its own; null: langptune-0 where it is run, else the first method",
    )
    contrasts: dict[str, Contrast] = Field(
        {},
        description="name -> two methods that are tested against each other, paired by session and seed, each with its "
        "own models; Holm-corrected over all contrasts within each metric",
    )
    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="resamples of sessions and seeds")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: int = 0
    published: str | None = Field(
        None, description="CSV file of published numbers to stand beside ours, such as results/reference/published.csv"
    )
    published_as: dict[str, str] = Field({}, description="dataset -> its name in that file, where it has another")

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            try:
                metrics.parse(name)
            except UserError as error:
                raise ValueError(str(error)) from None
        if len(set(value)) != len(value):
            raise ValueError("a metric stands twice; keep one")
        return value


class Interpretability(Strict):
    """What `make interpret` measures of profiles (docs/interpretability.md). None of it takes part in training."""

    reference: str = Field("langptune-0", description="the profile method that every other one is set against")
    methods: list[str] = Field(
        [], description="profile methods, and controls that shuffle them; empty: all of the run that there are"
    )
    sessions: Annotated[int, Field(ge=2)] = Field(100, description="test sessions that are measured, drawn at random")
    verifier: str | None = Field(
        None,
        description="model that tells whether a history supports a claim: an entry of models.yaml with role verifier "
        "(natural-language inference) or decoder (similarity); null: the run's first decoder, untrained",
    )
    strangers: Annotated[int, Field(ge=1)] = Field(
        20, description="other users' histories that each claim is tried on, too: a claim true of everyone says little"
    )
    reader: str | None = Field(
        None,
        description="model that must tell the next item by the profile alone: an encoder (by likelihood) or a decoder "
        "that is none of this run's; null: the run's first encoder that has weights, untrained",
    )
    candidates: Annotated[int, Field(ge=2)] = Field(10, description="items the reader chooses from, one of them true")
    tastes: Annotated[int, Field(ge=1)] = Field(4, description="genres or tags by which each profile is edited")
    judges: list[str] = Field([], description="entries of config/judges.yaml; none: no judge is asked")
    judge_sessions: Annotated[int, Field(ge=1)] = Field(20, description="sessions whose profiles the judges compare")
    judge_max_usd: Annotated[float, Field(ge=0, strict=False)] = Field(
        1.0, description="most that one judge may cost for one method and seed, in US dollars"
    )
    survey_questions: Annotated[int, Field(ge=1)] = Field(12, description="pairs of profiles in a questionnaire")
    examples: Annotated[int, Field(ge=1)] = Field(12, description="sessions on the page of examples, drawn at random")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of all these draws")


class Study(Strict):
    """One key of some methods over several values, or keys of a recipe; a figure of its own, beside the comparison.

    A study of a recipe trains each method by the recipe with every combination of ``grid``, and once for each of
    ``variants``. Reinforcement recipes must then be allowed equally many tokens. Methods without the recipe are run
    as they are, to be read beside.
    """

    title: str
    key: Literal["train_fraction", "max_tokens", "history_items", "models", "recipe"] = Field(
        description="the methods' key that varies; models: the run's encoders and decoders, as a grid; recipe: keys of "
        "the recipe that `recipe` names"
    )
    values: list[int | float] = Field([], description="of the key; none for models and recipe", validate_default=True)
    recipe: str | None = Field(None, description="key recipe: the entry of recipes.yaml that varies")
    grid: dict[str, Annotated[list[str | int | float | bool | None], Field(min_length=1)]] = Field(
        {}, description="key recipe: keys of that entry -> values, each combination a recipe of its own"
    )
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="key recipe: name -> keys that it changes; `train`, `terms` and `guard` merge by key"
    )
    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] | None = Field(
        None, description="null: those of the run"
    )

    @field_validator("values")
    @classmethod
    def _several(cls, value: list, info: ValidationInfo) -> list:
        if (info.data.get("key") in ("models", "recipe")) == bool(value):
            raise ValueError("list the values of the key; 'models' and 'recipe' take none")
        return value

    @model_validator(mode="after")
    def _of_a_recipe(self) -> Study:
        if (self.key == "recipe") != (self.recipe is not None and bool(self.grid or self.variants)):
            raise ValueError("key 'recipe' needs 'recipe' and 'grid' or 'variants'; other keys take none of them")
        return self

    def changes(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Of a study of a recipe: name, title and changed keys of each variant.

        Raises:
            ValueError: two variants of one name.
        """
        out = []
        for values in itertools.product(*self.grid.values()) if self.grid else ():
            change = dict(zip(self.grid, values, strict=True))
            name = ".".join(f"{key}-{_shown(value)}" for key, value in change.items())
            out.append((name, ", ".join(f"{key} {_shown(value)}" for key, value in change.items()), change))
        out += [(name, name, change) for name, change in self.variants.items()]
        slugs = [re.sub("[^A-Za-z0-9._-]+", "-", name) for name, *_ in out]
        for slug in slugs:
            if slugs.count(slug) > 1:
                raise ValueError(f"two variants are called '{slug}'; rename one, or list a value once")
        return [(slug, title, change) for slug, (_, title, change) in zip(slugs, out, strict=True)]


def _shown(value: Any) -> str:
    """How names and titles write a value of a recipe's key."""
    return "null" if value is None else f"{value:g}" if type(value) in (int, float) else str(value)


class Config(Strict):
    """One run of the workflow. Keys left out keep the defaults given here."""

    results: str = Field("results", description="folder that everything is written to")
    models_dir: str = Field("results/models", description="folder of materialised models; may be shared between runs")
    raw_dir: str = Field("results/raw", description="folder of downloaded raw data; may be shared between runs")
    registries: str = Field("config", description="folder with datasets.yaml, models.yaml, methods.yaml, prompts.yaml")
    datasets: Annotated[list[str], Field(min_length=1)]
    encoders: list[str] = []
    decoders: list[str] = []
    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = [0]
    sample: Sample = Sample()
    tune: bool = Field(True, description="try each method's validation grid; false uses its `settings` alone")
    overrides: dict[str, dict[str, Any]] = Field(
        {},
        description="method -> keys of its registry entry that this run changes; `settings` merge by key",
    )
    dataset_overrides: dict[str, dict[str, Any]] = Field(
        {},
        description="dataset -> keys of its entry in datasets.yaml that this run changes; `protocol` merges by key. "
        "For instance where your raw files lie: {movies-tv: {source: {folder: /data/amazon}}}",
    )
    recipe_overrides: dict[str, dict[str, Any]] = Field(
        {},
        description="recipe -> keys of its entry in recipes.yaml that this run changes; `train`, `terms` and `guard` "
        "merge by key",
    )
    studies: dict[str, Study] = Field({}, description="name -> one key of some methods over several values")
    generation: Generation = Generation()
    training: Training = Training()
    comparison: Comparison = Comparison()
    interpretability: Interpretability = Interpretability()

    @field_validator("results", "models_dir", "raw_dir")
    @classmethod
    def _folder(cls, value: str) -> str:
        if not value or any(letter in "{}" or not letter.isprintable() for letter in value):
            raise ValueError(
                "name a folder without braces, which Snakemake takes for wildcards, and without line breaks"
            )
        return value

    @field_validator("datasets", "encoders", "decoders", "methods", "seeds")
    @classmethod
    def _unique(cls, value: list) -> list:
        if len(set(value)) != len(value):
            raise ValueError("an entry stands twice; keep one")
        return value


@dataclass(frozen=True)
class Run:
    """One cell of the grid: a method with its models on a dataset, for one seed.

    ``models`` is ``encoder+decoder``, ``decoder``, a RecBole model's name, ``NMF``, or a scorer's name.
    """

    dataset: str
    method: str
    models: str
    seed: int

    @property
    def folder(self) -> str:
        """``{dataset}/{method}/{models}/seed{seed}``, relative to the results folder."""
        return f"{self.dataset}/{self.method}/{self.models}/seed{self.seed}"


class Variant(NamedTuple):
    """One method of a study.

    of: the method that it is a variant of.
    value: the key's; None where models or a recipe vary.
    name: the derived method; ``of`` itself where it is run as it is.
    setting: of a study of a recipe, how tables and figures call the variant ("variant") and the grid's keys; empty
        where the method is run as it is.
    """

    of: str
    value: int | float | None
    name: str
    setting: dict[str, str] = {}


class _Registry(RootModel[dict[str, dict[str, Any]]]):
    pass


class _ModelBox(Strict):
    entry: ModelEntry


class _MethodBox(Strict):
    entry: MethodEntry


class _RecipeBox(Strict):
    entry: RecipeEntry


@dataclass(frozen=True)
class Workflow:
    """A config with its registries, checked as a whole. Build it with ``load``."""

    config: Config
    datasets: dict[str, DatasetEntry]
    models: dict[str, EncoderEntry | DecoderEntry]
    methods: dict[str, Method]
    prompts: dict[str, Prompt]
    recipes: dict[str, Recipe | PerEncoder]
    judges: dict[str, Judge]
    published: tuple[Published, ...] = ()

    def runs(self, dataset: str | None = None, study: str | None = None) -> list[Run]:
        """Every run that the comparison (or one study) asks for, in the order of its lists.

        Deterministic methods run one seed.
        """
        out = []
        names = self.config.methods if study is None else [one.name for one in self.variants(study)]
        asked = (study and self.config.studies[study].seeds) or self.config.seeds
        for data in [dataset] if dataset else self.config.datasets:
            for name in names:
                seeds = self.config.seeds[:1] if self.deterministic(name) else asked
                out += [Run(data, name, models, seed) for models in self.models_of(name) for seed in seeds]
        return out

    def source_of(self, name: str) -> str:
        """The method whose texts, phases and models a method has: itself, or the one that a control names."""
        return self.methods[name].source(name)

    def text_of(self, name: str) -> str | None:
        """What stands for a session where a method ranks it; None where no text does."""
        return self.methods[name].text(self.methods)

    def deterministic(self, name: str) -> bool:
        """Whether a method draws nothing, so that one seed stands for all."""
        return self.methods[name].one_seed(self.methods)

    def shuffled(self, name: str) -> bool:
        """Whether a method ranks each session by another user's profile."""
        return self.text_of(name) == "shuffled-profiles"

    def models_of(self, name: str) -> list[str]:
        """The ``{models}`` path segments that a method is run with."""
        return self.methods[self.source_of(name)].models(self.config)

    @property
    def readable(self) -> list[str]:
        """The methods whose profiles `make interpret` measures, the reference first."""
        told = self.config.interpretability
        named = told.methods or [name for name in self.config.methods if self.one_profile(name)]
        return [name for name in named if name == told.reference] + [name for name in named if name != told.reference]

    def one_profile(self, name: str) -> bool:
        """Whether a method has one profile for each session: its own, or another user's."""
        return self.methods[name].one_profile(self.methods)

    @property
    def reference(self) -> str:
        """The method that every other one of the comparison is tested against."""
        methods = self.config.methods
        return self.config.comparison.reference or ("langptune-0" if "langptune-0" in methods else methods[0])

    @property
    def verifier(self) -> str | None:
        """The model that tells whether a history supports a claim; None in a run without decoders that names none."""
        return self.config.interpretability.verifier or next(iter(self.config.decoders), None)

    @property
    def reader(self) -> str | None:
        """The model that reads profiles to find the next item; None in a run without encoders that names none."""
        local = [name for name in self.config.encoders if self.models[name].source.endpoint is None]
        return self.config.interpretability.reader or next(iter(local or self.config.encoders), None)

    @property
    def interpreters(self) -> list[str]:
        """The models that `make interpret` needs beside the run's own; none where the run has no profiles."""
        if not self.readable:
            return []
        judges = [self.judges[judge].model for judge in self.config.interpretability.judges]
        return [name for name in (self.verifier, self.reader, *judges) if name is not None]

    def variants(self, study: str) -> list[Variant]:
        """The methods of one study."""
        told = self.config.studies[study]
        if told.key == "models":
            return [Variant(name, None, name) for name in told.methods]
        if told.key != "recipe":
            return [
                Variant(name, value, variant(name, told.key, value)) for name in told.methods for value in told.values
            ]
        out = []
        for name in told.methods:
            if told.recipe not in getattr(self.methods[name], "phases", []):
                out.append(Variant(name, None, name))
                continue
            for slug, title, change in told.changes():
                entry = self.recipes[f"{told.recipe}.{slug}"].model_dump()
                cell = {key: _shown(entry[key]) for key in told.grid}
                rest = ", ".join(list(cell.values())[:-1]) if change.keys() == told.grid.keys() else title
                out.append(Variant(name, None, f"{name}.{slug}", {"variant": rest or title, **cell}))
        return out

    def published_of(self, dataset: str) -> dict[tuple[str, str, str], Published]:
        """Published numbers beside the comparison's rows on a dataset: (method, models, metric) -> number.

        A published method without models stands beside ours whatever it is run with.
        """
        comparison = self.config.comparison
        name = comparison.published_as.get(dataset, dataset)
        told = {(p.method, p.models, p.metric): p for p in self.published if p.dataset == name and not p.key}
        cells = [(run.method, run.models, metric) for run in self.runs(dataset) for metric in comparison.metrics]
        found = {cell: told.get(cell) or told.get((cell[0], "", cell[2])) for cell in cells}
        return {cell: number for cell, number in found.items() if number is not None}

    def phase_of(self, dataset: str, method: str, models: str) -> Phase:
        """The phase that a profile or text method is evaluated after; ``models`` is the run's path segment."""
        entry = self.methods[method]
        iteration = tuple(self.recipe_of(name, models.split("+")[0]) for name in entry.phases)
        return entry.phase(self.datasets[dataset].prompt, iteration)

    def recipe_of(self, name: str, encoder: str) -> tuple[str, Recipe]:
        """Name and content of the recipe that an entry of recipes.yaml stands for with an encoder."""
        return self.recipes[name].resolve(name, encoder, self.recipes)

    def prompt_of(self, dataset: str, method: str) -> str:
        """The name of the prompt template that a profile method uses on a dataset."""
        return self.methods[method].prompt or self.datasets[dataset].prompt


def variant(method: str, key: str, value: int | float) -> str:
    """The name of a study's derived method."""
    return f"{method}.{key}-{value:g}"


def load(config: dict[str, Any], root: Path, where: str = "config") -> Workflow:
    """A checked workflow from a merged config (Snakemake's ``config``) and the registries it names.

    Raises:
        UserError: one line with file, key, value and the nearest valid key.
    """
    settings = validate(Config, config, where)
    folder = Path(root) / settings.registries
    datasets = _with_overrides(
        DatasetEntry, folder / "datasets.yaml", settings.dataset_overrides, "dataset", "protocol", where
    )
    models = {
        name: validate(_ModelBox, {"entry": entry}, f"{folder / 'models.yaml'}: {name}").entry
        for name, entry in _registry(folder / "models.yaml").items()
    }
    methods = _with_overrides(_MethodBox, folder / "methods.yaml", settings.overrides, "method", "settings", where)
    recipes = _with_overrides(
        _RecipeBox, folder / "recipes.yaml", settings.recipe_overrides, "recipe", RECIPE_MAPPINGS, where
    )
    for study, told in settings.studies.items():
        if not sound_name(study):
            raise UserError(f"{where}: studies: {study[:80]!r}: {NAME_RULE}")
        recipes |= _derived_recipes(study, told, recipes, where)
        methods |= _derived(study, told, methods, where)
    prompts = {
        name: validate(Prompt, entry, f"{folder / 'prompts.yaml'}: {name}")
        for name, entry in _registry(folder / "prompts.yaml").items()
    }
    if not settings.tune:
        methods = {name: method.untuned() for name, method in methods.items()}
    published = _published(settings, Path(root), methods, models, where)
    judges = read_judges(folder, models)
    workflow = Workflow(settings, datasets, models, methods, prompts, recipes, judges, published)
    _cross_check(workflow, where)
    return workflow


def _published(
    config: Config, root: Path, methods: Collection[str], models: dict[str, EncoderEntry | DecoderEntry], where: str
) -> tuple[Published, ...]:
    """The numbers in the file that ``comparison.published`` names; none where it names none."""
    told = config.comparison
    if told.published is None:
        if told.published_as:
            raise UserError(f"{where}: comparison.published_as needs comparison.published, the file that it is about")
        return ()
    encoders, decoders = ([name for name, m in models.items() if m.role == role] for role in ("encoder", "decoder"))
    out = read_published(root / told.published, methods, encoders, decoders)
    there = sorted({number.dataset for number in out})
    for ours, theirs in told.published_as.items():
        at = f"{where}: comparison.published_as"
        if ours not in config.datasets:
            raise UserError(f"{at}: '{ours}' is not among this run's datasets{nearest(ours, config.datasets)}")
        if theirs not in there:
            raise UserError(f"{at}: {ours}: {told.published} has no dataset '{theirs}'{nearest(theirs, there)}")
    return out


def _registry(path: Path) -> dict[str, dict[str, Any]]:
    entries = validate(_Registry, read_yaml(path), str(path)).root
    for name in entries:
        if not sound_name(name) or name in RESERVED:
            raise UserError(
                f"{path}: entry {name[:80]!r}: {NAME_RULE}; and it is none of {', '.join(sorted(RESERVED))}"
            )
    return entries


def _with_overrides(
    model: type[Strict],
    path: Path,
    over: dict[str, dict[str, Any]],
    what: str,
    nested: str | tuple[str, ...],
    where: str,
) -> dict[str, Any]:
    """The checked entries of a registry, with the keys that a config changes."""
    raw = _registry(path)
    key = "overrides" if what == "method" else f"{what}_overrides"
    for name in over:
        if name not in raw:
            raise UserError(f"{where}: {key}: unknown {what} '{name}'{nearest(name, list(raw))}")
    boxed = "entry" in model.model_fields
    out = {}
    for name, entry in raw.items():
        if what == "recipe":
            entry = _like(raw, over, name, nested, path)
        merged = _merge(entry, over.get(name, {}), nested)
        at = f"{path}: {name}" + (f" (with {where}: {key})" * (name in over))
        checked = validate(model, {"entry": merged} if boxed else merged, at)
        out[name] = checked.entry if boxed else checked  # type: ignore[attr-defined]
    return out


def _like(
    raw: dict[str, dict[str, Any]],
    over: dict[str, dict[str, Any]],
    name: str,
    nested: str | tuple[str, ...],
    path: Path,
    behind: tuple[str, ...] = (),
) -> dict[str, Any]:
    """An entry with the keys of the one that it is ``like``, overridden as that one is; all but the title.

    Args:
        behind: the entries that led here.

    Raises:
        UserError: an entry that does not exist, or that is like itself.
    """
    own = dict(raw[name])
    if "like" not in own:
        return own
    base, behind = own.pop("like"), (*behind, name)
    if not isinstance(base, str) or base not in raw:
        raise UserError(f"{path}: {name}: like: unknown recipe '{base}'{nearest(str(base), list(raw))}")
    if base in behind:
        raise UserError(f"{path}: {name}: like: '{base}' is like '{name}' itself; write one of them out")
    taken = _merge(_like(raw, over, base, nested, path, behind), over.get(base, {}), nested)
    taken.pop("title", None)
    return _merge(taken, own, nested)


def _merge(entry: dict[str, Any], over: dict[str, Any], nested: str | tuple[str, ...] = "settings") -> dict[str, Any]:
    """An entry with some keys changed; the mappings under ``nested`` are merged key by key."""
    merged = {**entry, **over}
    for key in (nested,) if isinstance(nested, str) else nested:
        if isinstance(entry.get(key), dict) and isinstance(over.get(key), dict):
            merged[key] = {**entry[key], **over[key]}
    return merged


def _derived_recipes(study: str, told: Study, recipes: dict[str, Any], where: str) -> dict[str, Any]:
    """The recipes of a study of a recipe."""
    if told.key != "recipe":
        return {}
    at = f"{where}: studies: {study}"
    if told.recipe not in recipes:
        raise UserError(f"{at}: recipe: unknown recipe '{told.recipe}'{nearest(str(told.recipe), list(recipes))}")
    base = recipes[told.recipe]
    if base.trains is None:
        raise UserError(
            f"{at}: recipe: '{told.recipe}' goes by the encoder; name one of {', '.join(base.recipes.values())}"
        )
    try:
        changes = told.changes()
    except ValueError as error:
        raise UserError(f"{at}: {error}") from None
    out = {}
    for slug, title, change in changes:
        entry = {**_merge(base.model_dump(), change, RECIPE_MAPPINGS), "title": f"{base.title}, {title}"}
        name = f"{told.recipe}.{slug}"
        out[name] = validate(_RecipeBox, {"entry": entry}, f"{at}: {title}").entry
        if recipes.get(name, out[name]) != out[name]:
            raise UserError(f"{at}: '{title}' is another variant of '{told.recipe}' elsewhere; rename one of them")
    return out


def _check_tokens(workflow: Workflow, study: str, where: str) -> None:
    """Variants of a reinforcement recipe write at most equally many tokens, else they are no comparison of the rest."""
    told = workflow.config.studies[study]
    for method in told.methods if told.key == "recipe" else ():
        written: dict[int, str] = {}
        for one in workflow.variants(study):
            entry = workflow.methods[one.name]
            recipe = workflow.recipes.get(f"{told.recipe}{one.name.removeprefix(one.of)}")
            if one.of != method or not one.setting or recipe is None or recipe.trains != "encoder":
                continue
            longest = recipe.max_tokens or entry.max_tokens
            written.setdefault(recipe.batches * recipe.sessions_per_batch * recipe.samples * longest, one.name)
        if len(written) > 1:
            (first, name), (second, other) = list(written.items())[:2]
            raise UserError(
                f"{where}: studies: {study}: '{name}' writes at most {first:,} tokens and '{other}' {second:,}; make "
                "batches x sessions_per_batch x samples x max_tokens the same for all"
            )


def _derived(study: str, told: Study, methods: dict[str, Method], where: str) -> dict[str, Method]:
    """The methods of one study, each with its key or its recipe changed."""
    out = {}
    for name in told.methods:
        at = f"{where}: studies: {study}"
        if name not in methods:
            raise UserError(f"{at}: unknown method '{name}'{nearest(name, list(methods))}")
        if told.key == "models":
            continue
        if told.key == "recipe":
            phases = getattr(methods[name], "phases", [])
            for slug, title, _ in told.changes() if told.recipe in phases else ():
                chain = [f"{told.recipe}.{slug}" if phase == told.recipe else phase for phase in phases]
                entry = {**methods[name].model_dump(), "phases": chain, "title": f"{methods[name].title}, {title}"}
                out[f"{name}.{slug}"] = validate(_MethodBox, {"entry": entry}, f"{at}: {title}").entry
            continue
        if told.key not in type(methods[name]).model_fields:
            raise UserError(f"{at}: method '{name}' has no key '{told.key}'; leave it out of this study")
        for value in told.values:
            entry = {**methods[name].model_dump(), told.key: value}
            label = f"{methods[name].title}, {told.key.replace('_', ' ')} {value:g}"
            changed = validate(_MethodBox, {"entry": {**entry, "title": label}}, f"{at}: {told.key}: {value}").entry
            out[variant(name, told.key, value)] = changed
    if told.key == "recipe" and not out:
        raise UserError(f"{where}: studies: {study}: none of its methods has '{told.recipe}' among its phases")
    return out


def _check_titles(workflow: Workflow, where: str) -> None:
    """No two methods, models or judges of a run have one title: tables, figures and pages would show them as one."""
    config = workflow.config
    studied = [one.name for study in config.studies for one in workflow.variants(study)]
    for what, key, names, entries in (
        ("methods", "overrides", [*config.methods, *studied], workflow.methods),
        ("models", "models.yaml", [*config.encoders, *config.decoders], workflow.models),
        ("judges", "judges.yaml", config.interpretability.judges, workflow.judges),
    ):
        seen: dict[str, str] = {}
        for name in dict.fromkeys(names):
            # Pages fold white space, so that titles that differ in it alone look the same.
            title = " ".join(entries[name].title.split())
            other = seen.setdefault(title, name)
            if other != name:
                raise UserError(
                    f"{where}: {what} '{other}' and '{name}' have the same title '{title}'; change one of them ({key})"
                )


def _check_interpretability(workflow: Workflow, where: str) -> None:
    told, at = workflow.config.interpretability, f"{where}: interpretability"
    for name in told.methods:
        if name not in workflow.config.methods:
            raise UserError(f"{at}.methods: '{name}' is not run here{nearest(name, workflow.config.methods)}")
        if not workflow.one_profile(name):
            raise UserError(f"{at}.methods: '{name}' has not one profile for each session; leave it out")
    if told.methods and told.reference not in told.methods:
        raise UserError(f"{at}.reference: '{told.reference}' is not among interpretability.methods; add it there")
    for key, name, roles in (
        ("verifier", told.verifier, ("verifier", "decoder")),
        ("reader", told.reader, ("encoder", "decoder")),
    ):
        known = [model for model, entry in workflow.models.items() if entry.role in roles]
        if name is not None and name not in known:
            raise UserError(f"{at}.{key}: unknown entry '{name}'{nearest(name, known)}")
    for name in told.judges:
        if name not in workflow.judges:
            raise UserError(f"{at}.judges: unknown entry '{name}'{nearest(name, list(workflow.judges))}")
    if workflow.readable and workflow.models[workflow.reader].source.endpoint is not None:
        raise UserError(
            f"{at}.reader: '{workflow.reader}' is an endpoint, which tells no likelihoods; name a local model"
        )
    if told.reader in workflow.config.decoders:
        raise UserError(
            f"{at}.reader: '{told.reader}' is a decoder of this run, by which profiles are trained; take a reader that "
            "cannot be overfitted to: an encoder, or another decoder"
        )


def _cross_check(workflow: Workflow, where: str) -> None:
    config = workflow.config
    for key, names, known in (
        ("datasets", config.datasets, list(workflow.datasets)),
        ("methods", config.methods, list(workflow.methods)),
        ("encoders", config.encoders, [n for n, m in workflow.models.items() if m.role == "encoder"]),
        ("decoders", config.decoders, [n for n, m in workflow.models.items() if m.role == "decoder"]),
    ):
        for name in names:
            if name not in known:
                raise UserError(f"{where}: {key}: unknown entry '{name}'{nearest(name, known)}")
    for dataset in config.datasets:
        _check_limits(workflow, dataset)
    studied = [one.name for study in config.studies for one in workflow.variants(study)]
    for study in config.studies:
        _check_tokens(workflow, study, where)
    for name in [*config.methods, *studied]:
        for problem in workflow.methods[name].problems(name, workflow):
            raise UserError(f"{where}: {problem}")
    # After the check that methods have their models: what is measured of profiles is read by these.
    _check_interpretability(workflow, where)
    _check_titles(workflow, where)
    comparison = config.comparison
    if workflow.reference not in config.methods:
        raise UserError(
            f"{where}: comparison.reference: '{workflow.reference}' is not among this run's methods"
            + nearest(workflow.reference, config.methods)
        )
    _check_contrasts(config, where)
    for dataset in config.datasets:
        expected = workflow.datasets[dataset].expect
        for metric in comparison.metrics:
            k = metrics.parse(metric)[1]
            if expected is not None and k is not None and k > expected.items:
                raise UserError(
                    f"{where}: comparison.metrics: '{metric}': the cut-off is larger than the catalogue of "
                    f"{expected.items} items of '{dataset}'"
                )
    if comparison.main_metric not in comparison.metrics:
        raise UserError(
            f"{where}: comparison.main_metric: '{comparison.main_metric}' is not among comparison.metrics"
            + nearest(comparison.main_metric, comparison.metrics)
        )


def _check_contrasts(config: Config, where: str) -> None:
    """Contrasts are of methods of the run, and no two of them ask the same."""
    pairs: dict[frozenset[frozenset[str]], str] = {}
    for name, told in config.comparison.contrasts.items():
        at = f"{where}: comparison.contrasts: '{name}'"
        for key, method in (("of", told.of), ("against", told.against), *(("beyond", one) for one in told.beyond)):
            if method not in config.methods:
                raise UserError(
                    f"{at}: {key}: '{method}' is not among this run's methods{nearest(method, config.methods)}"
                )
        for one, two in ((told.of, told.against), *([told.beyond] if told.beyond else [])):
            if one == two:
                raise UserError(f"{at}: '{one}' stands on both sides; name two methods")
        sides = (frozenset((told.of, told.against)), frozenset(told.beyond))
        if sides[0] == sides[1]:
            raise UserError(f"{at}: beyond: the same two methods as of and against; name others")
        other = pairs.setdefault(frozenset(sides), name)
        if other != name:
            raise UserError(f"{at}: the same methods as '{other}'; keep one, or the correction would count both")


def _check_limits(workflow: Workflow, dataset: str) -> None:
    """The models and the prompt by which a dataset's texts are counted exist."""
    entry = workflow.datasets[dataset]
    limits = getattr(entry.protocol, "limits", None)
    if limits is None:
        return
    for role in ("encoder", "decoder"):
        known = [name for name, model in workflow.models.items() if model.role == role]
        if (name := getattr(limits, role)) not in known:
            raise UserError(
                f"datasets.yaml: {dataset}: protocol.limits.{role}: unknown entry '{name}'{nearest(name, known)}"
            )
    if workflow.models[limits.encoder].source.endpoint is not None:
        raise UserError(
            f"datasets.yaml: {dataset}: protocol.limits.encoder: '{limits.encoder}' is an endpoint, whose tokenizer is "
            "not here; name an encoder with files"
        )
    if entry.prompt not in workflow.prompts:
        raise UserError(
            f"datasets.yaml: {dataset}: unknown prompt '{entry.prompt}'{nearest(entry.prompt, list(workflow.prompts))}"
        )
