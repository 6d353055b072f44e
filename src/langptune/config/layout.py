"""Paths of all files of runs, phases and models; their names follow from their content."""

from __future__ import annotations

from dataclasses import replace

from langptune.config.phases import Draw, Phase
from langptune.config.workflow import Run, Workflow

UNTRAINED_SEED = 0
"""Seed in the paths of results that do not depend on a seed: untrained states, their greedy profiles, and the weights
of popularity chosen with these. They are written once, independent of ``seeds`` of the config."""


def encoder_of(models: str) -> str:
    """The encoder's name in a ``{models}`` segment."""
    return models.split("+")[0]


def decoder_of(models: str) -> str:
    """The decoder's name in a ``{models}`` segment."""
    return models.split("+")[-1]


class Layout:
    """Paths of a workflow's files, relative to the repository; a seed is a number or the text of a wildcard."""

    def __init__(self, workflow: Workflow):
        self._workflow = workflow
        self._config = workflow.config
        self.phase = f"{workflow.config.results}/{{dataset}}/phases/{{models}}/seed{{seed}}/{{phase}}"
        """Pattern of the folder of one phase."""

    def model_folder(self, name: str) -> str:
        """Folder of a materialised model."""
        return f"{self._config.models_dir}/{name}"

    def data_file(self, dataset: str, name: str) -> str:
        """A prepared file of a dataset: items, sessions, users, evaluation."""
        return f"{self._config.results}/{dataset}/data/{name}.parquet"

    def ranks_of(self, run: Run) -> str:
        """The ranks of one run."""
        return f"{self._config.results}/{run.folder}/ranks.parquet"

    def tuned(self, run: Run) -> str:
        """The choice among a baseline's validation trials, the same for all seeds."""
        return f"{self._config.results}/{run.dataset}/{run.method}/{run.models}/tune/best.json"

    def scores_of(self, run: Run, split: str) -> str:
        """The scores of one run on the compared test sessions, or on the sampled validation sessions (``val``).

        They exist only for methods that a fusion adds.
        """
        return f"{self._config.results}/{run.folder}/{'val_' * (split == 'val')}scores.parquet"

    def choice_of(self, run: Run) -> str:
        """The file with the weight of a fusion, or with how often its bound takes which rank."""
        return f"{self._config.results}/{run.folder}/choice.json"

    def metrics_of(self, run: Run) -> str:
        """The per-session metrics of one run."""
        return f"{self._config.results}/{run.folder}/metrics.parquet"

    def phase_folder(self, dataset: str, models: str, seed: int | str, phase: Phase) -> str:
        """Folder of a phase's model, curve and profiles.

        The path of a phase that has read only histories names only the decoder: the phase is the same for all encoders
        and for text methods.
        """
        models = models if phase.prompt is not None else decoder_of(models)
        return self.phase.format(dataset=dataset, models=models, seed=seed, phase=phase.id)

    def profiles_of(self, dataset: str, models: str, seed: int | str, phase: Phase, draw: Draw) -> str:
        """The profiles that a phase's encoder writes.

        Profiles of an untrained encoder are the same for all decoders; greedy ones are also the same for all seeds
        (``UNTRAINED_SEED``).
        """
        writer = phase.encoder
        if not writer.encoder_recipes:
            models = encoder_of(models)
            seed = seed if draw.temperature else UNTRAINED_SEED
        return f"{self.phase_folder(dataset, models, seed, writer)}/profiles/{draw.name}.parquet"

    def adapter_of(self, dataset: str, models: str, seed: int | str, phase: Phase) -> list[str]:
        """The adapter of a phase's encoder; empty if the encoder is untrained.

        A transferred encoder is that of the same models and seed on the dataset where it was trained.
        """
        writer = phase.encoder
        if writer.transfer is not None:
            dataset, writer = writer.transfer.dataset, writer.transfer.phase
        return [f"{self.phase_folder(dataset, models, seed, writer)}/encoder"] if writer.chain else []

    def decoder_folder(self, dataset: str, models: str, seed: int | str, phase: Phase) -> str:
        """The decoder of a phase, trained or materialised."""
        trained = phase.decoder
        if trained.chain:
            return f"{self.phase_folder(dataset, models, seed, trained)}/decoder"
        return self.model_folder(decoder_of(models))

    def vectors_of(self, dataset: str, models: str, seed: int | str, phase: Phase) -> str:
        """The item embeddings of a phase's decoder."""
        trained = phase.decoder
        if trained.chain:
            return f"{self.phase_folder(dataset, models, seed, trained)}/vectors.safetensors"
        return f"{self._config.results}/{dataset}/data/vectors/{decoder_of(models)}.safetensors"

    def weight_file(self, dataset: str, models: str, seed: int | str, phase: Phase) -> str:
        """The file of the weight of popularity, and of denials, that is chosen for the decoder of a phase.

        An untrained decoder has one weight for all seeds (``UNTRAINED_SEED``), unless a transferred encoder writes the
        profiles.
        """
        state = phase.weighed
        seed = seed if state.chain or state.transfer else UNTRAINED_SEED
        return f"{self.phase_folder(dataset, models, seed, state)}/popularity.json"

    def source_of(self, method: str) -> str:
        """The method whose texts a method ranks: the method itself, or the one that a control names."""
        return self._workflow.source_of(method)

    def reference_of(self, run: Run) -> Run:
        """The run with which a run's profiles are compared: the reference with the same dataset, models and seed."""
        return Run(run.dataset, self._config.interpretability.reference, run.models, run.seed)

    def run_phase(self, run: Run) -> Phase:
        """The phase that a run's profiles, decoder and vectors belong to."""
        return self._workflow.phase_of(run.dataset, self.source_of(run.method), run.models)

    def run_profiles(self, run: Run, split: str = "test") -> str:
        """The profiles of a split that a run of a profile method, or of its control, ranks."""
        entry = self._workflow.methods[self.source_of(run.method)]
        return self.profiles_of(run.dataset, run.models, run.seed, self.run_phase(run), entry.draw(split))

    def run_decoder(self, run: Run) -> str:
        """The folder of the decoder that ranks in a run."""
        return self.decoder_folder(run.dataset, run.models, run.seed, self.run_phase(run))

    def run_weight(self, run: Run) -> float | str:
        """The weight of popularity in a run's scores: the method's number, or the file of the chosen weight."""
        weight = self._workflow.methods[run.method].weight(self._workflow.methods)
        assert weight is not None
        if weight != "auto":
            return weight
        return self.weight_file(run.dataset, run.models, run.seed, self.run_phase(run))

    def run_denials(self, run: Run) -> float | str:
        """The weight of denials in a run's texts: the method's number, or the file of the chosen weight."""
        weight = self._workflow.methods[run.method].weight_of_denials(self._workflow.methods)
        if weight != "auto":
            return weight
        return self.weight_file(run.dataset, run.models, run.seed, self.run_phase(run))

    def untrained_decoder(self, run: Run) -> tuple[str, str] | None:
        """Folder and item embeddings of the untrained decoder that reads edits of a run; None if none does."""
        methods = self._workflow.methods
        if not methods[run.method].reads_edits(methods).untrained:
            return None
        start = replace(self.run_phase(run), chain=())
        place = run.dataset, run.models, run.seed, start
        return self.decoder_folder(*place), self.vectors_of(*place)

    def reward_denials(self, dataset: str, models: str, seed: int | str, phase: Phase) -> float | str:
        """The weight of denials in the reward of a phase: a number, or the file of the chosen weight."""
        if phase.denials is not None:
            return phase.denials
        return self.weight_file(dataset, models, seed, phase)

    def reward_weight(self, dataset: str, models: str, seed: int | str, phase: Phase) -> float | str:
        """The weight of popularity in the reward of a phase: a number, or the file of the chosen weight."""
        if phase.popularity is not None:
            return phase.popularity
        return self.weight_file(dataset, models, seed, phase)

    def run_vectors(self, run: Run) -> str:
        """The item embeddings of a run's decoder."""
        return self.vectors_of(run.dataset, run.models, run.seed, self.run_phase(run))
