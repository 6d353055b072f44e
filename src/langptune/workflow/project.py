"""A project: one config with its registries, all of its runs and phases, and the paths of their files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from langptune.config.layout import Layout
from langptune.config.method import Method
from langptune.config.phases import VALIDATION, Draw, Phase
from langptune.config.workflow import Run, Workflow

Entry = TypeVar("Entry")
READ_BY_PEOPLE = {"title": "", "url": "", "prompt": "", "published": {}}
"""Keys of registry entries that change no result -> their values in specs."""
ONE_SHARD = "LANGPTUNE_PLAN"
"""Environment variable that ``scripts/plan.py`` sets, so that one shard is listed instead of all.

Shards differ only in their number. A large grid has tens of thousands of them, and each costs Snakemake milliseconds.
"""


class Project:
    """A checked config, with its runs, phases and paths. ``langptune.workflow.load`` makes one.

    Attributes:
        root: the checkout.
        config, datasets, models, methods, prompts, recipes, judges: as in ``Workflow``.
        paths: paths of files.
        phases: name of its folder -> phase, for every phase of the runs of the comparison and the studies.
        draws: name of its file -> draw, for every draw of profiles that these need.
        fused: the methods whose scores are kept, because a fusion of the runs adds them.
    """

    def __init__(self, workflow: Workflow, root: Path):
        self.workflow, self.root = workflow, root
        self.config, self.datasets, self.models = workflow.config, workflow.datasets, workflow.models
        self.methods, self.prompts, self.recipes = workflow.methods, workflow.prompts, workflow.recipes
        self.judges = workflow.judges
        self.paths = Layout(workflow)
        self._runs: dict[tuple[str | None, str | None], list[Run]] = {}
        self._used: dict[str, Any] = {}
        self.phases: dict[str, Phase] = {}
        self.draws: dict[str, Draw] = {}
        self.fused: set[str] = set()
        for run in self.all_runs():
            for part in self.workflow.parts_of(run):
                self._add_phases(part)
            if self.methods[run.method].adds_scores():
                self._add_fused(run)
            self._add_phases(run)

    # Folders

    @property
    def results(self) -> str:
        """The folder of all results."""
        return self.config.results

    @property
    def logs(self) -> str:
        """The folder of the jobs' logs."""
        return f"{self.results}/logs"

    @property
    def benchmarks(self) -> str:
        """The folder of benchmark files: Snakemake writes one line of JSON per job, and scripts/cost.py reads them."""
        return f"{self.results}/benchmarks"

    @property
    def answers(self) -> str:
        """The folder of answers of endpoints and judges: paid answers are kept when other results are removed."""
        return f"{self.results}/answers"

    # Runs

    def runs(self, dataset: str | None = None, study: str | None = None) -> list[Run]:
        """Every run of the comparison, or of one study, on one dataset or on all."""
        key = (dataset, study)
        if key not in self._runs:
            self._runs[key] = self.workflow.runs(dataset, study)
        return self._runs[key]

    def all_runs(self) -> list[Run]:
        """Every run of the comparison and of the studies, once."""
        studied = [run for study in self.config.studies for run in self.runs(study=study)]
        return list(dict.fromkeys([*self.runs(), *studied]))

    def source(self, method: str) -> Method:
        """The entry of the method whose texts a method uses: a control's names another one, others use their own."""
        return self.methods[self.workflow.source_of(method)]

    def ranks_texts(self, method: str) -> bool:
        """Whether a method ranks by texts, its own or (a control) another method's: it has phases and a decoder."""
        return self.methods[method].ranked_by == "rank_texts"

    def has_profiles(self, method: str) -> bool:
        """Whether the texts of a method are profiles."""
        return self.source(method).writes_profiles

    def has_phases(self, method: str) -> bool:
        """Whether a method has phases of its own; a control uses those of the method that it names."""
        return self.ranks_texts(method) and not self.methods[method].changes()

    def ranked_by(self, rule: str, fused: bool | None = None) -> list[str]:
        """The methods that a rule ranks; ``fused``: only those whose scores are kept (True), or only others (False)."""
        named = [name for name, method in self.methods.items() if method.ranked_by == rule]
        return [name for name in named if fused is None or (name in self.fused) == fused]

    def ranked_texts(self, profiles: bool) -> list[str]:
        """The methods of this config that rank by texts, the controls included, without those whose scores are kept.

        Args:
            profiles: True: methods that rank by profiles; False: methods that rank by histories.
        """
        variants = [one.name for study in self.config.studies for one in self.workflow.variants(study)]
        named = list(dict.fromkeys([*self.config.methods, *variants]))
        named += [part for name in named for part in self.methods[name].parts() if part not in named]
        texts = [name for name in named if self.ranks_texts(name) and name not in self.fused]
        return [name for name in texts if self.has_profiles(name) == profiles]

    # Phases

    def _add_phases(self, run: Run) -> None:
        if not self.ranks_texts(run.method):
            return
        last = self.paths.run_phase(run)
        elsewhere = last.transfer.phase.all() if last.transfer else []
        for phase in (*elsewhere, *last.all(), *(phase.weighed for phase in (*elsewhere, *last.all(), last))):
            self.phases[phase.id] = phase
            self.draws |= {draw.name: draw for draw in (VALIDATION, *phase.draws())}
        if self.has_profiles(run.method):
            draw = self.source(run.method).draw()
            self.draws[draw.name] = draw

    def _add_fused(self, run: Run) -> None:
        for part in self.methods[run.method].parts():
            self.fused.add(part)
            if self.has_profiles(part):
                draw = self.source(part).draw("val")
                self.draws[draw.name] = draw

    def trained(self, role: str) -> list[str]:
        """The phases, by their folders' names, that train a model of one role: decoder or encoder."""
        return [name for name, phase in self.phases.items() if phase.chain and phase.recipe.trains == role]

    # Models

    def used(self, name: str) -> Any:
        """A model's entry, without the keys that do not affect the use of the materialised model."""
        if name not in self._used:
            self._used[name] = _without(self.models[name], READ_BY_PEOPLE | {"sha256": {}, "licence": ""})
        return self._used[name]

    def fetched(self, name: str) -> Any:
        """A model's entry, without the keys that do not affect materialising it: limits and prefixes apply in use."""
        limits = {"context": 1, "max_prompt_tokens": 1, "max_tokens": 1}
        neutral = {**limits, "query_prefix": "", "item_prefix": "", "padding": "right"}
        entry = self.models[name]
        return _without(entry, READ_BY_PEOPLE | neutral | {"source": entry.source.terms_left_out})

    def is_remote(self, model: str) -> bool:
        """Whether a model is an endpoint, without files here."""
        return self.models[model].source.endpoint is not None

    # Data

    def prepared(self, dataset: str) -> Any:
        """A dataset's entry, without the keys that do not affect preparing it."""
        return _without(self.datasets[dataset], READ_BY_PEOPLE)

    def downloaded(self, dataset: str) -> Any:
        """A dataset's entry, without the keys that do not affect its download, as the protocol."""
        entry = self.datasets[dataset]
        return type(entry).model_validate(
            {
                **{key: getattr(entry, key) for key in ("reader", "licence", "sha256")},
                "title": "",
                "source": entry.source.model_dump(),
                "item_text": "",
                "prompt": "",
                "protocol": {"name": "leave-one-out"},
            }
        )

    @property
    def downloads(self) -> dict[str, str]:
        """Folder name of a download -> one dataset that needs it: several datasets may share the files."""
        sources = {name: self.datasets[name].source for name in self.config.datasets}
        return {source.slug: name for name, source in sources.items() if source.remote}

    def raw_folder(self, dataset: str) -> str | None:
        """The folder of the downloaded files of a dataset; None where it needs no download."""
        source = self.datasets[dataset].source
        return f"{self.config.raw_dir}/{source.slug}" if source.remote else None

    def raw_files(self, dataset: str) -> list[list[Any]]:
        """Name, size and time of the raw files in a user's folder, so that a change of them reruns jobs."""
        source = self.datasets[dataset].source
        folder = self.root / str(source.folder) / source.path
        if source.folder is None or not folder.is_dir():
            return []
        files = [path for path in folder.rglob("*") if path.is_file()]
        return sorted([str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in files)

    def limit_models(self, dataset: str) -> dict[str, str]:
        """Role -> model whose tokenizer counts a dataset's texts; empty where its protocol has no token limits."""
        limits = getattr(self.datasets[dataset].protocol, "limits", None)
        return {role: getattr(limits, role) for role in ("encoder", "decoder")} if limits else {}

    def taste_field(self, dataset: str) -> str | None:
        """The item field that lists genres or categories, where a dataset has one."""
        return next(iter(self.datasets[dataset].lists), None)

    # Profiles

    def shards(self, profiles: str) -> list[str]:
        """The shards of a file of profiles."""
        count = self.config.generation.shards
        return [f"{profiles.removesuffix('.parquet')}/shards/{at}-of-{count}.parquet" for at in range(1, count + 1)]

    @property
    def listed_shards(self) -> int:
        """The number of shards of each file that are jobs of this workflow."""
        return 1 if ONE_SHARD in os.environ else self.config.generation.shards

    # Interpretability

    def measured(self, run: Run, name: str) -> str:
        """The path of a file of measures of one run."""
        return f"{self.results}/{run.folder}/interpretability/{name}.parquet"

    def judged(self, run: Run) -> dict[str, str]:
        """Judge -> the file of its verdicts on a run; empty where its profiles are those of the reference itself."""
        reference = self.paths.run_profiles(self.paths.reference_of(run))
        if not self.workflow.shuffled(run.method) and self.paths.run_profiles(run) == reference:
            return {}
        return {judge: f"{self.results}/{run.folder}/judge/{judge}.parquet" for judge in self._judges}

    @property
    def _judges(self) -> Iterable[str]:
        return self.config.interpretability.judges

    def readable_runs(self, dataset: str) -> list[Run]:
        """The runs of a dataset whose profiles are measured, the reference's first."""
        order = {name: at for at, name in enumerate(self.workflow.readable)}
        runs = [run for run in self.runs(dataset) if run.method in order]
        return sorted(runs, key=lambda run: order[run.method])

    def example_runs(self, dataset: str) -> list[Run]:
        """The runs on the page of examples: each method's first seed with its first models."""
        return list({run.method: run for run in reversed(self.readable_runs(dataset))}.values())[::-1]


def _without(entry: Entry, neutral: dict[str, Any]) -> Entry:
    """An entry with neutral values for some keys, so that a corrected title or address does not invalidate results."""
    return entry.model_copy(update={key: value for key, value in neutral.items() if hasattr(entry, key)})
