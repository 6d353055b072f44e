"""Registry entries of ``config/methods.yaml``: all methods of the benchmark, which turn sessions into ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, create_model, model_validator

from langptune.config.base import nearest
from langptune.config.method import EditReading, EncoderFrom, Method, TrainedMethod
from langptune.config.phases import Draw
from langptune.errors import UserError
from langptune.registry import Registry

if TYPE_CHECKING:
    from langptune.config.settings import Config
    from langptune.config.workflow import Workflow

BASELINES = Registry("langptune.baselines")
"""Methods that rank without a text; each file is a kind of methods.yaml. Configs do not import that package: it imports
them."""


class ProfileMethod(TrainedMethod):
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

    def reads_edits(self, methods: Mapping[str, Method]) -> EditReading:
        """That of its method."""
        return methods[self.of].reads_edits(methods)

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


class TextMethod(TrainedMethod):
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
        """Keys of ``tune`` without values, or with values that their key forbids; ranges without a number of trials."""
        for key, values in getattr(self, "tune", {}).items():
            at = f"method '{name}': tune: '{key}'"
            if not values:
                yield f"{at} lists no values; list at least one or leave it out"
            ranged = not isinstance(values, list)
            if ranged and workflow.config.trials is None:
                yield f"{at} is a range, which has no grid; set `trials`, the number of random trials, or list values"
            for value in values.bounds if ranged else values:
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
