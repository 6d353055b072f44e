"""Phases: a method's training as a chain of recipes, so that methods share every phase they have in common.

A chain is the list of recipes trained so far. Its last recipe says what the phase trains, the part before it where it
starts from; the empty chain is the pair of untrained models. LangPTune with K = 2 is ``cl, rlso, cl, rlso``; its first
phase is all of LangPTune-CL with K = 1.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Literal

from langptune.config.recipes import Recipe

LONGEST = 80
"""Characters of the recipes' names in a phase's; with dataset, models and draw, a log's name must stay below 255."""


UNTRAINED_HISTORY = 10
"""Items of the histories by which the weight of popularity is chosen for an untrained decoder."""


@dataclass(frozen=True)
class Draw:
    """Profiles that a phase needs: of which sessions, and how they are drawn.

    number: which draw of its kind, for sampled profiles (the iteration that trains on them).
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
class Phase:
    """One state of encoder and decoder: what the texts are, and the recipes gone through.

    prompt: template of the profiles; None where the texts are the histories themselves and there is no encoder.
    history_items: most recent items in the prompt, or in the text of a history.
    max_tokens: longest profile; 0 without an encoder.
    popularity: the method's weight of popularity, by which its encoder is rewarded; null: chosen on validation.
    """

    prompt: str | None
    history_items: int
    max_tokens: int
    train_fraction: float = 1.0
    chain: tuple[tuple[str, Recipe], ...] = ()
    popularity: float | None = None

    @property
    def id(self) -> str:
        """A folder name: the recipes for people, a hash of all that changes a result for the rest.

        Of a chain too long for the names of files that hold it, the last recipe and its place.
        """
        chain = [[name, recipe.identity()] for name, recipe in self.chain]
        # Without a recipe nothing is trained, so the fraction says nothing.
        fraction = self.train_fraction if chain else 1.0
        told = [self.prompt, self.history_items, self.max_tokens, fraction, chain]
        if self._rewarded and self.popularity != 0:  # at 0 a name is what it was before there was a weight
            told.append("auto" if self.popularity is None else self.popularity)
        label = "+".join(name for name, _ in self.chain) or "start"
        if len(label) > LONGEST:
            label = f"phase-{len(self.chain)}-{self.chain[-1][0]}"
        return f"{label}-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]}"

    @property
    def recipe(self) -> Recipe:
        """What this phase trains by."""
        return self.chain[-1][1]

    @property
    def iteration(self) -> int:
        """Which time it is, from 1, that the chain trains what this phase trains: the decoder or the encoder."""
        return sum(recipe.kind == self.recipe.kind for _, recipe in self.chain)

    @property
    def stream(self) -> str:
        """The name of its random streams (``langptune.randomness``): no two phases of a chain have the same one.

        Neither names nor titles of recipes take part, so that methods that differ in a setting see the same noise.
        """
        return f"{self.recipe.kind}-{self.iteration}"

    @property
    def _rewarded(self) -> bool:
        """Whether a recipe of the chain trains the encoder, by ranks in which popularity may have a weight."""
        return any(recipe.trains == "encoder" for _, recipe in self.chain)

    @property
    def reads_histories_alone(self) -> bool:
        """Whether something is trained, and nothing of it reads a profile."""
        return bool(self.chain) and not any(r.trains == "encoder" or r.needs_profiles for _, r in self.chain)

    def _cut(self, end: int) -> Phase:
        """The chain up to ``end``, as one phase of training for all methods that begin with it.

        What has only read histories does not depend on a method's prompt, nor on an encoder; what has not rewarded an
        encoder does not depend on the weight of popularity.
        """
        short = replace(self, chain=self.chain[:end])
        if not short._rewarded:
            short = replace(short, popularity=None)
        return replace(short, prompt=None, history_items=0, max_tokens=0) if short.reads_histories_alone else short

    def _end(self, role: Literal["decoder", "encoder"]) -> int:
        """Length of the chain up to its last recipe that trains this model; 0 where none does."""
        return max((at for at, (_, recipe) in enumerate(self.chain, 1) if recipe.trains == role), default=0)

    @property
    def parent(self) -> Phase:
        """The phase it starts from."""
        return self._cut(len(self.chain) - 1)

    @property
    def encoder(self) -> Phase:
        """The phase whose encoder this one uses; the start where none was trained."""
        return self._cut(self._end("encoder"))

    @property
    def decoder(self) -> Phase:
        """The phase whose decoder this one uses; the start where none was trained."""
        return self._cut(self._end("decoder"))

    @property
    def weighed(self) -> Phase:
        """The state in which the weight of popularity is chosen: just after the decoder was trained.

        A phase that trains the encoder alone keeps the weight: all texts that a decoder ranks share one. An untrained
        decoder has one weight for all methods.
        """
        return self.decoder if self._end("decoder") else Phase(None, UNTRAINED_HISTORY, 0)

    @property
    def weighed_by(self) -> Literal["profiles", "history"]:
        """The validation texts by which a state's weight is chosen: those that the decoder's training selects by."""
        return "history" if self.prompt is None or self.recipe.texts == "history" else "profiles"

    def draws(self) -> list[Draw]:
        """The profiles that training this phase reads; an encoder phase writes its own."""
        if self.prompt is None or not self.chain or not self.recipe.needs_profiles:
            return []
        temperature = self.recipe.profile_temperature
        number = self.iteration if temperature else 0
        return [Draw("train", temperature, self.recipe.profile_samples, number), VALIDATION]

    def all(self) -> list[Phase]:
        """This phase and every one before it, the start first."""
        return [self._cut(end) for end in range(len(self.chain) + 1)]
