"""The config of a run: its datasets, models, methods and seeds, and their comparison."""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from langptune import metrics
from langptune.config.base import Strict
from langptune.config.sample import Sample
from langptune.errors import UserError


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

    @property
    def methods(self) -> list[str]:
        """All methods that it needs."""
        return [self.of, self.against, *self.beyond]

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
    list_length: Annotated[int, Field(ge=2, le=50)] = Field(  # ranks.parquet keeps 50 (langptune.ranking.ranks.TOP)
        10, description="number of recommended items that the metrics of lists look at (coverage, diversity, ...)"
    )
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
    accuracy_of: str | None = Field(
        None,
        description="measured method of whose accuracy every other one's share is reported; null: langptune where it "
        "is measured, else the measured method with the best mean of comparison.main_metric",
    )
    steerability_of: str | None = Field(
        None, description="measured method of whose steerability every other one's share is reported; null: `reference`"
    )
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
    reference: str | None = Field(
        None,
        description="one of `methods` that the study does not vary; every other point is tested against it, paired by "
        "session, with Holm's correction within each metric. null: no tests",
    )
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
            name = ".".join(f"{key}-{shown(value)}" for key, value in change.items())
            out.append((name, ", ".join(f"{key} {shown(value)}" for key, value in change.items()), change))
        out += [(name, name, change) for name, change in self.variants.items()]
        slugs = [re.sub("[^A-Za-z0-9._-]+", "-", name) for name, *_ in out]
        for slug in slugs:
            if slugs.count(slug) > 1:
                raise ValueError(f"two variants have the name '{slug}'; rename one, or list each value once")
        return [(slug, title, change) for slug, (_, title, change) in zip(slugs, out, strict=True)]


def shown(value: Any) -> str:
    """A value of a recipe's key in names and titles."""
    return "null" if value is None else f"{value:g}" if type(value) in (int, float) else str(value)


class Memorisation(Strict):
    """What `make probe` asks the encoders for (docs/interpretability.md, Memorisation)."""

    items: Annotated[int, Field(ge=2)] = Field(200, description="number of items that are asked for, drawn at random")
    sessions: Annotated[int, Field(ge=2)] = Field(
        200, description="number of test sessions whose next item is asked for, drawn at random"
    )
    shown: Annotated[int, Field(ge=1)] = Field(
        10, description="a user's last interactions that the question on the next item shows"
    )
    seed: int = Field(0, description="seed of the draws")


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
    trials: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="number of validation trials of each method with `tune`: its own settings, then points drawn at "
        "random, with the first seed, from its lists and ranges (fewer where its lists have no more points); null: "
        "every point of the grid of its lists",
    )
    overrides: dict[str, dict[str, Any]] = Field(
        {},
        description="method -> changed keys of its entry in methods.yaml; `settings` and `edit_reading` merge by key",
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
    memorisation: Memorisation = Field(Memorisation(), description="what `make probe` asks the encoders for")

    @field_validator("results", "models_dir", "raw_dir")
    @classmethod
    def _folder(cls, value: str) -> str:
        if not value or any(letter in "{}" or not letter.isprintable() for letter in value):
            raise ValueError(
                "name a folder without braces, which Snakemake takes for wildcards, and without line breaks"
            )
        return value

    @model_validator(mode="after")
    def _tuned(self) -> Config:
        if self.trials is not None and not self.tune:
            raise ValueError(f"trials: {self.trials}, but `tune: false` tries nothing; leave one of them out")
        return self

    @field_validator("datasets", "encoders", "decoders", "methods", "seeds")
    @classmethod
    def _unique(cls, value: list) -> list:
        if len(set(value)) != len(value):
            raise ValueError("an entry is repeated; keep one")
        return value
