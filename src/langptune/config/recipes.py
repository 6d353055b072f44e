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
"""These files are read, not imported: a config needs only their names and their literal ``SETTINGS``."""
NEUTRAL = {"title", "micro_batch", "checkpoint_every", "launch", "cache_frozen"}
"""Keys of recipes that change no result beyond rounding; neither a phase's name nor its checkpoints depend on them."""
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
    "edited_share": 0.0,
    "edits": ["add", "strengthen", "remove"],
    "anchor": 0.0,
}
"""Keys that were added later, with their defaults; a key at its default does not change the names of phases."""

Edit = Literal["add", "strengthen", "remove", "deny"]
EDITS: tuple[Edit, ...] = ("add", "strengthen", "remove", "deny")
"""Edits of texts in CL (``langptune.training.edits``)."""

Rate = Annotated[float, Field(gt=0, strict=False, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, strict=False, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=False)]
Weight = Annotated[float, Field(strict=False, allow_inf_nan=False)]


class _Recipe(Strict):
    trains: ClassVar[Literal["decoder", "encoder"]]
    called: ClassVar[str]  # in model cards

    title: str = Field(description="name in plots and model cards")
    learning_rate: Rate = Field(description="peak learning rate of AdamW")
    weight_decay: Share = Field(1e-6, description="AdamW's weight decay")
    adam_epsilon: Rate = Field(1e-6, description="AdamW's epsilon")
    warmup: Share = Field(
        0.0, description="share of the steps in which the learning rate rises linearly; it then decays linearly to 0"
    )
    max_grad_norm: Share = Field(1.0, description="gradients are clipped to this norm; 0: no clipping")
    batches: Count = Field(description="number of batches of the phase")
    micro_batch: Count = Field(
        description="texts (contrastive) or profiles (reinforcement; at least all of one session) in memory at once. "
        "It changes no result beyond rounding, and is halved automatically if memory runs out"
    )
    validate_every: Count = Field(description="batches between validations; there is also one at the start and the end")
    patience: Count | None = Field(
        None, description="stop after this many validations without a better NDCG; null: never"
    )
    select: Literal["best", "last"] = Field(
        "best", description="state that is kept: the best on validation, or the last"
    )
    checkpoint_every: Count = Field(description="optimiser steps between checkpoints: the most that a killed job loses")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of matrix products (trained weights stay in float32); auto: bfloat16 if the hardware "
        "supports it natively",
    )
    launch: str | None = Field(
        None,
        description="file of config/accelerate/, for several GPUs or nodes; null: one process",
    )

    def identity(self) -> dict[str, Any]:
        """The keys that change a result, as plain data; names of phases and checkpoints depend on them."""
        keys = self.model_dump(mode="json", exclude=NEUTRAL)
        return {key: value for key, value in keys.items() if LATER.get(key, ...) != value}

    def resolve(self, name: str, encoder: str, recipes: Mapping[str, RecipeEntry]) -> tuple[str, Recipe]:
        """Name and content of the recipe that this entry means for an encoder: its own."""
        return name, self

    def resolved(self, history_items: int, text_method: bool) -> Recipe:
        """The recipe as a method uses it: null keys take the method's values, and unused keys their defaults."""
        return self

    @property
    def needs_profiles(self) -> bool:
        """Whether its training reads profiles that are written before it starts."""
        return False

    def problems(self, name: str, encoders: list[str], recipes: Mapping[str, RecipeEntry]) -> Iterator[str]:
        """Reasons why a run with these encoders cannot use it, one line each."""
        yield from ()


class ContrastiveRecipe(_Recipe):
    """CL: the decoder learns to embed a session's text near its target item (PAPER: Training; InfoNCE)."""

    trains = "decoder"
    called = "contrastive learning (CL)"

    kind: Literal["contrastive"] = Field(description="trains the decoder")
    texts: Literal["profiles", "history", "mixed"] = Field(
        "profiles",
        description="texts that are paired with targets. profiles: written by the encoder; history: the texts of the "
        "history's items, which need no generation; mixed: both. A text method always uses histories",
    )
    history_items: Count | None = Field(
        None, description="number of most recent items in the text of a history; null: the method's history_items"
    )
    sessions: Literal["all", "sample"] | None = Field(
        None,
        description="sessions whose histories are used: all train sessions, or the sampled ones; null: all. Profiles "
        "are written for the sampled sessions only",
    )
    batch_size: Count = Field(description="pairs of text and target per batch, over all processes")
    temperature: Rate = Field(0.05, description="cosine similarities are divided by this")
    popularity_correction: bool = Field(
        True,
        description="subtract log q(item) from the logits. Without it, popular items, which are often negatives, are "
        "pushed away from all texts (Yi et al., RecSys 2019)",
    )
    mask_duplicates: bool = Field(
        True, description="do not use another row's target as a negative if it is also this row's target"
    )
    negatives: Literal["batch"] | int = Field(
        "batch",
        description="rows whose targets are a row's in-batch negatives: the whole batch, or the row's group of this "
        "many rows, as if each device of a published run uses only its own rows",
    )
    uniform_negatives: Annotated[int, Field(ge=0)] = Field(
        0, description="number of items drawn uniformly from the catalogue as further negatives (Yang et al., WWW 2020)"
    )
    profile_temperature: Share = Field(
        0.0,
        description="temperature of the profiles in training; 0: greedy, as at test time; 1: as published, sampled "
        "again in each iteration",
    )
    profile_samples: Count = Field(
        1, description="profiles per sampled train session, one row each; more than one needs a profile_temperature"
    )
    profile_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="mixed: share of profiles among the rows of each batch; the other rows are histories"
    )
    edited_share: Fraction = Field(
        0.0,
        description="share of the rows of each batch, of each kind of text, in whose text one taste (genre or tag) is "
        "edited so that the text is true of the row's target",
    )
    edits: Annotated[list[Edit], Field(min_length=1)] = Field(
        ["add", "strengthen", "remove"],
        description="kinds of edits that are drawn. add, strengthen: a sentence with a taste of the target that the "
        "text does not name, or names; remove: the mentions of a taste that the target lacks are removed; deny: a "
        "sentence that denies a taste that the target lacks",
    )
    anchor: Share = Field(
        0.0,
        description="weight of the mean distance (1 - cosine similarity) of the batch's texts, or of the edited ones "
        "where there are some, to their vectors before the phase, added to the loss",
    )

    @field_validator("edits")
    @classmethod
    def _one_order(cls, value: list[Edit]) -> list[Edit]:
        """The edits in one order: two lists of the same edits are the same training."""
        if len(set(value)) < len(value):
            raise ValueError("name each kind of edit once")
        return [kind for kind in EDITS if kind in value]

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
            raise ValueError(f"batch_size {size} must be a multiple of it; change one of the two")
        return value

    def resolved(self, history_items: int, text_method: bool) -> ContrastiveRecipe:
        """The recipe as a method uses it: null keys take the method's values, and unused keys their defaults.

        Two methods with the same training thus have equal recipes, even if unused keys of their entries differ.

        Args:
            history_items: the method's ``history_items``.
            text_method: whether the method reads histories, independent of the recipe's ``texts``.
        """
        texts = "history" if text_method else self.texts
        changed: dict[str, Any] = {"texts": texts}
        if texts == "profiles":
            changed |= {"history_items": None, "sessions": "sample"}
        else:
            changed |= {"history_items": self.history_items or history_items, "sessions": self.sessions or "all"}
        if texts == "history":
            changed |= {"profile_temperature": 0.0, "profile_samples": 1}
        if texts != "mixed":
            changed["profile_share"] = 0.5
        if not self.edited_share:
            changed["edits"] = [*LATER["edits"]]
        return self.model_copy(update=changed)

    @property
    def needs_profiles(self) -> bool:
        """Whether its training reads profiles that are written before it starts."""
        return self.texts != "history"

    @property
    def rivals(self) -> int:
        """Number of rows that share their targets as in-batch candidates."""
        return self.batch_size if self.negatives == "batch" else self.negatives


class Trained(Strict):
    """Weights of the encoder that are trained: LoRA on some layers, or whole layers. The result is a PEFT adapter."""

    lora_rank: Count | None = Field(16, description="rank of LoRA; null: the layers themselves are trained")
    lora_alpha: Count = Field(32, description="alpha of LoRA: its updates are scaled by alpha / rank")
    modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="modules with LoRA; may include lm_head",
    )
    last_layers: Count | None = Field(None, description="train only this many of the last layers; null: all layers")

    @model_validator(mode="after")
    def _some(self) -> Trained:
        if self.lora_rank is None and self.last_layers is None:
            raise ValueError("without lora_rank, set last_layers, the number of layers to train")
        return self


class GuardLimits(Strict):
    """Rules that stop a collapsed run at a validation; the best earlier state is kept.

    A rule stops the run if its value is below the limit; a limit of 0 switches the rule off.
    """

    distinct: Fraction = Field(0.1, description="share of distinct profiles, relative to that at the start")
    finished: Fraction = Field(
        0.5, description="share of profiles that end within max_tokens, relative to that at the start"
    )
    own: Fraction = Field(
        0.25,
        description="advantage of a user's own profile over another user's (mean log rank) plus two standard errors, "
        "relative to the advantage at the start; the rule needs a start more than two standard errors above 0",
    )
    entropy: Share = Field(
        0.02,
        description="entropy of the sampled profiles in nats per token; applies while validation NDCG is below that "
        "at the start",
    )


class ReinforcementRecipe(_Recipe):
    """RLSO: the encoder learns to write profiles with which the decoder ranks the target high (PAPER: Training)."""

    trains = "encoder"
    called = "reinforcement learning (RLSO)"

    kind: Literal["reinforcement"] = Field(description="trains the encoder")
    algorithm: str = Field(
        description="file of langptune.training.algorithms: rebel is the paper's, rloo and grpo are TRL's losses, sft "
        "is maximum likelihood of each session's best profile"
    )
    settings: dict[str, Weight] = Field(
        {}, description="the algorithm's own settings, which its file lists; rloo and grpo have `clip` (0.2)"
    )
    reward: str | dict[str, Weight] = Field(
        "ndcg",
        description="entry of langptune.training.rewards (`ndcg`, `mrr`, either with `@K`, `log-rank`, `piecewise`, "
        "`softmax`, `probability`, `contrast`, `title`), or a mapping from entries to weights, for a weighted sum",
    )
    targets: Count = Field(
        1,
        description="number of targets over which the reward is averaged: the session's own and the user's next ones "
        "in the train part",
    )
    terms: dict[str, Weight] = Field(
        {"unfinished": -1.0, "repetition": -2.0},
        description="entries of langptune.training.terms (`unfinished`, `repetition`, `list`, `length`, `copied`, "
        "`false_claims`, `steering`) -> weight in standard deviations of the batch's reward; 0: only in the curve",
    )
    shuffle_rewards: bool = Field(
        False,
        description="a control: the rewards of a batch are assigned to other sessions, so that they carry no "
        "information",
    )
    sessions_per_batch: Count = Field(description="sessions in one batch")
    sessions: Literal["all", "sample"] = Field(
        "sample",
        description="train sessions from which batches are drawn: the sampled ones, or all. Prompts are made only for "
        "the sessions that the phase draws",
    )
    samples: Annotated[int, Field(ge=2)] = Field(2, description="profiles per session")
    epochs: Count = Field(4, description="passes over the profiles of a batch")
    minibatches: Count = Field(1, description="optimiser steps per pass")
    temperature: Rate = Field(
        1.0, description="temperature of sampling and of the log-probabilities; there is no top-k and no top-p"
    )
    eta: Rate = Field(1.0, description="rebel: scale eta of the reward difference")
    kl: Share = Field(0.0, description="weight of log pi - log pi_0 (whole sequence), subtracted from the reward")
    standardise: Literal["batch", "session", "none"] = Field(
        "batch",
        description="scale rewards to mean 0 and variance 1 over all profiles of a batch (as published), over those "
        "of each session, or not at all",
    )
    unfinished: Literal["zero", "score"] = Field(
        "score",
        description="reward of a profile that did not end within max_tokens: 0, as published, or its score (with the "
        "term `unfinished`)",
    )
    guard: GuardLimits = Field(GuardLimits(), description="rules that stop a collapsed run")
    max_tokens: Count | None = Field(
        None, description="longest profile in training, in tokens; null: the method's max_tokens"
    )
    train: Trained = Field(Trained(), description="weights that are trained")
    cache_frozen: bool = Field(
        True, description="keep the outputs of the frozen lower layers for all passes over a batch; changes no result"
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
                hint = nearest(key, list(known)) or "; it has no settings"
                raise ValueError(f"settings: algorithm '{self.algorithm}' has no setting '{key}'{hint}")
        return self

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        weights = {value: 1.0} if isinstance(value, str) else value
        if not weights or not all(map(math.isfinite, weights.values())) or not any(weights.values()):
            raise ValueError("give each reward a finite weight, and at least one a weight other than 0")
        for name in weights:
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
        """The rewards and their weights; the recipe's reward is their weighted sum."""
        return {self.reward: 1.0} if isinstance(self.reward, str) else self.reward

    @model_validator(mode="after")
    def _unfinished_is_no_advantage(self) -> ReinforcementRecipe:
        if self.unfinished == "zero":
            for name, weight in self.rewards.items():
                if weight and (parse(name)[1].negative or weight < 0):
                    raise ValueError(
                        f"unfinished: 'zero' would be the highest possible reward, because '{name}' is below 0; use "
                        "'score', and a negative weight for the term 'unfinished'"
                    )
        return self

    @model_validator(mode="after")
    def _minibatches(self) -> ReinforcementRecipe:
        if self.sessions_per_batch % self.minibatches:
            raise ValueError("sessions_per_batch must be a multiple of minibatches")
        return self

    @model_validator(mode="after")
    def _other_sessions(self) -> ReinforcementRecipe:
        if self.shuffle_rewards and self.sessions_per_batch < 2:
            raise ValueError(
                "shuffle_rewards needs sessions_per_batch of at least 2: rewards are assigned to other sessions"
            )
        return self


class PerEncoder(Strict):
    """Several recipes under one name; a run uses the recipe of its encoder, and the phase has that recipe's name."""

    trains: ClassVar[None] = None

    kind: Literal["per-encoder"] = Field(description="the recipe depends on the encoder")
    recipes: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="entry of models.yaml (an encoder) -> entry of recipes.yaml"
    )

    def resolve(self, name: str, encoder: str, recipes: Mapping[str, RecipeEntry]) -> tuple[str, Recipe]:
        """Name and content of the encoder's recipe."""
        own = self.recipes[encoder]
        return own, recipes[own]

    def problems(self, name: str, encoders: list[str], recipes: Mapping[str, RecipeEntry]) -> Iterator[str]:
        """Encoders without a recipe, or with an unknown one."""
        for encoder in encoders:
            if encoder not in self.recipes:
                yield (
                    f"'{name}' has no recipe for encoder '{encoder}', only for {', '.join(sorted(self.recipes))}; add "
                    "it to its 'recipes' in recipes.yaml, or run the encoder in a config without this method"
                )
                continue
            known = [other for other, recipe in recipes.items() if recipe.trains is not None]
            if (own := self.recipes[encoder]) not in known:
                yield f"'{name}': recipes: {encoder}: unknown recipe '{own}'{nearest(own, known)}"


Recipe = ContrastiveRecipe | ReinforcementRecipe
RecipeEntry = Annotated[Recipe | PerEncoder, Field(discriminator="kind")]
