"""Registry entries of ``config/recipes.yaml``: how one phase trains the decoder or the encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from langptune.config.base import Strict, nearest
from langptune.config.rewards import TERMS, parse
from langptune.errors import UserError
from langptune.registry import Registry

ALGORITHMS = Registry("langptune.training.algorithms")
"""Read, not imported: a config needs the names and the literal ``SETTINGS`` of the files."""
NEUTRAL = {"title", "micro_batch", "checkpoint_every", "launch", "cache_frozen"}
"""Keys of recipes that change no result beyond rounding: neither a phase's name nor its checkpoints depend on them."""
LATER = {
    "negatives": "batch",
    "targets": 1,
    "shuffle_rewards": False,
    "texts": "profiles",
    "sessions": "sample",
    "history_items": None,
    "profile_samples": 1,
    "profile_share": 0.5,
    "settings": {},
}
"""Keys that came after phases had names, and their defaults: at its default such a key leaves a name as it was."""

Rate = Annotated[float, Field(gt=0, strict=False, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=False)]
Weight = Annotated[float, Field(strict=False, allow_inf_nan=False)]


class _Recipe(Strict):
    trains: ClassVar[Literal["decoder", "encoder"]]
    called: ClassVar[str]  # in model cards

    title: str = Field(description="how plots and model cards call it")
    learning_rate: Rate
    weight_decay: Share = 1e-6
    adam_epsilon: Rate = Field(1e-6, description="AdamW's epsilon")
    warmup: Share = Field(0.0, description="share of the steps with rising learning rate; then linear decay to 0")
    max_grad_norm: Share = Field(1.0, description="gradients are scaled down to this norm; 0: not at all")
    batches: Count = Field(description="batches of the phase")
    micro_batch: Count = Field(
        description="texts (contrastive) or profiles (reinforcement; at least all of one session) in memory at once; "
        "changes no result beyond rounding, and is halved by itself when memory runs out"
    )
    validate_every: Count = Field(
        description="batches between validations; validation also stands at the start and the end"
    )
    patience: Count | None = Field(None, description="stop after this many validations without a better NDCG")
    select: Literal["best", "last"] = Field("best", description="which state is kept: best on validation, or the last")
    checkpoint_every: Count = Field(description="optimiser steps between checkpoints: what a killed job loses at most")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the matrix products (weights that train stay in float32); auto: bfloat16 where native"
    )
    launch: str | None = Field(
        None,
        description="file of config/accelerate/, for several GPUs or nodes; null: one process",
    )

    def identity(self) -> dict[str, Any]:
        """What of a recipe changes a result, as plain data: phases and checkpoints are named by it."""
        told = self.model_dump(mode="json", exclude=NEUTRAL)
        return {key: value for key, value in told.items() if LATER.get(key, ...) != value}

    def resolve(self, name: str, encoder: str, recipes: Mapping[str, RecipeEntry]) -> tuple[str, Recipe]:
        """Name and content of the recipe that this entry stands for with an encoder: its own."""
        return name, self

    def resolved(self, history_items: int, text_method: bool) -> Recipe:
        """The recipe as a method uses it: what it leaves to the method is filled in, what it does not read is reset."""
        return self

    @property
    def needs_profiles(self) -> bool:
        """Whether its training reads profiles that are written before it starts."""
        return False

    def problems(self, name: str, encoders: list[str], recipes: Mapping[str, RecipeEntry]) -> Iterator[str]:
        """Why a run with these encoders cannot train by it, a line each."""
        yield from ()


class ContrastiveRecipe(_Recipe):
    """CL: the decoder learns to put a session's text next to its target item (PAPER: Training; InfoNCE)."""

    trains = "decoder"
    called = "contrastive learning (CL)"

    kind: Literal["contrastive"]
    texts: Literal["profiles", "history", "mixed"] = Field(
        "profiles",
        description="what is put next to targets: profiles; the texts of the history's items, which cost no "
        "generation; or both. A text method always reads histories",
    )
    history_items: Count | None = Field(
        None, description="most recent items in the text of a history; null: the method's history_items"
    )
    sessions: Literal["all", "sample"] | None = Field(
        None,
        description="whose histories are trained on: those of all train sessions, or of the sampled ones; null: all. "
        "Profiles are written for the sampled sessions only",
    )
    batch_size: Count = Field(description="pairs of text and target per batch, over all processes")
    temperature: Rate = Field(0.05, description="cosine similarities are divided by this")
    popularity_correction: bool = Field(
        True,
        description="logits minus log q(item): without it a popular item, often a negative, is pushed away from "
        "everything (Yi et al., RecSys 2019)",
    )
    mask_duplicates: bool = Field(True, description="another row's target that is also this row's is no negative")
    negatives: Literal["batch"] | int = Field(
        "batch",
        description="whose targets are a row's in-batch negatives: those of the whole batch, or of its group of this "
        "many rows, as where each device of a published run sees its own rows only",
    )
    uniform_negatives: Annotated[int, Field(ge=0)] = Field(
        0, description="items drawn uniformly from the catalogue, as further negatives (Yang et al., WWW 2020)"
    )
    profile_temperature: Share = Field(
        0.0,
        description="of the profiles that are trained on; 0: greedy, as at test time; 1: as published, drawn anew at "
        "each iteration",
    )
    profile_samples: Count = Field(
        1, description="profiles per sampled train session, each a row; more than one needs a profile_temperature"
    )
    profile_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="mixed: share of the rows of every batch that are profiles; the others are histories"
    )

    @model_validator(mode="after")
    def _drawn(self) -> ContrastiveRecipe:
        if self.profile_samples > 1 and self.profile_temperature == 0:
            raise ValueError("profile_samples needs a profile_temperature: greedy profiles are all the same")
        return self

    @field_validator("negatives", mode="before")
    @classmethod
    def _groups(cls, value: Any, info: ValidationInfo) -> Any:
        if value == "batch":
            return value
        if type(value) is not int or value < 2:
            raise ValueError("give 'batch', or a number of rows, at least 2")
        if (size := info.data.get("batch_size", value)) % value:
            raise ValueError(f"batch_size {size} must be a multiple of it; change one of them")
        return value

    def resolved(self, history_items: int, text_method: bool) -> ContrastiveRecipe:
        """The recipe as a method uses it: what it leaves to the method is filled in, what it does not read is reset.

        So two methods that train alike have equal recipes, whatever their entries say beyond that.

        Args:
            history_items: of the method.
            text_method: it reads histories, whatever the recipe says.
        """
        texts = "history" if text_method else self.texts
        told: dict[str, Any] = {"texts": texts}
        if texts == "profiles":
            told |= {"history_items": None, "sessions": "sample"}
        else:
            told |= {"history_items": self.history_items or history_items, "sessions": self.sessions or "all"}
        if texts == "history":
            told |= {"profile_temperature": 0.0, "profile_samples": 1}
        if texts != "mixed":
            told["profile_share"] = 0.5
        return self.model_copy(update=told)

    @property
    def needs_profiles(self) -> bool:
        """Whether its training reads profiles that are written before it starts."""
        return self.texts != "history"

    @property
    def rivals(self) -> int:
        """How many rows share their targets as in-batch candidates."""
        return self.batch_size if self.negatives == "batch" else self.negatives


class Trained(Strict):
    """Which weights of the encoder train: LoRA on some layers, or whole layers. The result is a PEFT adapter."""

    lora_rank: Count | None = Field(16, description="rank of LoRA; null: the layers themselves train")
    lora_alpha: Count = 32
    modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="what LoRA is put on; may hold lm_head",
    )
    last_layers: Count | None = Field(None, description="only this many of the last layers; null: all of them")

    @model_validator(mode="after")
    def _some(self) -> Trained:
        if self.lora_rank is None and self.last_layers is None:
            raise ValueError("without lora_rank, say how many last_layers train")
        return self


class GuardLimits(Strict):
    """When a run has collapsed: it is stopped at that validation, and its best state before is kept.

    Each limit is a share; 0 switches its rule off.
    """

    distinct: Fraction = Field(0.1, description="of the start's share of distinct profiles")
    finished: Fraction = Field(0.5, description="of the start's share of profiles that end by themselves")
    own: Fraction = Field(
        0.25,
        description="of the start's advantage of own profiles over another user's (mean log rank), where that is more "
        "than two standard errors above 0; the advantage now counts with two standard errors on top",
    )
    entropy: Share = Field(
        0.02, description="nats per token of the sampled profiles, while validation NDCG is below the start's"
    )


class ReinforcementRecipe(_Recipe):
    """RLSO: the encoder learns to write profiles by which the decoder ranks the target high (PAPER: Training)."""

    trains = "encoder"
    called = "reinforcement learning (RLSO)"

    kind: Literal["reinforcement"]
    algorithm: str = Field(
        description="file of langptune.training.algorithms: rebel is the paper's, rloo and grpo are TRL's losses, sft "
        "is maximum likelihood of each session's best profile"
    )
    settings: dict[str, Weight] = Field(
        {}, description="settings of the algorithm's own, which its file lists: of rloo and grpo `clip`, 0.2"
    )
    reward: str | dict[str, Weight] = Field(
        "ndcg",
        description="entry of langptune.training.rewards (`ndcg`, `mrr`, either with `@K`, `log-rank`, `piecewise`, "
        "`softmax`, `probability`, `contrast`, `title`), or a mapping of entries to weights, whose sum it is",
    )
    targets: Count = Field(
        1, description="the reward is the mean over the user's next so many targets of the train part, its own first"
    )
    terms: dict[str, Weight] = Field(
        {"unfinished": -1.0, "repetition": -2.0},
        description="entries of langptune.training.terms (`unfinished`, `repetition`, `list`, `length`, `copied`, "
        "`false_claims`) -> weight in standard deviations of the batch's reward; 0: only shown in the curve",
    )
    shuffle_rewards: bool = Field(
        False, description="a control: the rewards of a batch are dealt to other sessions, so that none says anything"
    )
    sessions_per_batch: Count
    sessions: Literal["all", "sample"] = Field(
        "sample",
        description="which train sessions are drawn from: the sampled ones, or all; prompts are made for those that "
        "the phase draws",
    )
    samples: Annotated[int, Field(ge=2)] = Field(2, description="profiles per session")
    epochs: Count = Field(4, description="passes over the profiles of a batch")
    minibatches: Count = Field(1, description="optimiser steps per pass")
    temperature: Rate = Field(1.0, description="of sampling, and of the log-probabilities; no top-k, no top-p")
    eta: Rate = Field(1.0, description="rebel: scale of the reward difference")
    kl: Share = Field(0.0, description="weight of log pi - log pi_0 (whole sequence), taken off the reward")
    standardise: Literal["batch", "session", "none"] = Field(
        "batch",
        description="rewards to mean 0, variance 1: over all profiles of a batch (as published), of each session, or "
        "not at all",
    )
    unfinished: Literal["zero", "score"] = Field(
        "score",
        description="reward of a profile that did not end within max_tokens: 0 as published, or what it earns (and the "
        "term `unfinished`)",
    )
    guard: GuardLimits = GuardLimits()
    max_tokens: Count | None = Field(None, description="longest profile while training; null: the method's max_tokens")
    train: Trained = Trained()
    cache_frozen: bool = Field(
        True, description="keep what the frozen lower layers compute for the passes over a batch; changes no result"
    )
    vllm: bool = Field(False, description="write profiles with vLLM in the training process (extra `vllm`, GPU only)")

    @field_validator("algorithm")
    @classmethod
    def _known_algorithm(cls, value: str) -> str:
        if value not in (known := ALGORITHMS.names()):
            raise ValueError(f"unknown algorithm '{value}'{nearest(value, known)}")
        return value

    @model_validator(mode="after")
    def _known_settings(self) -> ReinforcementRecipe:
        known = ALGORITHMS.constants(self.algorithm).get("SETTINGS", {}) if self.settings else {}
        for key in self.settings:
            if key not in known:
                hint = nearest(key, list(known)) or "; it has none"
                raise ValueError(f"settings: algorithm '{self.algorithm}' has no setting '{key}'{hint}")
        return self

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        told = {value: 1.0} if isinstance(value, str) else value
        if not told or not all(map(math.isfinite, told.values())) or not any(told.values()):
            raise ValueError("give each reward a finite weight, and one of them a weight other than 0")
        for name in told:
            try:
                parse(name)
            except UserError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("terms")
    @classmethod
    def _known_terms(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name not in TERMS:
                raise ValueError(f"unknown term '{name}'{nearest(name, list(TERMS))}")
        return value

    @property
    def rewards(self) -> dict[str, float]:
        """The rewards of which this recipe's is the sum, with their weights."""
        return {self.reward: 1.0} if isinstance(self.reward, str) else self.reward

    @model_validator(mode="after")
    def _no_prize(self) -> ReinforcementRecipe:
        if self.unfinished == "zero":
            for name, weight in self.rewards.items():
                if weight and (parse(name)[1].negative or weight < 0):
                    raise ValueError(
                        f"unfinished: 'zero' would be the best reward there is, because '{name}' is below 0; take "
                        "'score', and a negative weight for the term 'unfinished'"
                    )
        return self

    @model_validator(mode="after")
    def _minibatches(self) -> ReinforcementRecipe:
        if self.sessions_per_batch % self.minibatches:
            raise ValueError("sessions_per_batch must be a multiple of minibatches")
        return self

    @model_validator(mode="after")
    def _somebody_to_deal_with(self) -> ReinforcementRecipe:
        if self.shuffle_rewards and self.sessions_per_batch < 2:
            raise ValueError("shuffle_rewards needs sessions_per_batch of at least 2: rewards go to other sessions")
        return self


class PerEncoder(Strict):
    """A name for several recipes, of which a run takes the one of its encoder; the phase bears that one's name."""

    trains: ClassVar[None] = None

    kind: Literal["per-encoder"]
    recipes: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="entry of models.yaml (an encoder) -> entry of recipes.yaml"
    )

    def resolve(self, name: str, encoder: str, recipes: Mapping[str, RecipeEntry]) -> tuple[str, Recipe]:
        """Name and content of the encoder's recipe."""
        meant = self.recipes[encoder]
        return meant, recipes[meant]

    def problems(self, name: str, encoders: list[str], recipes: Mapping[str, RecipeEntry]) -> Iterator[str]:
        """Encoders without a recipe, or with one that does not exist."""
        for encoder in encoders:
            if encoder not in self.recipes:
                yield (
                    f"'{name}' has no recipe for encoder '{encoder}', only for {', '.join(sorted(self.recipes))}; add "
                    "it to its 'recipes' in recipes.yaml, or run the encoder in a config without this method"
                )
                continue
            known = [other for other, recipe in recipes.items() if recipe.trains is not None]
            if (meant := self.recipes[encoder]) not in known:
                yield f"'{name}': recipes: {encoder}: unknown recipe '{meant}'{nearest(meant, known)}"


Recipe = ContrastiveRecipe | ReinforcementRecipe
RecipeEntry = Annotated[Recipe | PerEncoder, Field(discriminator="kind")]
