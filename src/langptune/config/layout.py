"""Where everything lies: the files of runs, phases and models, named by what they hold."""

from __future__ import annotations

from langptune.config.phases import Draw, Phase
from langptune.config.workflow import Run, Workflow

UNTRAINED_SEED = 0
"""The seed under which lies what no seed changes: states without training, their greedy profiles, and the weights of
popularity chosen by these. Whatever ``seeds`` of a config lists, and in whichever order, it is written once."""


def encoder_of(models: str) -> str:
    """The encoder's name in a ``{models}`` segment."""
    return models.split("+")[0]


def decoder_of(models: str) -> str:
    """The decoder's name in a ``{models}`` segment."""
    return models.split("+")[-1]


class Layout:
    """Paths of a workflow's files, relative to the repository; a seed may be a number or a wildcard's text."""

    def __init__(self, workflow: Workflow):
        self._workflow = workflow
        self._config = workflow.config
        self.phase = f"{workflow.config.results}/{{dataset}}/phases/{{models}}/seed{{seed}}/{{phase}}"
        """Folder of one phase, as a pattern."""

    def model_folder(self, name: str) -> str:
        """Where a materialised model lies."""
        return f"{self._config.models_dir}/{name}"

    def data_file(self, dataset: str, name: str) -> str:
        """A prepared file of a dataset: items, sessions, users, evaluation."""
        return f"{self._config.results}/{dataset}/data/{name}.parquet"

    def ranks_of(self, run: Run) -> str:
        """The ranks of one run."""
        return f"{self._config.results}/{run.folder}/ranks.parquet"

    def metrics_of(self, run: Run) -> str:
        """The per-session metrics of one run."""
        return f"{self._config.results}/{run.folder}/metrics.parquet"

    def phase_folder(self, dataset: str, models: str, seed: int | str, phase: Phase) -> str:
        """Where a phase's model, curve and profiles lie.

        What has read histories alone lies under the decoder: it is one phase for all encoders, and for text methods.
        """
        models = models if phase.prompt is not None else decoder_of(models)
        return self.phase.format(dataset=dataset, models=models, seed=seed, phase=phase.id)

    def profiles_of(self, dataset: str, models: str, seed: int | str, phase: Phase, draw: Draw) -> str:
        """The profiles that a phase's encoder writes.

        Untrained, it is the same for all decoders; greedy, it is the same for all seeds too (``UNTRAINED_SEED``).
        """
        writer = phase.encoder
        if not writer.chain:
            models = encoder_of(models)
            seed = seed if draw.temperature else UNTRAINED_SEED
        return f"{self.phase_folder(dataset, models, seed, writer)}/profiles/{draw.name}.parquet"

    def adapter_of(self, dataset: str, models: str, seed: int | str, phase: Phase) -> list[str]:
        """The adapter of a phase's encoder; nothing where it is untrained."""
        writer = phase.encoder
        return [f"{self.phase_folder(dataset, models, seed, writer)}/encoder"] if writer.chain else []

    def decoder_folder(self, dataset: str, models: str, seed: int | str, phase: Phase) -> str:
        """The decoder of a phase, trained or materialised."""
        trained = phase.decoder
        if trained.chain:
            return f"{self.phase_folder(dataset, models, seed, trained)}/decoder"
        return self.model_folder(decoder_of(models))

    def vectors_of(self, dataset: str, models: str, seed: int | str, phase: Phase) -> str:
        """The catalogue as the decoder of a phase embeds it."""
        trained = phase.decoder
        if trained.chain:
            return f"{self.phase_folder(dataset, models, seed, trained)}/vectors.safetensors"
        return f"{self._config.results}/{dataset}/data/vectors/{decoder_of(models)}.safetensors"

    def weight_file(self, dataset: str, models: str, seed: int | str, phase: Phase) -> str:
        """Where the weight of popularity stands that is chosen for the decoder of a phase.

        An untrained decoder has one for all seeds (``UNTRAINED_SEED``).
        """
        state = phase.weighed
        seed = seed if state.chain else UNTRAINED_SEED
        return f"{self.phase_folder(dataset, models, seed, state)}/popularity.json"

    def source_of(self, method: str) -> str:
        """The method whose texts a method is ranked by: its own, or those of the method that a control names."""
        return self._workflow.source_of(method)

    def reference_of(self, run: Run) -> Run:
        """The run that a run's profiles are set against: the reference's with the same dataset, models and seed."""
        return Run(run.dataset, self._config.interpretability.reference, run.models, run.seed)

    def run_phase(self, run: Run) -> Phase:
        """The phase that a run's profiles, decoder and vectors belong to."""
        return self._workflow.phase_of(run.dataset, self.source_of(run.method), run.models)

    def run_profiles(self, run: Run) -> str:
        """The test profiles that a run of a profile method, or of a control of one, is ranked by."""
        entry = self._workflow.methods[self.source_of(run.method)]
        return self.profiles_of(run.dataset, run.models, run.seed, self.run_phase(run), entry.draw())

    def run_decoder(self, run: Run) -> str:
        """The folder of the decoder that a run is ranked by."""
        return self.decoder_folder(run.dataset, run.models, run.seed, self.run_phase(run))

    def run_weight(self, run: Run) -> float | str:
        """The weight of popularity in a run's scores: the method's number, or the file of the one that is chosen."""
        weight = self._workflow.methods[run.method].weight(self._workflow.methods)
        assert weight is not None
        if weight != "auto":
            return weight
        return self.weight_file(run.dataset, run.models, run.seed, self.run_phase(run))

    def reward_weight(self, dataset: str, models: str, seed: int | str, phase: Phase) -> float | str:
        """The same of the reward by which a phase trains an encoder."""
        if phase.popularity is not None:
            return phase.popularity
        return self.weight_file(dataset, models, seed, phase)

    def run_vectors(self, run: Run) -> str:
        """The catalogue as a run's decoder embeds it."""
        return self.vectors_of(run.dataset, run.models, run.seed, self.run_phase(run))
