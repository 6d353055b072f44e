"""Phases: a method's training as a chain of recipes, so that methods share every phase they have in common.

A chain is the list of recipes trained so far. Its last recipe says what the phase trains, the part before it where it
starts from; the empty chain is the pair of untrained models. LangPTune with K = 2 is ``cl, rlso, cl, rlso``; its first
phase is all of LangPTune-CL with K = 1.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from langptune.config.methods import ProfileMethod, TextMethod
from langptune.config.recipes import ContrastiveRecipe, Recipe, ReinforcementRecipe

LONGEST = 80
"""Characters of the recipes' names in a phase's; with dataset, models and draw, a log's name must stay below 255."""


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


@dataclass(frozen=True)
class Phase:
    """One state of encoder and decoder: what the texts are, and the recipes gone through.

    prompt: template of the profiles; None where the texts are the histories themselves and there is no encoder.
    max_tokens: longest profile; 0 without an encoder.
    """

    prompt: str | None
    history_items: int
    max_tokens: int
    train_fraction: float = 1.0
    chain: tuple[tuple[str, Recipe], ...] = ()

    @property
    def id(self) -> str:
        """A folder name: the recipes for people, a hash of all that changes a result for the rest.

        Of a chain too long for the names of files that hold it, the last recipe and its place.
        """
        chain = [[name, recipe.identity()] for name, recipe in self.chain]
        # Without a recipe nothing is trained, so the fraction says nothing.
        fraction = self.train_fraction if chain else 1.0
        told = json.dumps([self.prompt, self.history_items, self.max_tokens, fraction, chain], sort_keys=True)
        label = "+".join(name for name, _ in self.chain) or "start"
        if len(label) > LONGEST:
            label = f"phase-{len(self.chain)}-{self.chain[-1][0]}"
        return f"{label}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    @property
    def recipe(self) -> Recipe:
        """What this phase trains by."""
        return self.chain[-1][1]

    @property
    def parent(self) -> Phase:
        """The phase it starts from."""
        return replace(self, chain=self.chain[:-1])

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

    def _last(self, kind: type) -> Phase:
        """The shortest phase with the same model: the chain up to its last recipe of this kind."""
        ends = [at + 1 for at, (_, recipe) in enumerate(self.chain) if isinstance(recipe, kind)]
        return replace(self, chain=self.chain[: ends[-1] if ends else 0])

    @property
    def encoder(self) -> Phase:
        """The phase whose encoder this one uses; the start where none was trained."""
        return self._last(ReinforcementRecipe)

    @property
    def decoder(self) -> Phase:
        """The phase whose decoder this one uses; the start where none was trained."""
        return self._last(ContrastiveRecipe)

    def draws(self) -> list[Draw]:
        """The profiles that training this phase reads; an encoder phase writes its own."""
        if self.prompt is None or not self.chain or not isinstance(self.recipe, ContrastiveRecipe):
            return []
        temperature = self.recipe.profile_temperature
        return [Draw("train", temperature, number=self.iteration if temperature else 0), Draw("val")]

    def all(self) -> list[Phase]:
        """This phase and every one before it, the start first."""
        return [replace(self, chain=self.chain[:end]) for end in range(len(self.chain) + 1)]


def final_phase(
    method: ProfileMethod | TextMethod, prompt: str | None, iteration: tuple[tuple[str, Recipe], ...]
) -> Phase:
    """The phase that a method is evaluated after; ``iteration``: names and recipes of its ``phases``."""
    chain = iteration * method.iterations
    if isinstance(method, TextMethod):
        return Phase(None, method.history_items, 0, method.train_fraction, chain)
    return Phase(prompt, method.history_items, method.max_tokens, method.train_fraction, chain)


def evaluation_draw(method: ProfileMethod) -> Draw:
    """The test profiles that a method is ranked by."""
    return Draw("test", method.temperature, method.best_of)
