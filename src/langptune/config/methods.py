"""Registry entries of ``config/methods.yaml``: all methods of the benchmark, which turn sessions into ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import Field, create_model, model_validator

from langptune.config.base import Strict, nearest
from langptune.config.phases import Draw, Phase, Transfer
from langptune.config.recipes import Recipe
from langptune.errors import UserError
from langptune.registry import Registry

if TYPE_CHECKING:
    from langptune.config.settings import Config
    from langptune.config.workflow import Workflow

BASELINES = Registry("langptune.baselines")
"""Methods that rank without a text; each file is a kind of methods.yaml."""


class EncoderFrom(Strict):
    """A trained encoder of another dataset, for `encoder_from` of a profile method."""

    method: str = Field(description="profile method that trains the encoder; it need not be a method of the run")
    dataset: str = Field(description="dataset of the run on which it is trained; the method has no run on it")


class Method(Strict):
    """One method: it turns sessions into ranks.

    Other code uses these attributes and functions, and does not test a method's class. ``methods`` are the entries of
    the registry by name; a control needs them to look up the method that it names.

    ranked_by: the rule that computes its ranks.
    writes_profiles: an encoder writes profiles for it.
    cheap: its jobs take seconds, so that several share one allocation of a cluster.
    curve: it has a learning curve as well as ranks.
    """

    ranked_by: ClassVar[str]
    writes_profiles: ClassVar[bool] = False
    cheap: ClassVar[bool] = False
    curve: ClassVar[bool] = False

    title: str = Field(description="name in tables and plots")
    group: Literal["profiles", "text controls", "baselines", "bounds"] = Field(description="its block in the table")
    note: str = Field("", description="note on this row, one line under the table")

    def source(self, name: str) -> str:
        """The name of the method whose texts, phases and models this method uses: its own, ``name``."""
        return name

    def text(self, methods: Mapping[str, Method]) -> str | None:
        """Text of a session: ``profiles``, ``shuffled-profiles``, ``history`` or ``last-item``; None without a text."""
        return None

    def changes(self) -> str | None:
        """Its change of its source; None if it changes nothing."""
        return None

    def one_seed(self, methods: Mapping[str, Method]) -> bool:
        """Whether it uses no random numbers, so that one seed is enough."""
        return self.deterministic

    def one_profile(self, methods: Mapping[str, Method]) -> bool:
        """Whether it has one profile for each session: its own, or another user's."""
        return False

    def weight(self, methods: Mapping[str, Method]) -> float | Literal["auto"] | None:
        """The weight of popularity in its scores; None if it ranks without a text."""
        return None

    def weight_of_denials(self, methods: Mapping[str, Method]) -> float | Literal["auto"]:
        """The weight of denials in its texts; 0 if they are embedded whole, or it ranks without a text."""
        return 0.0

    def models(self, config: Config, methods: Mapping[str, Method]) -> list[str]:
        """The ``{models}`` path segments of its runs."""
        raise NotImplementedError

    def origin(self) -> EncoderFrom | None:
        """The method and dataset whose encoder writes its profiles; None if its encoder is its own, or it has none."""
        return None

    def runs_on(self, dataset: str, methods: Mapping[str, Method]) -> bool:
        """Whether it has runs on a dataset of the config."""
        return True

    @property
    def trained(self) -> bool:
        """Whether it ranks by texts with a trained encoder or decoder."""
        return False

    def parts(self) -> list[str]:
        """The methods whose scores or ranks it combines; empty if it ranks by its own."""
        return []

    def adds_scores(self) -> bool:
        """Whether it reads the scores of its parts, which are kept only for such a method."""
        return False

    def points(self, trials: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
        """The points that are tried on validation; empty if nothing is tuned. ``Workflow.points`` has the arguments."""
        return []

    def untuned(self) -> Self:
        """The method without its validation grid."""
        return self

    def check_names(self) -> None:
        """Check names that a library defines, if that library is installed.

        Raises:
            UserError: an unknown name.
        """

    def problems(self, name: str, workflow: Workflow) -> Iterator[str]:
        """Reasons why a workflow cannot run it, one line each. Later ones may be consequences of the first."""
        yield from ()


class _TrainedMethod(Method):
    """A method with training; without phases nothing is trained."""

    phases: list[str] = Field([], description="entries of config/recipes.yaml, in the order of one iteration")
    iterations: Annotated[int, Field(ge=1)] = Field(1, description="number of times that all phases are run (PAPER: K)")
    train_fraction: Annotated[float, Field(gt=0, le=1, strict=False)] = Field(
        1.0,
        description="share of the train sessions used in training, and as further targets of rewards; smaller shares "
        "are subsets of larger ones. The popularity of items is always that of all train sessions",
    )
    popularity: Literal["auto"] | Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)] = Field(
        "auto",
        description="weight of log(1 + train count of the item) in the score, added to the text's similarity / 0.05; "
        "auto: chosen on validation after the decoder's training (training.popularity_weights); 0: text alone",
    )
    denials: Literal["auto"] | Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)] = Field(
        0.0,
        description='weight of what a text denies ("They dislike horror"): denials are taken out of the text, and the '
        "similarity to what they deny is subtracted with this weight; training a decoder on profiles leaves them out. "
        "0: texts are embedded whole; auto: 0, 0.25, 0.5, 0.75 or 1, chosen with the weight of popularity, on "
        "validation profiles where there are profiles (of equal values the largest)",
    )

    ranked_by = "rank_texts"

    def weight(self, methods: Mapping[str, Method]) -> float | Literal["auto"]:
        """The weight of popularity in its scores."""
        return self.popularity

    def weight_of_denials(self, methods: Mapping[str, Method]) -> float | Literal["auto"]:
        """The weight of denials in its texts."""
        return self.denials

    @property
    def trained(self) -> bool:
        """Whether it has phases."""
        return bool(self.phases)

    def phase(
        self, prompt: str | None, iteration: tuple[tuple[str, Recipe], ...], transfer: Transfer | None = None
    ) -> Phase:
        """The phase after which it is evaluated.

        Args:
            prompt: the dataset's default prompt.
            iteration: names and recipes of its ``phases``.
            transfer: the encoder that ``origin`` names.
        """
        histories = not self.writes_profiles
        chain = tuple((name, recipe.resolved(self.history_items, histories)) for name, recipe in iteration)
        weight, denials = (None if value == "auto" else value for value in (self.popularity, self.denials))
        prompt, tokens = self._written(prompt)
        chain *= self.iterations
        return Phase(prompt, self.history_items, tokens, self.train_fraction, chain, weight, transfer, denials)

    def _written(self, prompt: str | None) -> tuple[str | None, int]:
        """Prompt and longest profile; None and 0 without an encoder."""
        return None, 0

    def _phase_problems(self, name: str, workflow: Workflow) -> Iterator[str]:
        at = f"method '{name}': phases:"
        encoders = workflow.config.encoders if self.writes_profiles else []
        for phase in self.phases:
            if phase not in workflow.recipes:
                yield f"{at} unknown recipe '{phase}'{nearest(phase, list(workflow.recipes))}"
                return
            recipe = workflow.recipes[phase]
            if not self.writes_profiles and recipe.trains != "decoder":
                what = "depends on" if recipe.trains is None else "trains"
                yield f"{at} '{phase}' {what} an encoder, but the method has none; use a contrastive recipe"
            for problem in recipe.problems(phase, workflow.config.encoders, workflow.recipes):
                yield f"{at} {problem}"
            for encoder in encoders:
                used, trained = workflow.recipe_of(phase, encoder)
                if trained.trains == "decoder" and (trained.texts, trained.sessions) == ("profiles", "all"):
                    yield (
                        f"{at} '{used}': sessions: 'all' is for histories, but it trains on profiles, which are "
                        "written for sampled sessions; raise sample.train, or set its texts to 'mixed'"
                    )
                if workflow.models[encoder].source.endpoint is not None and trained.trains == "encoder":
                    yield (
                        f"{at} '{phase}' trains the encoder, but encoder '{encoder}' is an endpoint without local "
                        "weights; run it in a config without this method"
                    )
        for encoder in encoders:
            chain = [workflow.recipe_of(phase, encoder) for phase in self.phases]
            yield from (f"{at} {problem}" for problem in _adapter_problems(chain))


def _adapter_problems(chain: list[tuple[str, Recipe]]) -> Iterator[str]:
    """Recipes of a chain that train the encoder must train the same weights: each continues the adapter before it."""
    trained = [(name, recipe.train) for name, recipe in chain if recipe.trains == "encoder"]
    for name, train in trained[1:]:
        first, expected = trained[0]
        if differing := [key for key in type(train).model_fields if getattr(train, key) != getattr(expected, key)]:
            key = differing[0]
            yield (
                f"'{name}' continues the adapter of '{first}', but its train.{key} is {getattr(train, key)} and not "
                f"{getattr(expected, key)}; make them equal (recipe_overrides)"
            )


class ProfileMethod(_TrainedMethod):
    """Profiles written by the encoder, ranked by the decoder (PAPER: LangPTune-0 when neither is trained).

    A contrastive recipe among the ``phases`` trains the decoder, a reinforcement recipe the encoder: ``[cl]``,
    ``[rlso]``, ``[cl, rlso]`` (PAPER: LangPTune-CL, which reads profiles; LangPTune-RLSO; LangPTune).
    """

    kind: Literal["profiles"] = Field(description="profiles of an encoder, ranked by a decoder")
    prompt: str | None = Field(None, description="entry of config/prompts.yaml; null: the dataset's default")
    history_items: Annotated[int, Field(ge=1)] = Field(10, description="number of most recent items in the prompt")
    max_tokens: Annotated[int, Field(ge=1)] = Field(512, description="longest profile, in encoder tokens")
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.0, description="temperature of decoding; 0: greedy", strict=False
    )
    best_of: Annotated[int, Field(ge=1)] = Field(
        1,
        description="write this many profiles per session and keep the one that ranks the items of the history best; "
        "needs a temperature",
    )
    encoder_from: EncoderFrom | None = Field(
        None,
        description="the profiles are written by the final encoder of another method on another dataset, with the same "
        "models and seed; the own phases then train only the decoder. null: the own encoder",
    )

    @property
    def deterministic(self) -> bool:
        """Greedy decoding without training uses no random numbers, so that one seed is enough."""
        return self.temperature == 0 and not self.trained

    writes_profiles = True

    @property
    def trained(self) -> bool:
        """Whether it has phases, or an encoder that was trained on another dataset."""
        return bool(self.phases) or self.encoder_from is not None

    def origin(self) -> EncoderFrom | None:
        """The method and dataset whose encoder writes its profiles; None if its encoder is its own."""
        return self.encoder_from

    def runs_on(self, dataset: str, methods: Mapping[str, Method]) -> bool:
        """Not on the dataset of its encoder: its run there would be that of the method that trains the encoder."""
        return self.encoder_from is None or self.encoder_from.dataset != dataset

    def text(self, methods: Mapping[str, Method]) -> str:
        """The text of a session is the encoder's profile."""
        return "profiles"

    def one_profile(self, methods: Mapping[str, Method]) -> bool:
        """With best of n, each session has several profiles."""
        return self.best_of == 1

    def models(self, config: Config, methods: Mapping[str, Method]) -> list[str]:
        """Every encoder with every decoder."""
        return [f"{encoder}+{decoder}" for encoder in config.encoders for decoder in config.decoders]

    def draw(self, split: str = "test") -> Draw:
        """The profiles of a split that it ranks."""
        return Draw(split, self.temperature, self.best_of)

    def _written(self, prompt: str | None) -> tuple[str | None, int]:
        return self.prompt or prompt, self.max_tokens

    def problems(self, name: str, workflow: Workflow) -> Iterator[str]:
        """Missing models, unsuitable recipes, an unknown or unsuitable prompt, profiles that are too long."""
        config = workflow.config
        if not self.models(config, workflow.methods):
            yield f"method '{name}' needs encoders and decoders, but the config lists none"
        yield from self._phase_problems(name, workflow)
        if self.encoder_from is not None:
            yield from self._transfer_problems(name, self.encoder_from, workflow)
        for dataset in config.datasets:
            at = f"method '{name}' on '{dataset}':"
            prompt = self.prompt or workflow.datasets[dataset].prompt
            if prompt not in workflow.prompts:
                yield f"{at} unknown prompt '{prompt}'{nearest(prompt, list(workflow.prompts))}"
                continue
            for encoder in config.encoders if workflow.prompts[prompt].starts else []:
                source = workflow.models[encoder].source
                if source.endpoint is not None and source.prefill is None:
                    yield (
                        f"{at} prompt '{prompt}' has 'starts', but encoder '{encoder}', an endpoint, has no 'prefill' "
                        "in its source in models.yaml, the settings with which its server continues a given text; add "
                        "it if the server can, or use another prompt"
                    )
        for encoder in config.encoders:
            if self.max_tokens >= (context := workflow.models[encoder].context):
                yield (
                    f"method '{name}': max_tokens {self.max_tokens} leaves no room for a prompt in the {context} "
                    f"tokens of encoder '{encoder}'"
                )

    def _transfer_problems(self, name: str, origin: EncoderFrom, workflow: Workflow) -> Iterator[str]:
        at, datasets = f"method '{name}': encoder_from:", workflow.config.datasets
        if origin.dataset not in datasets:
            yield (
                f"{at} dataset: '{origin.dataset}' is not among this run's datasets"
                f"{nearest(origin.dataset, datasets)}; name one of them, or add it to datasets"
            )
        elif len(datasets) == 1:
            yield (
                f"{at} dataset: '{origin.dataset}' is this run's only dataset, and the method has no run on it; add "
                "another dataset, or leave the method out"
            )
        known = [
            other
            for other, method in workflow.methods.items()
            if method.writes_profiles and method.trained and method.origin() is None
        ]
        if origin.method not in known:
            yield (
                f"{at} method: '{origin.method}' is not a profile method that trains an encoder"
                f"{nearest(origin.method, known)}"
            )
            return
        source = workflow.methods[origin.method]
        yield from source.problems(origin.method, workflow)
        for encoder in workflow.config.encoders:
            if not any(workflow.recipe_of(phase, encoder)[1].trains == "encoder" for phase in source.phases):
                yield (
                    f"{at} method: none of the phases of '{origin.method}' ({', '.join(source.phases)}) trains an "
                    "encoder; name a method with a phase that does"
                )
            for phase in self.phases:
                if workflow.recipe_of(phase, encoder)[1].trains == "encoder":
                    yield (
                        f"method '{name}': phases: '{phase}' trains the encoder, but encoder_from takes that of "
                        f"'{origin.method}' on '{origin.dataset}'; leave the phase or encoder_from out"
                    )
        for key in ("prompt", "history_items", "max_tokens"):
            own, theirs = getattr(self, key), getattr(source, key)
            if own != theirs:
                own, theirs = ("null" if value is None else value for value in (own, theirs))
                yield (
                    f"method '{name}': {key} is {own}, but {theirs} in '{origin.method}', which trains its encoder; "
                    "make them equal (overrides)"
                )

    @model_validator(mode="after")
    def _drawn(self) -> ProfileMethod:
        if self.best_of > 1 and self.temperature == 0:
            raise ValueError("best_of needs a temperature: greedy profiles of one session are all the same")
        return self


class ControlMethod(Method):
    """The texts, models and weights of another method with one change: the difference is the effect of this change.

    It trains nothing and writes no texts; it reads the files of the method that it names, which need not be a method of
    the run.
    """

    kind: Literal["control"] = Field(description="another method with one change")
    of: str = Field(description="method whose texts are used, of kind profiles or text; shuffled: of kind profiles")
    change: Literal["shuffled", "mean-vector", "text-alone"] = Field(
        description="shuffled: each session is ranked with another user's profile, assigned by the seed; mean-vector: "
        "every session is ranked with the normalised mean of all compared sessions' vectors, as if all had the same "
        "text; text-alone: each session is ranked with its own text, without the popularity of items in the score"
    )

    ranked_by = "rank_texts"

    def source(self, name: str) -> str:
        """The method that it names."""
        return self.of

    def text(self, methods: Mapping[str, Method]) -> str | None:
        """With text-alone, the text of its method; a mean vector has no text."""
        if self.change == "shuffled":
            return "shuffled-profiles"
        return methods[self.of].text(methods) if self.change == "text-alone" else None

    def changes(self) -> str:
        """Its change of its source."""
        return self.change

    def models(self, config: Config, methods: Mapping[str, Method]) -> list[str]:
        """Those of its method."""
        return methods[self.of].models(config, methods)

    def runs_on(self, dataset: str, methods: Mapping[str, Method]) -> bool:
        """Where its method has runs."""
        return methods[self.of].runs_on(dataset, methods)

    def one_seed(self, methods: Mapping[str, Method]) -> bool:
        """If shuffled, the seed assigns profiles to other users; otherwise as its method."""
        return self.change != "shuffled" and methods[self.of].one_seed(methods)

    def one_profile(self, methods: Mapping[str, Method]) -> bool:
        """True only if shuffled: other controls have the texts of their method, which are measured there."""
        return self.change == "shuffled" and methods[self.of].one_profile(methods)

    def weight(self, methods: Mapping[str, Method]) -> float | Literal["auto"] | None:
        """The weight of popularity in its scores: 0 with text-alone, otherwise that of its method."""
        return 0.0 if self.change == "text-alone" else methods[self.of].weight(methods)

    def weight_of_denials(self, methods: Mapping[str, Method]) -> float | Literal["auto"]:
        """That of its method."""
        return methods[self.of].weight_of_denials(methods)

    def problems(self, name: str, workflow: Workflow) -> Iterator[str]:
        """A method without texts, or without profiles if they are shuffled; then the problems of its method."""
        ranked = {other: method for other, method in workflow.methods.items() if method.ranked_by == "rank_texts"}
        known, what = [other for other, method in ranked.items() if method.changes() is None], "profile or text"
        if self.change == "shuffled":
            known, what = [other for other in known if ranked[other].writes_profiles], "profile"
        if self.of not in known:
            yield (
                f"method '{name}': of: '{self.of}' is not a {what} method, which change '{self.change}' needs"
                + nearest(self.of, known)
            )
            return
        yield from workflow.methods[self.of].problems(name, workflow)


class TextMethod(_TrainedMethod):
    """The decoder on plain text of the history, without an encoder (PAPER: EMB-0; with a contrastive phase, EMB-CL)."""

    kind: Literal["text"] = Field(description="text of the history, ranked by a decoder")
    view: Literal["history", "last-item"] = Field(
        description="history: the texts of the most recent items; last-item: the text of the last one"
    )
    history_items: Annotated[int, Field(ge=1)] = Field(
        10, description="number of most recent items in the text, newest first"
    )

    @property
    def deterministic(self) -> bool:
        """Without training it uses no random numbers."""
        return not self.phases

    def text(self, methods: Mapping[str, Method]) -> str:
        """The text of a session consists of its history's items, or is that of its last item."""
        return self.view

    def models(self, config: Config, methods: Mapping[str, Method]) -> list[str]:
        """Every decoder."""
        return list(config.decoders)

    def problems(self, name: str, workflow: Workflow) -> Iterator[str]:
        """Missing decoders and unsuitable recipes."""
        if not self.models(workflow.config, workflow.methods):
            yield f"method '{name}' needs decoders, but the config lists none"
        yield from self._phase_problems(name, workflow)
        if self.phases and self.view != "history":
            yield f"method '{name}': phases need view 'history', found '{self.view}'"


WEIGHTS = tuple(step / 20 for step in range(21))
"""Candidate weights of the second method in a fusion."""


class FusionMethod(Method):
    """Two other methods combined: the difference to one of them is what the other adds.

    It fits nothing and writes no texts. The methods that it names need not be methods of the run. A method without
    random numbers has one seed, which is combined with every seed of the other; otherwise seeds are paired.
    """

    kind: Literal["fusion"] = Field(description="two other methods combined")
    of: Annotated[list[str], Field(min_length=2, max_length=2)] = Field(
        description="the two methods, each of another kind than fusion"
    )
    combine: Literal["scores", "better-rank"] = Field(
        "scores",
        description="scores: (1 - w) x scores of the first + w x scores of the second, each standardised per session "
        "over the items that may be recommended; w of 0, 0.05, ..., 1 is chosen by NDCG without cut-off on validation, "
        "once per seed; better-rank: of each session the better of both ranks, a bound that reads the target",
    )
    group: Literal["fusions", "bounds"] = Field("fusions", description="its block in the table")

    ranked_by = "fuse"

    def parts(self) -> list[str]:
        """The two methods."""
        return self.of

    def runs_on(self, dataset: str, methods: Mapping[str, Method]) -> bool:
        """Where both methods have runs."""
        return all(methods[part].runs_on(dataset, methods) for part in self.of)

    def adds_scores(self) -> bool:
        """True unless it combines ranks."""
        return self.combine == "scores"

    def one_seed(self, methods: Mapping[str, Method]) -> bool:
        """Whether both methods use no random numbers."""
        return all(methods[part].one_seed(methods) for part in self.of)

    def models(self, config: Config, methods: Mapping[str, Method]) -> list[str]:
        """Those of the method that has more models; the labels of both where neither ranks by texts."""
        found = [methods[part].models(config, methods) for part in self.of]
        texts = [models for part, models in zip(self.of, found, strict=True) if methods[part].ranked_by == "rank_texts"]
        if not texts:
            return ["-".join(models for (models,) in found)]
        return max(texts, key=lambda models: max((name.count("+") for name in models), default=-1))

    def points(self, trials: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
        """The candidate weights: all of them, whatever the number of trials, because they cost next to nothing."""
        return [{"weight": weight} for weight in WEIGHTS] if self.adds_scores() else []

    def problems(self, name: str, workflow: Workflow) -> Iterator[str]:
        """An unknown method, a fusion or a bound among its methods; then the problems of its methods."""
        methods = workflow.methods
        for part in self.of:
            at = f"method '{name}': of:"
            if part not in methods:
                yield f"{at} unknown method '{part}'{nearest(part, list(methods))}"
                return
            if methods[part].parts():
                yield f"{at} '{part}' is itself a fusion; name a method that ranks by scores of its own"
                return
            if methods[part].group == "bounds" != self.group:
                yield f"{at} '{part}' is a bound, so that a fusion of it is one too; set its group to bounds"
        for part in self.of:
            yield from methods[part].problems(part, workflow)

    @model_validator(mode="after")
    def _two_methods(self) -> FusionMethod:
        if self.of[0] == self.of[1]:
            raise ValueError(f"of: '{self.of[0]}' is named twice; name two different methods")
        if self.combine == "better-rank" and self.group != "bounds":
            raise ValueError("combine 'better-rank' reads the target; set group to bounds")
        return self


class BaselineMethod(Method):
    """A method without texts: a file of ``langptune.baselines``, whose ``Keys`` are the other keys of the entry."""

    kind: str = Field(description="file of langptune.baselines")

    ranked_by = "fit_baseline"

    def models(self, config: Config, methods: Mapping[str, Method]) -> list[str]:
        """Its label, in place of models."""
        return [self.label]

    def untuned(self) -> Self:
        """The method without its validation grid."""
        return self.model_copy(update={"tune": {}}) if "tune" in type(self).model_fields else self

    def keys(self) -> dict[str, Any]:
        """The keys that change a result, as input of its script."""
        own = set(BaselineMethod.model_fields) | {"tune", "deterministic"}
        return self.model_dump(mode="json", exclude=own)

    def problems(self, name: str, workflow: Workflow) -> Iterator[str]:
        """Keys of ``tune`` without values; ranges without a number of trials, or with values that their key forbids."""
        for key, values in getattr(self, "tune", {}).items():
            at = f"method '{name}': tune: '{key}'"
            if not values:
                yield f"{at} lists no values; list at least one or leave it out"
            if isinstance(values, list):
                continue
            if workflow.config.trials is None:
                yield f"{at} is a range, which has no grid; set `trials`, the number of random trials, or list values"
            for value in values.bounds:
                try:
                    self.at(self.point({**self.own(), key: value}))
                except UserError as error:
                    yield f"{at}: {error}"


def _baseline(kind: str) -> type[BaselineMethod]:
    entry = BASELINES.load(kind)
    if not all(hasattr(entry, name) for name in ("Keys", "Model")):
        raise UserError(f"{BASELINES.file(kind)}: a baseline has a class Keys and a class Model (docs/extend.md)")
    keys = entry.Keys
    return create_model(
        f"{kind}Method",
        __base__=(keys, BaselineMethod),
        __doc__=keys.__doc__,
        kind=(Literal[kind], Field(description="file of langptune.baselines")),
    )


BASELINE_METHODS = {kind: _baseline(kind) for kind in BASELINES.names()}

MethodEntry = Annotated[
    Union[ProfileMethod, ControlMethod, TextMethod, FusionMethod, *BASELINE_METHODS.values()],
    Field(discriminator="kind"),
]
