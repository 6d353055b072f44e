"""Registry entries of ``config/methods.yaml``: every way this benchmark has to turn sessions into ranks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from langptune.config.base import Strict

Scalar = bool | int | float | str | None
Setting = Scalar | list[Scalar]


class _Method(Strict):
    title: str = Field(description="how tables and plots call it")
    group: Literal["profiles", "text controls", "baselines", "bounds"] = Field(
        description="the block of the table it stands in"
    )
    note: str = Field("", description="one line under the table: what a reader must know about this row")


class _TrainedMethod(_Method):
    """What training adds to a method; without phases nothing is trained."""

    phases: list[str] = Field([], description="entries of config/recipes.yaml, in the order of one iteration")
    iterations: Annotated[int, Field(ge=1)] = Field(1, description="how often the phases are gone through (PAPER: K)")
    train_fraction: Annotated[float, Field(gt=0, le=1, strict=False)] = Field(
        1.0,
        description="share of the train sessions that are trained on, and whose targets rewards of several targets "
        "read; smaller shares are part of larger. The popularity of items is that of all train sessions",
    )
    popularity: Literal["auto"] | Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)] = Field(
        "auto",
        description="weight of log(1 + train count of the item) in the score, beside the text's similarity / 0.05; "
        "auto: chosen on validation once the decoder is trained (training.popularity_weights); 0: the text alone",
    )


class ProfileMethod(_TrainedMethod):
    """Profiles written by the encoder, ranked by the decoder (PAPER: LangPTune-0 when neither is trained).

    A contrastive recipe among the ``phases`` trains the decoder, a reinforcement recipe the encoder: ``[cl]``,
    ``[rlso]``, ``[cl, rlso]`` (PAPER: LangPTune-CL, which reads profiles; LangPTune-RLSO; LangPTune).
    """

    kind: Literal["profiles"]
    prompt: str | None = Field(None, description="entry of config/prompts.yaml; null: the dataset's default")
    history_items: Annotated[int, Field(ge=1)] = Field(10, description="most recent items shown in the prompt")
    max_tokens: Annotated[int, Field(ge=1)] = Field(512, description="longest profile, in encoder tokens")
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0 is greedy decoding", strict=False)
    best_of: Annotated[int, Field(ge=1)] = Field(
        1,
        description="write this many profiles per session and keep the one by which the decoder best finds the items "
        "of the history again; needs a temperature",
    )

    @property
    def deterministic(self) -> bool:
        """Greedy decoding draws nothing, so one seed stands for all, unless something is trained."""
        return self.temperature == 0 and not self.phases

    @model_validator(mode="after")
    def _drawn(self) -> ProfileMethod:
        if self.best_of > 1 and self.temperature == 0:
            raise ValueError("best_of needs a temperature: greedy profiles of one session are all the same")
        return self


class ControlMethod(_Method):
    """The texts, models and weights of another method with one thing changed: what is left is not due to that thing.

    It trains nothing and writes nothing, but reads the files of the method that it names, which need not be run itself.
    """

    kind: Literal["control"]
    of: str = Field(description="the method whose texts are taken: of kind profiles, or of kind text unless shuffled")
    change: Literal["shuffled", "mean-vector", "text-alone"] = Field(
        description="shuffled: each session is ranked by another user's profile, dealt by the seed; mean-vector: every "
        "session by the normalised mean of all compared sessions' vectors, as if one text served all; text-alone: by "
        "its own text, without the popularity of items in the score"
    )


class TextMethod(_TrainedMethod):
    """The decoder on plain text of the history, without an encoder (PAPER: EMB-0; with a contrastive phase, EMB-CL)."""

    kind: Literal["text"]
    view: Literal["history", "last-item"]
    history_items: Annotated[int, Field(ge=1)] = Field(10, description="most recent items, newest first")

    @property
    def deterministic(self) -> bool:
        """Nothing is drawn unless something is trained."""
        return not self.phases


class SimpleMethod(_Method):
    """Scorers without a model: popularity in the training sessions, chance, and the answer itself."""

    kind: Literal["simple"]
    scorer: Literal["pop", "random", "oracle"]

    @property
    def deterministic(self) -> bool:
        """Only chance has a seed."""
        return self.scorer != "random"


class NMFMethod(_Method):
    """Non-negative matrix factorisation (scikit-learn) of the train interactions.

    A session is folded in by what it shows, so users need not be known from training.
    """

    kind: Literal["nmf"]
    components: Annotated[int, Field(ge=1)] = Field(32, description="factors, where nothing is tuned")
    tune: dict[Literal["components"], list[Annotated[int, Field(ge=1)]]] = Field(
        {}, description="`components` -> values; the best on validation by NDCG@10 with the first seed is taken"
    )
    max_iterations: Annotated[int, Field(ge=1)] = Field(200, description="of the solver, unless it converges before")
    deterministic: bool = False

    def grid(self) -> list[int]:
        """The numbers of factors that are tried; one where nothing is tuned."""
        return self.tune.get("components", [self.components])


class RecBoleMethod(_Method):
    """Any RecBole model, trained on our train sessions and ranked by our rank function."""

    kind: Literal["recbole"]
    model: str = Field(description="RecBole's name of the model, e.g. SASRec")
    settings: dict[str, Setting] = Field({}, description="RecBole settings, passed as they are")
    tune: dict[str, list[Setting]] = Field(
        {},
        description="setting -> values; the grid is tried on validation with the first seed, one job a point",
    )
    epochs: Annotated[int, Field(ge=1)] = Field(100, description="at most this many; ignored by closed-form models")
    patience: Annotated[int, Field(ge=1)] = Field(
        10, description="stop after this many validations without a better NDCG@10"
    )
    validate_every: Annotated[int, Field(ge=1)] = Field(1, description="epochs between validations")
    history_items: Annotated[int, Field(ge=1)] = Field(
        50, description="sequential models see this many most recent items"
    )
    train_sessions: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="sequential models train on at most this many most recent windows per user; null: all",
    )
    refit: bool = Field(
        True,
        description="ID-based models only: after selection on validation, train once more, as long as was best, on "
        "the histories of the test sessions too, so that they know what every other method sees in a history",
    )
    deterministic: bool = Field(False, description="the model draws nothing (closed form); one seed stands for all")

    def grid(self) -> list[dict[str, Any]]:
        """The points of the validation grid, each merged over ``settings``; one point where nothing is tuned."""
        points: list[dict[str, Any]] = [dict(self.settings)]
        for key in sorted(self.tune):
            points = [{**point, key: value} for point in points for value in self.tune[key]]
        return points


Method = Annotated[
    ProfileMethod | ControlMethod | TextMethod | SimpleMethod | NMFMethod | RecBoleMethod, Field(discriminator="kind")
]
