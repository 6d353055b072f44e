"""Phases: a method's training as a chain of recipes, so that methods share the phases they have in common.

A chain is the list of recipes trained so far. Its last recipe defines what the phase trains; the recipes before it
define the state from which it starts. The empty chain is the pair of untrained models. LangPTune with K = 2 is
``cl, rlso, cl, rlso``; its first phase is all of LangPTune-CL with K = 1.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Literal

from langptune.config.recipes import Recipe

LONGEST = 80
"""Maximum characters of the recipes' names in a phase's name. A log's name also has dataset, models and
draw, and must stay below 255 characters."""


UNTRAINED_HISTORY = 10
"""Items in the histories with which the weight of popularity is chosen for an untrained decoder."""
DENIALS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidate weights of denials for methods with ``denials: auto``."""


@dataclass(frozen=True)
class Draw:
    """Profiles that a phase needs: their sessions, and how they are sampled.

    number: the iteration that trains on them, for sampled profiles.
    """

    split: str
    temperature: float = 0.0
    samples: int = 1
    number: int = 0

    @property
    def name(self) -> str:
        """Its file name: ``test``, ``train-t1-1``, ``test-t1-0-n8``."""
        if not self.temperature:
            return self.split
        return f"{self.split}-t{self.temperature:g}-{self.number}" + (f"-n{self.samples}" if self.samples > 1 else "")


VALIDATION = Draw("val")
"""Greedy profiles of the sampled validation sessions."""


@dataclass(frozen=True)
class Transfer:
    """An encoder that was trained on another dataset.

    dataset: its name.
    phase: the phase there that trained the encoder.
    """

    dataset: str
    phase: Phase


@dataclass(frozen=True)
class Phase:
    """One state of encoder and decoder: the texts, and the recipes trained so far.

    prompt: template of the prompt for profiles; None if the texts are the histories and there is no encoder.
    history_items: most recent items in the prompt, or in the text of a history.
    max_tokens: longest profile; 0 without an encoder.
    popularity: the method's weight of popularity in the encoder's reward; None: chosen on validation.
    transfer: the trained encoder from which it starts, and which no recipe of the chain trains further; None: the
        untrained one.
    denials: the method's weight of denials in texts; None: chosen on validation.
    """

    prompt: str | None
    history_items: int
    max_tokens: int
    train_fraction: float = 1.0
    chain: tuple[tuple[str, Recipe], ...] = ()
    popularity: float | None = None
    transfer: Transfer | None = None
    denials: float | None = 0.0

    @property
    def id(self) -> str:
        """Folder name: the names of the recipes, for readers, and a hash of everything that changes a result.

        If a chain is too long for file names, the name has only its last recipe and the position of it.
        """
        chain = [[name, recipe.identity()] for name, recipe in self.chain]
        # Without a recipe nothing is trained, so the fraction has no effect.
        fraction = self.train_fraction if chain else 1.0
        settings = [self.prompt, self.history_items, self.max_tokens, fraction, chain]
        # With weight 0 the name is the same as before the weights existed. Denials are chosen together with popularity.
        if (self._rewarded or self.denials is None) and self.popularity != 0:
            settings.append("auto" if self.popularity is None else self.popularity)
        if self.denials != 0:
            settings.append({"denials": "auto" if self.denials is None else self.denials})
        names = [name for name, _ in self.chain]
        if self.transfer is not None:
            settings.append({"from": self.transfer.dataset, "phase": self.transfer.phase.id})
            names = [f"from-{self.transfer.dataset}", *names]
        label = "+".join(names) or "start"
        if len(label) > LONGEST:
            label = f"phase-{len(self.chain)}-{self.chain[-1][0]}"
        return f"{label}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"

    @property
    def recipe(self) -> Recipe:
        """The recipe of this phase's training."""
        return self.chain[-1][1]

    @property
    def iteration(self) -> int:
        """Number of the chain's phases, up to this one, that train the same model (decoder or encoder); from 1."""
        return sum(recipe.kind == self.recipe.kind for _, recipe in self.chain)

    @property
    def stream(self) -> str:
        """The name of its random streams (``langptune.randomness``): it is unique within a chain.

        It does not depend on names or titles of recipes, so that methods that differ in a setting have the same noise.
        """
        return f"{self.recipe.kind}-{self.iteration}"

    @property
    def _rewarded(self) -> bool:
        """Whether a recipe of the chain trains the encoder, with rewards in which popularity may have a weight."""
        return any(recipe.trains == "encoder" for _, recipe in self.chain)

    @property
    def reads_histories_alone(self) -> bool:
        """Whether the chain has recipes, and none of them reads a profile."""
        return bool(self.chain) and not any(r.trains == "encoder" or r.needs_profiles for _, r in self.chain)

    def _cut(self, end: int) -> Phase:
        """The chain up to ``end``, as one phase for all methods whose chain begins with it.

        A phase that has read only histories depends neither on a method's prompt nor on an encoder. A phase without a
        rewarded encoder does not depend on the weight of popularity; and if no decoder was trained on profiles either,
        not on the weight of denials.
        """
        short = replace(self, chain=self.chain[:end])
        if not short._rewarded:
            short = replace(short, popularity=None)
            if not any(recipe.needs_profiles for _, recipe in short.chain):
                short = replace(short, denials=0.0)
        if short.reads_histories_alone:
            return replace(short, prompt=None, history_items=0, max_tokens=0, transfer=None)
        return short

    def _end(self, role: Literal["decoder", "encoder"]) -> int:
        """Length of the chain up to its last recipe that trains this model; 0 if none does."""
        return max((at for at, (_, recipe) in enumerate(self.chain, 1) if recipe.trains == role), default=0)

    @property
    def parent(self) -> Phase:
        """The phase from which it starts."""
        return self._cut(len(self.chain) - 1)

    @property
    def encoder(self) -> Phase:
        """The phase whose encoder this phase uses; the start if no recipe of the chain trains one."""
        return self._cut(self._end("encoder"))

    @property
    def encoder_recipes(self) -> list[str]:
        """The names of all recipes up to the encoder's last training, here or on another dataset; empty: untrained."""
        trained = self.encoder if self.transfer is None else self.transfer.phase
        return [name for name, _ in trained.chain]

    @property
    def decoder(self) -> Phase:
        """The phase whose decoder this phase uses; the start if no decoder was trained."""
        return self._cut(self._end("decoder"))

    @property
    def weighed(self) -> Phase:
        """The state in which the weight of popularity is chosen: directly after the decoder's training.

        A phase that trains only the encoder keeps the weight: all texts that one decoder ranks have the same weight. An
        untrained decoder has one weight for all methods.

        The weight of denials is chosen together with it, in a state of its own: by the method's profiles, because
        histories deny nothing, and with the method's number for popularity if it has one.
        """
        state = self.decoder if self._end("decoder") else Phase(None, UNTRAINED_HISTORY, 0)
        if self.denials is not None:
            return state
        if self.prompt is not None:
            written = {"prompt": self.prompt, "history_items": self.history_items, "max_tokens": self.max_tokens}
            state = replace(state, **written, transfer=self.transfer)
        return replace(state, popularity=self.popularity, denials=None)

    @property
    def weighed_by(self) -> Literal["profiles", "history"]:
        """The validation texts with which a state's weight is chosen: those that select the decoder's state.

        With a weight of denials to choose, they are profiles wherever there are some.
        """
        if self.prompt is None:
            return "history"
        return "profiles" if self.denials is None or self.recipe.texts != "history" else "history"

    def draws(self) -> list[Draw]:
        """The profiles that this phase's training reads; a phase that trains the encoder writes its own."""
        if self.prompt is None or not self.chain or not self.recipe.needs_profiles:
            return []
        temperature = self.recipe.profile_temperature
        number = self.iteration if temperature else 0
        return [Draw("train", temperature, self.recipe.profile_samples, number), VALIDATION]

    def all(self) -> list[Phase]:
        """This phase and all phases before it, the start first."""
        return [self._cut(end) for end in range(len(self.chain) + 1)]
