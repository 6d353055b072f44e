"""The config of a run: its datasets, models, methods and seeds, and their comparison."""

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
"""Keys of recipes that are mappings; a config changes them key by key."""
RESERVED = {"data", "comparison", "models", "phases", "report", "reference", "answers"}


class Generation(Strict):
    """How profiles are generated.

    Shards do not change results; batch size, dtype and threads may change rounding, and with it the text
    (docs/numerics.md).
    """

    shards: Annotated[int, Field(ge=1)] = Field(1, description="jobs among which a run's profiles are divided")
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="profiles that are generated at once")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="floating-point format of the weights; auto: the fastest that the hardware supports"
    )
    threads: Annotated[int, Field(ge=1)] = Field(2, description="CPU threads of one profile job")
    max_usd: Annotated[float, Field(ge=0, strict=False)] = Field(
        10.0, description="maximum cost of one profile job, in US dollars, if the encoder is an endpoint"
    )


class Training(Strict):
    """How phases are trained."""

    threads: Annotated[int, Field(ge=1)] = Field(2, description="CPU threads of one training job")
    retries: Annotated[int, Field(ge=0)] = Field(
        2, description="how often a failed or stopped training job is started again, from its checkpoint"
    )
    popularity_weights: Annotated[
        list[Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)]], Field(min_length=1)
    ] = Field(
        [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3],
        description="candidate weights of popularity in the score for methods with `popularity: auto`; chosen by NDCG "
        "without cut-off on validation",
    )


class Contrast(Strict):
    """Two methods of the run, whose difference is tested. `[langptune, pop]` is short for `of` and `against`.

    `beyond` tests whether this difference differs from that of two other methods.
    """

    of: str = Field(description="first method")
    against: str = Field(description="method to compare with: differences are `of` minus `against`")
    beyond: list[str] = Field(
        [],
        description="two other methods, `[first, second]`: the test is then of a difference of differences, (`of` - "
        "`against`) minus (first - second)",
    )
    title: str = Field("", description="question that the contrast answers, in a few words")

    @field_validator("beyond")
    @classmethod
    def _two(cls, value: list[str]) -> list[str]:
        if len(value) not in (0, 2):
            raise ValueError(f"it takes two methods, found {len(value)}; write [of, against]")
        return value

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(value) != 2:
                raise ValueError(f"a contrast takes two methods, found {len(value)}; write [of, against]")
            return {"of": value[0], "against": value[1]}
        return value


class Comparison(Strict):
    """What the tables of the comparison report."""

    metrics: list[str] = Field(list(metrics.DEFAULT), description="metrics in the tables")
    main_metric: str = Field("ndcg@10", description="metric that sorts the tables, and that plots show")
    reference: str | None = Field(
        None,
        description="method against which every other method is tested, paired by session; with several "
        "models, each row is tested against the reference with the same models; null: langptune-0 if it is run, "
        "otherwise the first method",
    )
    contrasts: dict[str, Contrast] = Field(
        {},
        description="name -> two methods whose difference is tested, paired by session and seed, each with its own "
        "models; Holm-corrected over all contrasts within each metric",
    )
    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="number of resamples of sessions and seeds")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="level of the confidence intervals")
    seed: int = Field(0, description="seed of the resamples")
    published: str | None = Field(
        None,
        description="CSV file of published numbers that are shown beside ours, such as results/reference/published.csv",
    )
    published_as: dict[str, str] = Field({}, description="dataset -> its name in that file, if it differs")

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            try:
                metrics.parse(name)
            except UserError as error:
                raise ValueError(str(error)) from None
        if len(set(value)) != len(value):
            raise ValueError("a metric is repeated; keep one")
        return value


class Interpretability(Strict):
    """What `make interpret` measures of profiles (docs/interpretability.md). None of it takes part in training."""

    reference: str = Field("langptune-0", description="profile method with which every other one is compared")
    methods: list[str] = Field(
        [], description="profile methods, and controls that shuffle their profiles; empty: all of the run"
    )
    sessions: Annotated[int, Field(ge=2)] = Field(
        100, description="number of test sessions that are measured, drawn at random"
    )
    verifier: str | None = Field(
        None,
        description="model that decides whether a history supports a claim: an entry of models.yaml with role "
        "verifier (natural-language inference) or decoder (similarity); null: the run's first decoder, untrained",
    )
    strangers: Annotated[int, Field(ge=1)] = Field(
        20,
        description="number of other users' histories that each claim is also checked against; a claim that is true "
        "of everyone is uninformative",
    )
    reader: str | None = Field(
        None,
        description="model that identifies the next item from the profile alone: an encoder (by likelihood), or a "
        "decoder that the run does not use; null: the run's first encoder with local weights, untrained",
    )
    candidates: Annotated[int, Field(ge=2)] = Field(
        10, description="number of items from which the reader chooses, including the true one"
    )
    tastes: Annotated[int, Field(ge=1)] = Field(
        4, description="number of genres or tags by which each profile is edited"
    )
    judges: list[str] = Field([], description="entries of config/judges.yaml; empty: no judge")
    judge_sessions: Annotated[int, Field(ge=1)] = Field(
        20, description="number of sessions whose profiles the judges compare"
    )
    judge_max_usd: Annotated[float, Field(ge=0, strict=False)] = Field(
        1.0, description="maximum cost of one judge for one method and seed, in US dollars"
    )
    survey_questions: Annotated[int, Field(ge=1)] = Field(
        12, description="number of pairs of profiles in a questionnaire"
    )
    examples: Annotated[int, Field(ge=1)] = Field(
        12, description="number of sessions on the page of examples, drawn at random"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of all these draws")


class Study(Strict):
    """One key of some methods over several values, or keys of a recipe, with its own figure.

    A study of a recipe trains each method with every combination of ``grid``, and once for each of ``variants``.
    Variants of a reinforcement recipe must then have the same token limit. Methods without the recipe are run
    unchanged, for comparison.
    """

    title: str = Field(description="title of the figure")
    key: Literal["train_fraction", "max_tokens", "history_items", "models", "recipe"] = Field(
        description="key of the methods that varies; models: all pairs of the run's encoders and decoders; recipe: "
        "keys of the entry `recipe`"
    )
    values: list[int | float] = Field(
        [], description="values of the key; empty for models and recipe", validate_default=True
    )
    recipe: str | None = Field(None, description="key recipe: entry of recipes.yaml that varies")
    grid: dict[str, Annotated[list[str | int | float | bool | None], Field(min_length=1)]] = Field(
        {}, description="key recipe: keys of that entry -> values; each combination is one recipe"
    )
    variants: dict[str, dict[str, Any]] = Field(
        {},
        description="key recipe: name -> changed keys of that entry; `train`, `terms`, `guard` and `settings` merge "
        "by key",
    )
    methods: Annotated[list[str], Field(min_length=1)] = Field(description="entries of methods.yaml")
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] | None = Field(
        None, description="seeds of the study; null: those of the run"
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
        """Name, title and changed keys of each variant in a study of a recipe.

        Raises:
            ValueError: two variants with the same name.
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
                raise ValueError(f"two variants have the name '{slug}'; rename one, or list each value once")
        return [(slug, title, change) for slug, (_, title, change) in zip(slugs, out, strict=True)]


def _shown(value: Any) -> str:
    """A value of a recipe's key in names and titles."""
    return "null" if value is None else f"{value:g}" if type(value) in (int, float) else str(value)


class Config(Strict):
    """One run of the workflow. Keys that are left out have the defaults below."""

    results: str = Field("results", description="folder of all results")
    models_dir: str = Field("results/models", description="folder of materialised models; may be shared between runs")
    raw_dir: str = Field("results/raw", description="folder of downloaded raw data; may be shared between runs")
    registries: str = Field("config", description="folder of the registries, such as datasets.yaml and models.yaml")
    datasets: Annotated[list[str], Field(min_length=1)] = Field(description="entries of datasets.yaml")
    encoders: list[str] = Field([], description="entries of models.yaml with role encoder; they write profiles")
    decoders: list[str] = Field([], description="entries of models.yaml with role decoder; they rank items")
    methods: Annotated[list[str], Field(min_length=1)] = Field(description="entries of methods.yaml")
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = Field(
        [0], description="seeds of training and sampling; each gives one run of each method that is not deterministic"
    )
    sample: Sample = Field(Sample(), description="sizes of the samples of sessions")
    tune: bool = Field(True, description="try each method's validation grid; false: use its `settings` only")
    overrides: dict[str, dict[str, Any]] = Field(
        {},
        description="method -> changed keys of its entry in methods.yaml; `settings` merges by key",
    )
    dataset_overrides: dict[str, dict[str, Any]] = Field(
        {},
        description="dataset -> changed keys of its entry in datasets.yaml; `protocol` merges by key. Example, a "
        "folder of raw files: {movies-tv: {source: {folder: /data/amazon}}}",
    )
    recipe_overrides: dict[str, dict[str, Any]] = Field(
        {},
        description="recipe -> changed keys of its entry in recipes.yaml; `train`, `terms`, `guard` and `settings` "
        "merge by key",
    )
    studies: dict[str, Study] = Field({}, description="name -> one key of some methods over several values")
    generation: Generation = Field(Generation(), description="how profiles are generated")
    training: Training = Field(Training(), description="how phases are trained")
    comparison: Comparison = Field(Comparison(), description="what the tables report")
    interpretability: Interpretability = Field(Interpretability(), description="what `make interpret` measures")

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
            raise ValueError("an entry is repeated; keep one")
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

    of: the original method.
    value: value of the key; None if models or a recipe vary.
    name: the derived method; ``of`` itself if it is run unchanged.
    setting: in a study of a recipe, the variant's name in tables and figures ("variant") and the values of the grid's
        keys; empty if the method is run unchanged.
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
        """All runs of the comparison, or of one study, in the order of its lists.

        Deterministic methods run with one seed.
        """
        out = []
        names = self.config.methods if study is None else [one.name for one in self.variants(study)]
        all_seeds = (study and self.config.studies[study].seeds) or self.config.seeds
        for data in [dataset] if dataset else self.config.datasets:
            for name in names:
                seeds = self.config.seeds[:1] if self.deterministic(name) else all_seeds
                out += [Run(data, name, models, seed) for models in self.models_of(name) for seed in seeds]
        return out

    def source_of(self, name: str) -> str:
        """The method whose texts, phases and models a method uses: itself, or the one that a control names."""
        return self.methods[name].source(name)

    def text_of(self, name: str) -> str | None:
        """The kind of text that represents a session for a method; None if the method has no text."""
        return self.methods[name].text(self.methods)

    def deterministic(self, name: str) -> bool:
        """Whether a method uses no random numbers, so that one seed is enough."""
        return self.methods[name].one_seed(self.methods)

    def shuffled(self, name: str) -> bool:
        """Whether a method ranks each session with another user's profile."""
        return self.text_of(name) == "shuffled-profiles"

    def models_of(self, name: str) -> list[str]:
        """The ``{models}`` path segments of a method's runs."""
        return self.methods[self.source_of(name)].models(self.config)

    @property
    def readable(self) -> list[str]:
        """The methods whose profiles `make interpret` measures, the reference first."""
        interpretability = self.config.interpretability
        names = interpretability.methods or [name for name in self.config.methods if self.one_profile(name)]
        return sorted(names, key=lambda name: name != interpretability.reference)

    def one_profile(self, name: str) -> bool:
        """Whether a method has one profile for each session: its own, or another user's."""
        return self.methods[name].one_profile(self.methods)

    @property
    def reference(self) -> str:
        """The method with which every other method of the comparison is compared."""
        methods = self.config.methods
        return self.config.comparison.reference or ("langptune-0" if "langptune-0" in methods else methods[0])

    @property
    def verifier(self) -> str | None:
        """The model that decides whether a history supports a claim; None if the run has no decoder and names none."""
        return self.config.interpretability.verifier or next(iter(self.config.decoders), None)

    @property
    def reader(self) -> str | None:
        """The model that identifies the next item from a profile; None if the run has no encoder and names none."""
        local = [name for name in self.config.encoders if self.models[name].source.endpoint is None]
        return self.config.interpretability.reader or next(iter(local or self.config.encoders), None)

    @property
    def interpreters(self) -> list[str]:
        """Verifier, reader and judges' models of `make interpret`; empty if the run has no profiles."""
        if not self.readable:
            return []
        judges = [self.judges[judge].model for judge in self.config.interpretability.judges]
        return [name for name in (self.verifier, self.reader, *judges) if name is not None]

    def variants(self, study: str) -> list[Variant]:
        """The methods of one study."""
        definition = self.config.studies[study]
        if definition.key == "models":
            return [Variant(name, None, name) for name in definition.methods]
        if definition.key != "recipe":
            return [
                Variant(name, value, variant(name, definition.key, value))
                for name in definition.methods
                for value in definition.values
            ]
        out = []
        for name in definition.methods:
            if definition.recipe not in getattr(self.methods[name], "phases", []):
                out.append(Variant(name, None, name))
                continue
            for slug, title, change in definition.changes():
                entry = self.recipes[f"{definition.recipe}.{slug}"].model_dump()
                cell = {key: _shown(entry[key]) for key in definition.grid}
                rest = ", ".join(list(cell.values())[:-1]) if change.keys() == definition.grid.keys() else title
                out.append(Variant(name, None, f"{name}.{slug}", {"variant": rest or title, **cell}))
        return out

    def published_of(self, dataset: str) -> dict[tuple[str, str, str], Published]:
        """Published numbers for the comparison's rows on a dataset: (method, models, metric) -> number.

        A published number without models is shown for all models of its method.
        """
        comparison = self.config.comparison
        name = comparison.published_as.get(dataset, dataset)
        numbers = {(p.method, p.models, p.metric): p for p in self.published if p.dataset == name and not p.key}
        cells = [(run.method, run.models, metric) for run in self.runs(dataset) for metric in comparison.metrics]
        found = {cell: numbers.get(cell) or numbers.get((cell[0], "", cell[2])) for cell in cells}
        return {cell: number for cell, number in found.items() if number is not None}

    def phase_of(self, dataset: str, method: str, models: str) -> Phase:
        """The phase after which a profile or text method is evaluated; ``models`` is the run's path segment."""
        entry = self.methods[method]
        iteration = tuple(self.recipe_of(name, models.split("+")[0]) for name in entry.phases)
        return entry.phase(self.datasets[dataset].prompt, iteration)

    def recipe_of(self, name: str, encoder: str) -> tuple[str, Recipe]:
        """Name and content of the recipe that an entry of recipes.yaml means for an encoder."""
        return self.recipes[name].resolve(name, encoder, self.recipes)

    def prompt_of(self, dataset: str, method: str) -> str:
        """The name of the prompt template that a profile method uses on a dataset."""
        return self.methods[method].prompt or self.datasets[dataset].prompt


def variant(method: str, key: str, value: int | float) -> str:
    """The name of a study's derived method."""
    return f"{method}.{key}-{value:g}"


def load(config: dict[str, Any], root: Path, where: str = "config") -> Workflow:
    """A checked workflow from a merged config (Snakemake's ``config``) and its registries.

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
    for study, definition in settings.studies.items():
        if not sound_name(study):
            raise UserError(f"{where}: studies: {study[:80]!r}: {NAME_RULE}")
        recipes |= _derived_recipes(study, definition, recipes, where)
        methods |= _derived(study, definition, methods, where)
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
    """The numbers in the file ``comparison.published``; empty if it is null."""
    comparison = config.comparison
    if comparison.published is None:
        if comparison.published_as:
            raise UserError(f"{where}: comparison.published_as needs comparison.published, the file with these names")
        return ()
    encoders, decoders = ([name for name, m in models.items() if m.role == role] for role in ("encoder", "decoder"))
    out = read_published(root / comparison.published, methods, encoders, decoders)
    there = sorted({number.dataset for number in out})
    for ours, theirs in comparison.published_as.items():
        at = f"{where}: comparison.published_as"
        if ours not in config.datasets:
            raise UserError(f"{at}: '{ours}' is not among this run's datasets{nearest(ours, config.datasets)}")
        if theirs not in there:
            raise UserError(f"{at}: {ours}: {comparison.published} has no dataset '{theirs}'{nearest(theirs, there)}")
    return out


def _registry(path: Path) -> dict[str, dict[str, Any]]:
    entries = validate(_Registry, read_yaml(path), str(path)).root
    for name in entries:
        if not sound_name(name) or name in RESERVED:
            raise UserError(f"{path}: entry {name[:80]!r}: {NAME_RULE}; reserved are {', '.join(sorted(RESERVED))}")
    return entries


def _with_overrides(
    model: type[Strict],
    path: Path,
    over: dict[str, dict[str, Any]],
    what: str,
    nested: str | tuple[str, ...],
    where: str,
) -> dict[str, Any]:
    """The checked entries of a registry, with a config's overrides."""
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
    """An entry merged over its ``like`` entry, with that entry's overrides and without its title.

    Args:
        behind: the entries whose ``like`` led to this one.

    Raises:
        UserError: an unknown entry, or a cycle.
    """
    own = dict(raw[name])
    if "like" not in own:
        return own
    base, behind = own.pop("like"), (*behind, name)
    if not isinstance(base, str) or base not in raw:
        raise UserError(f"{path}: {name}: like: unknown recipe '{base}'{nearest(str(base), list(raw))}")
    if base in behind:
        raise UserError(f"{path}: {name}: like: '{base}' is itself like '{name}'; write out the keys of one of them")
    inherited = _merge(_like(raw, over, base, nested, path, behind), over.get(base, {}), nested)
    inherited.pop("title", None)
    return _merge(inherited, own, nested)


def _merge(entry: dict[str, Any], over: dict[str, Any], nested: str | tuple[str, ...] = "settings") -> dict[str, Any]:
    """An entry with some keys changed; the mappings under ``nested`` are merged key by key."""
    merged = {**entry, **over}
    for key in (nested,) if isinstance(nested, str) else nested:
        if isinstance(entry.get(key), dict) and isinstance(over.get(key), dict):
            merged[key] = {**entry[key], **over[key]}
    return merged


def _derived_recipes(study: str, definition: Study, recipes: dict[str, Any], where: str) -> dict[str, Any]:
    """The recipes of a study of a recipe."""
    if definition.key != "recipe":
        return {}
    at = f"{where}: studies: {study}"
    if definition.recipe not in recipes:
        raise UserError(
            f"{at}: recipe: unknown recipe '{definition.recipe}'{nearest(str(definition.recipe), list(recipes))}"
        )
    base = recipes[definition.recipe]
    if base.trains is None:
        raise UserError(
            f"{at}: recipe: '{definition.recipe}' depends on the encoder; name one of "
            f"{', '.join(base.recipes.values())}"
        )
    try:
        changes = definition.changes()
    except ValueError as error:
        raise UserError(f"{at}: {error}") from None
    out = {}
    for slug, title, change in changes:
        entry = {**_merge(base.model_dump(), change, RECIPE_MAPPINGS), "title": f"{base.title}, {title}"}
        name = f"{definition.recipe}.{slug}"
        out[name] = validate(_RecipeBox, {"entry": entry}, f"{at}: {title}").entry
        if recipes.get(name, out[name]) != out[name]:
            raise UserError(
                f"{at}: '{title}' is also the name of a different variant of '{definition.recipe}'; rename one of them"
            )
    return out


def _check_tokens(workflow: Workflow, study: str, where: str) -> None:
    """Variants of a reinforcement recipe must have the same token limit; otherwise they would differ in that too."""
    definition = workflow.config.studies[study]
    for method in definition.methods if definition.key == "recipe" else ():
        written: dict[int, str] = {}
        for one in workflow.variants(study):
            entry = workflow.methods[one.name]
            recipe = workflow.recipes.get(f"{definition.recipe}{one.name.removeprefix(one.of)}")
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


def _derived(study: str, definition: Study, methods: dict[str, Method], where: str) -> dict[str, Method]:
    """The methods of one study, each with its key or its recipe changed."""
    out = {}
    for name in definition.methods:
        at = f"{where}: studies: {study}"
        if name not in methods:
            raise UserError(f"{at}: unknown method '{name}'{nearest(name, list(methods))}")
        if definition.key == "models":
            continue
        if definition.key == "recipe":
            phases = getattr(methods[name], "phases", [])
            for slug, title, _ in definition.changes() if definition.recipe in phases else ():
                chain = [f"{definition.recipe}.{slug}" if phase == definition.recipe else phase for phase in phases]
                entry = {**methods[name].model_dump(), "phases": chain, "title": f"{methods[name].title}, {title}"}
                out[f"{name}.{slug}"] = validate(_MethodBox, {"entry": entry}, f"{at}: {title}").entry
            continue
        if definition.key not in type(methods[name]).model_fields:
            raise UserError(f"{at}: method '{name}' has no key '{definition.key}'; leave it out of this study")
        for value in definition.values:
            entry = {**methods[name].model_dump(), definition.key: value}
            label = f"{methods[name].title}, {definition.key.replace('_', ' ')} {value:g}"
            changed = validate(
                _MethodBox, {"entry": {**entry, "title": label}}, f"{at}: {definition.key}: {value}"
            ).entry
            out[variant(name, definition.key, value)] = changed
    if definition.key == "recipe" and not out:
        raise UserError(f"{where}: studies: {study}: none of its methods has '{definition.recipe}' among its phases")
    return out


def _check_titles(workflow: Workflow, where: str) -> None:
    """Titles of a run's methods, models and judges must differ, so that tables, figures and pages distinguish them."""
    config = workflow.config
    studied = [one.name for study in config.studies for one in workflow.variants(study)]
    for what, key, names, entries in (
        ("methods", "overrides", [*config.methods, *studied], workflow.methods),
        ("models", "models.yaml", [*config.encoders, *config.decoders], workflow.models),
        ("judges", "judges.yaml", config.interpretability.judges, workflow.judges),
    ):
        seen: dict[str, str] = {}
        for name in dict.fromkeys(names):
            # Pages collapse white space, so that titles that differ only in it look the same.
            title = " ".join(entries[name].title.split())
            other = seen.setdefault(title, name)
            if other != name:
                raise UserError(
                    f"{where}: {what} '{other}' and '{name}' have the same title '{title}'; change one of them ({key})"
                )


def _check_interpretability(workflow: Workflow, where: str) -> None:
    interpretability, at = workflow.config.interpretability, f"{where}: interpretability"
    for name in interpretability.methods:
        if name not in workflow.config.methods:
            raise UserError(
                f"{at}.methods: '{name}' is not among this run's methods{nearest(name, workflow.config.methods)}"
            )
        if not workflow.one_profile(name):
            raise UserError(f"{at}.methods: '{name}' does not have exactly one profile per session; leave it out")
    if interpretability.methods and interpretability.reference not in interpretability.methods:
        raise UserError(
            f"{at}.reference: '{interpretability.reference}' is not among interpretability.methods; add it there"
        )
    for key, name, roles in (
        ("verifier", interpretability.verifier, ("verifier", "decoder")),
        ("reader", interpretability.reader, ("encoder", "decoder")),
    ):
        known = [model for model, entry in workflow.models.items() if entry.role in roles]
        if name is not None and name not in known:
            raise UserError(f"{at}.{key}: unknown entry '{name}'{nearest(name, known)}")
    for name in interpretability.judges:
        if name not in workflow.judges:
            raise UserError(f"{at}.judges: unknown entry '{name}'{nearest(name, list(workflow.judges))}")
    if workflow.readable and workflow.models[workflow.reader].source.endpoint is not None:
        raise UserError(
            f"{at}.reader: '{workflow.reader}' is an endpoint, which returns no likelihoods; name a local model"
        )
    if interpretability.reader in workflow.config.decoders:
        raise UserError(
            f"{at}.reader: '{interpretability.reader}' is a decoder of this run, for which profiles are "
            "trained; use a reader to which they cannot overfit: an encoder, or another decoder"
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
    # After the check of the methods' models: the measures of profiles use them.
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
    """Contrasts name methods of the run, and no two contrasts are the same."""
    pairs: dict[frozenset[frozenset[str]], str] = {}
    for name, contrast in config.comparison.contrasts.items():
        at = f"{where}: comparison.contrasts: '{name}'"
        for key, method in (
            ("of", contrast.of),
            ("against", contrast.against),
            *(("beyond", one) for one in contrast.beyond),
        ):
            if method not in config.methods:
                raise UserError(
                    f"{at}: {key}: '{method}' is not among this run's methods{nearest(method, config.methods)}"
                )
        for one, two in ((contrast.of, contrast.against), *([contrast.beyond] if contrast.beyond else [])):
            if one == two:
                raise UserError(f"{at}: '{one}' is on both sides; name two different methods")
        sides = (frozenset((contrast.of, contrast.against)), frozenset(contrast.beyond))
        if sides[0] == sides[1]:
            raise UserError(f"{at}: beyond: the same two methods as in of and against; name two others")
        other = pairs.setdefault(frozenset(sides), name)
        if other != name:
            raise UserError(f"{at}: the same methods as '{other}'; keep one, as the correction would count both")


def _check_limits(workflow: Workflow, dataset: str) -> None:
    """The models and the prompt that count a dataset's texts must exist."""
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
            f"datasets.yaml: {dataset}: protocol.limits.encoder: '{limits.encoder}' is an endpoint, without a local "
            "tokenizer; name an encoder with files"
        )
    if entry.prompt not in workflow.prompts:
        raise UserError(
            f"datasets.yaml: {dataset}: unknown prompt '{entry.prompt}'{nearest(entry.prompt, list(workflow.prompts))}"
        )
