"""A job of a rule, given by its wildcards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from langptune.config.layout import decoder_of, encoder_of
from langptune.config.phases import DENIALS, VALIDATION, Draw, Phase
from langptune.config.workflow import Run
from langptune.workflow.project import Project


class Job:
    """One job of a rule. A property that needs a wildcard which the rule does not have raises ``KeyError``.

    Files are paths; None where the job has no such file.
    """

    def __init__(self, project: Project, wildcards: Mapping[str, str], phase: Phase | None = None):
        """``phase``: the job's phase, where it is not that of its wildcards (``before``)."""
        self.project, self.wildcards, self._phase = project, wildcards, phase

    # Entries

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.wildcards["dataset"]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.wildcards["method"]

    @property
    def source(self) -> Any:
        """The entry of the method whose texts this job's method uses for ranking."""
        return self.project.source(self.method)

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.wildcards["seed"])

    @cached_property
    def models(self) -> str:
        """The ``{models}`` segment of its paths."""
        wildcards = self.wildcards
        if "models" in wildcards:
            return wildcards["models"]
        named = [wildcards[role] for role in ("encoder", "decoder") if role in wildcards]
        if not named:
            raise KeyError("models")
        return "+".join(named)

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return encoder_of(self.models)

    @property
    def decoder(self) -> str:
        """The decoder's name."""
        return decoder_of(self.models)

    @cached_property
    def run(self) -> Run:
        """The run of a rule whose output names method, models and seed."""
        return Run(self.dataset, self.method, self.models, self.seed)

    @cached_property
    def phase(self) -> Phase:
        """The phase that it trains or writes profiles of, or the last phase of its run."""
        if self._phase is not None:
            return self._phase
        if "phase" in self.wildcards:
            return self.project.phases[self.wildcards["phase"]]
        return self.project.paths.run_phase(self.run)

    @property
    def before(self) -> Job:
        """The same job one phase earlier."""
        return Job(self.project, self.wildcards, self.phase.parent)

    @property
    def draw(self) -> Draw:
        """The draw of the profiles that it writes."""
        return self.project.draws[self.wildcards["draw"]]

    @property
    def weight(self) -> float | str:
        """The weight of popularity in its scores: a number, or the file with the chosen weight."""
        if "phase" in self.wildcards:
            return self.project.paths.reward_weight(*self._place, self.phase)
        return self.project.paths.run_weight(self.run)

    @property
    def denials(self) -> float | str:
        """The weight of denials in its texts: a number, or the file with the chosen weight."""
        if "phase" in self.wildcards:
            return self.project.paths.reward_denials(*self._place, self.phase)
        return self.project.paths.run_denials(self.run)

    @property
    def _place(self) -> tuple[str, str, str]:
        return self.dataset, self.models, self.wildcards["seed"]

    # Parts of specs

    def used_encoder(self) -> Any:
        """The registry entry of its encoder, without keys that do not affect results."""
        return self.project.used(self.encoder)

    def used_decoder(self) -> Any:
        """The registry entry of its decoder, without keys that do not affect results."""
        return self.project.used(self.decoder)

    def prompt(self) -> dict[str, Any]:
        """Name and entry of the prompt of its profiles."""
        if "phase" in self.wildcards:
            name = self.phase.prompt
        else:
            name = self.project.workflow.prompt_of(self.dataset, self.project.workflow.source_of(self.method))
        return {"prompt": name, "prompt_entry": self.project.prompts[name]}

    def number_of_weight(self) -> dict[str, float]:
        """The weight of popularity where it is a number; empty where ``popularity_in`` has the file of a chosen one."""
        return {} if isinstance(self.weight, str) else {"weight": self.weight}

    def reading(self) -> dict[str, Any]:
        """How denials in its texts count; empty where texts are embedded whole.

        ``denials_in`` has the file of a chosen weight.
        """
        if self.denials == 0:
            return {}
        number = {} if isinstance(self.denials, str) else {"denials": self.denials}
        return {**number, "taste_field": self.project.taste_field(self.dataset)}

    def edit_reading(self) -> dict[str, Any]:
        """How edits of its texts are read, where the method says so; empty if they are read as unedited texts."""
        used = self.project.methods[self.method].reads_edits(self.project.methods)
        denials = {} if used.denials is None else {"edited_denials": used.denials}
        return ({"untrained_edits": used.untrained} if used.untrained else {}) | denials

    def likes_alone(self) -> dict[str, Any]:
        """The settings with which denials are left out of the profiles that its phase trains a decoder on."""
        if self.phase.denials == 0:
            return {}
        return {"without_denials": True, "taste_field": self.project.taste_field(self.dataset)}

    def weights(self) -> list[float]:
        """The candidate weights of popularity; beside a choice of denials, a number of the method is the only one."""
        phase = self.phase
        if phase.denials is None and phase.popularity is not None:
            return [phase.popularity]
        return self.project.config.training.popularity_weights

    def grid_of_denials(self) -> dict[str, Any]:
        """The candidate weights of denials, or the only one; empty where texts are embedded whole."""
        if self.phase.denials == 0:
            return {}
        grid = list(DENIALS) if self.phase.denials is None else [self.phase.denials]
        return {"denials": grid, "taste_field": self.project.taste_field(self.dataset)}

    def card(self, model: str) -> dict[str, str]:
        """The fields of a model card on data and base model; ``model``: the name of the base model."""
        entry, base = self.project.datasets[self.dataset], self.project.models[model]
        return {
            "base": base.source.hub or base.source.package or base.source.folder,
            "licence": base.licence,
            "phase": self.wildcards["phase"],
            "dataset": f"{entry.title} ({entry.licence})",
        }

    def subjects(self) -> dict[str, Any]:
        """The settings that all measures of profiles share: the sessions that are measured, and the field of tastes."""
        measures = self.project.config.interpretability
        return {
            "history_items": self.source.history_items,
            "shuffle": self.shuffle,
            "sessions": measures.sessions,
            "seed": measures.seed,
            "taste_field": self.project.taste_field(self.dataset),
        }

    @property
    def shuffle(self) -> int | None:
        """The seed of the shuffle that gives its method's profiles to other users; None without a shuffle."""
        return self.seed if self.project.workflow.shuffled(self.method) else None

    def change(self) -> dict[str, Any]:
        """The change that a control makes to the texts of its method; empty for other methods."""
        change = self.project.methods[self.method].changes()
        if change is None:
            return {}
        return {"change": change, **({} if self.shuffle is None else {"seed": self.shuffle})}

    # Files

    @property
    def sample(self) -> str:
        """The file of the sampled sessions of its profiles."""
        return self.project.paths.data_file(self.dataset, "evaluation" if self.draw.split == "test" else "training")

    def limit_folder(self, role: str) -> str | None:
        """The folder of the model of one role whose tokenizer counts its dataset's texts; None without token limits."""
        name = self.project.limit_models(self.dataset).get(role)
        return name and self.project.paths.model_folder(name)

    @property
    def encoder_folder(self) -> str:
        """The materialised encoder."""
        return self.project.paths.model_folder(self.encoder)

    @property
    def adapter(self) -> str | None:
        """The trained adapter of the encoder of its phase; None where it is untrained."""
        return next(iter(self.project.paths.adapter_of(*self._place, self.phase)), None)

    @property
    def decoder_folder(self) -> str:
        """The decoder of its phase, trained or materialised."""
        return self.project.paths.decoder_folder(*self._place, self.phase)

    @property
    def vectors(self) -> str:
        """The vectors of the catalogue by that decoder."""
        return self.project.paths.vectors_of(*self._place, self.phase)

    @property
    def untrained_folder(self) -> str | None:
        """The untrained decoder, if it reads edits of its run."""
        return (self.project.paths.untrained_decoder(self.run) or (None, None))[0]

    @property
    def untrained_vectors(self) -> str | None:
        """The vectors of the catalogue by that decoder."""
        return (self.project.paths.untrained_decoder(self.run) or (None, None))[1]

    @property
    def popularity(self) -> str | None:
        """The file of the chosen weight of popularity; None where the config has a number."""
        return self.weight if isinstance(self.weight, str) else None

    @property
    def denials_file(self) -> str | None:
        """The file of the chosen weight of denials; None where the method has a number."""
        return self.denials if isinstance(self.denials, str) else None

    @property
    def written(self) -> str:
        """The profiles of its phase and draw."""
        return f"{self.project.paths.phase.format(**self.wildcards)}/profiles/{self.draw.name}.parquet"

    @property
    def profiles(self) -> str:
        """The test profiles of its run."""
        return self.project.paths.run_profiles(self.run)

    @property
    def val_profiles(self) -> str | None:
        """The validation profiles of its run; None where it ranks by histories."""
        return self.project.paths.run_profiles(self.run, "val") if self.project.has_profiles(self.method) else None

    def part_scores(self, split: str) -> list[str]:
        """The scores of the two runs whose scores a fusion adds; empty where it combines their ranks."""
        parts = self.project.workflow.parts_of(self.run)
        adds = self.project.methods[self.method].adds_scores()
        return [self.project.paths.scores_of(part, split) for part in parts if adds]

    @property
    def part_ranks(self) -> list[str]:
        """The ranks of the two runs that a fusion combines by their ranks; empty where it adds their scores."""
        parts = self.project.workflow.parts_of(self.run)
        adds = self.project.methods[self.method].adds_scores()
        return [self.project.paths.ranks_of(part) for part in parts if not adds]

    @property
    def reference_profiles(self) -> str:
        """The test profiles of the reference of its run."""
        return self.project.paths.run_profiles(self.project.paths.reference_of(self.run))

    def read_profiles(self, split: str) -> str | None:
        """The profiles of one split that training its phase reads; None where it reads histories."""
        draws = [draw for draw in self.phase.draws() if draw.split == split]
        return self.project.paths.profiles_of(*self._place, self.phase, draws[0]) if draws else None

    @property
    def weighing_profiles(self) -> str | None:
        """The validation profiles for choosing a weight of popularity; None where histories are used."""
        if self.phase.weighed_by != "profiles":
            return None
        return self.project.paths.profiles_of(*self._place, self.phase, VALIDATION)
