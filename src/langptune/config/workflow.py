"""A checked config with the entries of its registries: which runs it has, and what each of them uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from langptune.config.datasets import DatasetEntry
from langptune.config.judges import Judge
from langptune.config.method import Method
from langptune.config.models import DecoderEntry, EncoderEntry
from langptune.config.phases import Phase, Transfer
from langptune.config.prompts import Prompt
from langptune.config.published import Published
from langptune.config.recipes import PerEncoder, Recipe
from langptune.config.settings import Config, Contrast, shown


@dataclass(frozen=True)
class Run:
    """One cell of the grid: a method with its models on a dataset, for one seed.

    ``models`` is ``encoder+decoder``, ``decoder``, a baseline's label, or the labels of a fusion's two baselines joined
    by ``-``.
    """

    dataset: str
    method: str
    models: str
    seed: int

    @property
    def folder(self) -> str:
        """``{dataset}/{method}/{models}/seed{seed}``, relative to the results folder."""
        return f"{self.dataset}/{self.method}/{self.models}/seed{self.seed}"


class Variant(NamedTuple):
    """One method of a study.

    of: the original method.
    value: value of the key; None if models or a recipe vary.
    name: the derived method; ``of`` itself if it is run unchanged.
    setting: in a study of a recipe, the variant's name in tables and figures ("variant") and the values of the grid's
        keys; empty if the method is run unchanged.
    """

    of: str
    value: int | float | None
    name: str
    setting: dict[str, str] = {}


@dataclass(frozen=True)
class Workflow:
    """A config with its registries, checked as a whole. Build it with ``load``."""

    config: Config
    datasets: dict[str, DatasetEntry]
    models: dict[str, EncoderEntry | DecoderEntry]
    methods: dict[str, Method]
    prompts: dict[str, Prompt]
    recipes: dict[str, Recipe | PerEncoder]
    judges: dict[str, Judge]
    published: tuple[Published, ...] = ()

    def runs(self, dataset: str | None = None, study: str | None = None) -> list[Run]:
        """All runs of the comparison, or of one study, in the order of its lists.

        Deterministic methods run with one seed. A method has no run on the dataset that its encoder comes from.
        """
        out = []
        names = self.config.methods if study is None else [one.name for one in self.variants(study)]
        all_seeds = (study and self.config.studies[study].seeds) or self.config.seeds
        for data in [dataset] if dataset else self.config.datasets:
            for name in names:
                if not self.runs_on(name, data):
                    continue
                seeds = self.config.seeds[:1] if self.deterministic(name) else all_seeds
                out += [Run(data, name, models, seed) for models in self.models_of(name) for seed in seeds]
        return out

    def points(self, name: str) -> list[dict[str, Any]]:
        """The points of a method that are tried on validation; empty if nothing is tuned.

        They are those of its grid, or ``trials`` of the config drawn with the seed that fits them, the first one.
        """
        return self.methods[name].points(self.config.trials, self.config.seeds[0])

    def source_of(self, name: str) -> str:
        """The method whose texts, phases and models a method uses: itself, or the one that a control names."""
        return self.methods[name].source(name)

    def text_of(self, name: str) -> str | None:
        """The kind of text that represents a session for a method; None if the method has no text."""
        return self.methods[name].text(self.methods)

    def deterministic(self, name: str) -> bool:
        """Whether a method uses no random numbers, so that one seed is enough."""
        return self.methods[name].one_seed(self.methods)

    def runs_on(self, name: str, dataset: str) -> bool:
        """Whether a method has runs on a dataset of the config."""
        return self.methods[name].runs_on(dataset, self.methods)

    def contrasts_of(self, dataset: str) -> dict[str, Contrast]:
        """The contrasts whose methods all have runs on a dataset, by name."""
        return {
            name: contrast
            for name, contrast in self.config.comparison.contrasts.items()
            if all(self.runs_on(method, dataset) for method in contrast.methods)
        }

    def shuffled(self, name: str) -> bool:
        """Whether a method ranks each session with another user's profile."""
        return self.text_of(name) == "shuffled-profiles"

    def models_of(self, name: str) -> list[str]:
        """The ``{models}`` path segments of a method's runs."""
        return self.methods[name].models(self.config, self.methods)

    def parts_of(self, run: Run) -> list[Run]:
        """The runs that a run of a fusion combines, with its models and seed where they have these; else empty.

        A text method has only the decoder of the fusion's models, a baseline has its own label.
        """
        out = []
        for part in self.methods[run.method].parts():
            there = self.models_of(part)
            models = next((name for name in (run.models, run.models.split("+")[-1]) if name in there), there[0])
            seed = self.config.seeds[0] if self.deterministic(part) else run.seed
            out.append(Run(run.dataset, part, models, seed))
        return out

    @property
    def readable(self) -> list[str]:
        """The methods whose profiles `make interpret` measures, the reference first."""
        interpretability = self.config.interpretability
        names = interpretability.methods or [name for name in self.config.methods if self.one_profile(name)]
        return sorted(names, key=lambda name: name != interpretability.reference)

    def one_profile(self, name: str) -> bool:
        """Whether a method has one profile for each session: its own, or another user's."""
        return self.methods[name].one_profile(self.methods)

    @property
    def reference(self) -> str:
        """The method with which every other method of the comparison is compared."""
        methods = self.config.methods
        return self.config.comparison.reference or ("langptune-0" if "langptune-0" in methods else methods[0])

    @property
    def verifier(self) -> str | None:
        """The model that decides whether a history supports a claim; None if the run has no decoder and names none."""
        return self.config.interpretability.verifier or next(iter(self.config.decoders), None)

    @property
    def local_encoders(self) -> list[str]:
        """The run's encoders whose weights are local, so that probabilities are known."""
        return [name for name in self.config.encoders if self.models[name].source.endpoint is None]

    @property
    def reader(self) -> str | None:
        """The model that identifies the next item from a profile; None if the run has no encoder and names none."""
        named = self.config.interpretability.reader
        return named or next(iter(self.local_encoders or self.config.encoders), None)

    @property
    def interpreters(self) -> list[str]:
        """Verifier, reader and judges' models of `make interpret`; empty if the run has no profiles."""
        if not self.readable:
            return []
        judges = [self.judges[judge].model for judge in self.config.interpretability.judges]
        return [name for name in (self.verifier, self.reader, *judges) if name is not None]

    def variants(self, study: str) -> list[Variant]:
        """The methods of one study."""
        definition = self.config.studies[study]
        if definition.key == "models":
            return [Variant(name, None, name) for name in definition.methods]
        if definition.key != "recipe":
            return [
                Variant(name, value, variant(name, definition.key, value))
                for name in definition.methods
                for value in definition.values
            ]
        out = []
        for name in definition.methods:
            if definition.recipe not in getattr(self.methods[name], "phases", []):
                out.append(Variant(name, None, name))
                continue
            for slug, title, change in definition.changes():
                entry = self.recipes[f"{definition.recipe}.{slug}"].model_dump()
                cell = {key: shown(entry[key]) for key in definition.grid}
                rest = ", ".join(list(cell.values())[:-1]) if change.keys() == definition.grid.keys() else title
                out.append(Variant(name, None, f"{name}.{slug}", {"variant": rest or title, **cell}))
        return out

    def published_of(self, dataset: str) -> dict[tuple[str, str, str], Published]:
        """Published numbers for the comparison's rows on a dataset: (method, models, metric) -> number.

        A published number without models is shown for all models of its method. Of several sources for a cell, the
        first in the file counts.
        """
        comparison = self.config.comparison
        name = comparison.published_as.get(dataset, dataset)
        numbers: dict[tuple[str, str, str], Published] = {}
        for one in self.published:
            if one.dataset == name and not one.key:
                numbers.setdefault((one.method, one.models, one.metric), one)
        cells = [(run.method, run.models, metric) for run in self.runs(dataset) for metric in comparison.metrics]
        found = {cell: numbers.get(cell) or numbers.get((cell[0], "", cell[2])) for cell in cells}
        return {cell: number for cell, number in found.items() if number is not None}

    def phase_of(self, dataset: str, method: str, models: str) -> Phase:
        """The phase after which a profile or text method is evaluated; ``models`` is the run's path segment."""
        entry = self.methods[method]
        iteration = tuple(self.recipe_of(name, models.split("+")[0]) for name in entry.phases)
        origin, transfer = entry.origin(), None
        if origin is not None:
            transfer = Transfer(origin.dataset, self.phase_of(origin.dataset, origin.method, models).encoder)
        return entry.phase(self.datasets[dataset].prompt, iteration, transfer)

    def recipe_of(self, name: str, encoder: str) -> tuple[str, Recipe]:
        """Name and content of the recipe that an entry of recipes.yaml means for an encoder."""
        return self.recipes[name].resolve(name, encoder, self.recipes)

    def prompt_of(self, dataset: str, method: str) -> str:
        """The name of the prompt template that a profile method uses on a dataset."""
        return self.methods[method].prompt or self.datasets[dataset].prompt


def variant(method: str, key: str, value: int | float) -> str:
    """The name of a study's derived method."""
    return f"{method}.{key}-{value:g}"
