"""Final files: the inputs of the targets of the workflow (``tables``, ``figures``, ``interpretability``)."""

from __future__ import annotations

from collections.abc import Mapping

from langptune.config.identity import identity
from langptune.errors import UserError
from langptune.figures import comparison as figures
from langptune.workflow.comparison import phase_curves
from langptune.workflow.project import Project

TABLES = {
    "table_csv_out": "table.csv",
    "table_long_out": "table_long.csv",
    "table_md_out": "table.md",
    "table_html_out": "table.html",
    "table_tex_out": "table.tex",
    "comparisons_out": "comparisons.csv",
    "contrasts_out": "contrasts.csv",
    "gains_out": "gains.parquet",
}
"""Fields of compare.py's spec -> files."""
MEASURES = ("measures", "simulation", "steering", "steering_weights")
"""Measures of one run that tables report."""
INTERPRETED = (
    "table.csv",
    "table.md",
    "judges.csv",
    "tradeoff.pdf",
    "steering.pdf",
    "frontier.csv",
    "frontier.pdf",
    "steering_weights.csv",
    "weights.pdf",
    "table.html",
    "tradeoff.png",
    "steering.png",
    "frontier.png",
    "weights.png",
    "examples.html",
)
"""Files of the folder ``interpretability`` of a dataset."""


def drawn(project: Project) -> Mapping[str, figures.Entry]:
    """The figures of a comparison, by name.

    Raises:
        UserError: a file in the folder of figures is no figure.
    """
    parts = {
        "published": any(project.workflow.published_of(dataset) for dataset in project.config.datasets),
        "contrasts": bool(project.config.comparison.contrasts),
    }
    return figures.drawn(parts)


def _each(project: Project, names: list[str]) -> list[str]:
    return [f"{project.results}/{dataset}/{name}" for dataset in project.config.datasets for name in names]


def tables(project: Project) -> list[str]:
    """The tables of all datasets."""
    names = (*TABLES.values(), "slices.csv", "lists.csv", "tuning.csv", "tuning.html")
    return _each(project, [f"comparison/{name}" for name in names])


def final_figures(project: Project) -> list[str]:
    """The figures, data cards, studies and profile pages of all datasets."""
    names = [f"comparison/{figure}.{end}" for figure in drawn(project) for end in ("png", "pdf")]
    names += ["data/card.md", "data/funnel.png", "data/funnel.pdf"]
    out = []
    for dataset in project.config.datasets:
        own = [*names, *_studies(project, dataset)]
        if any(project.methods[run.method].writes_profiles for run in project.runs(dataset)):
            own.append("comparison/profiles.html")
        out += [f"{project.results}/{dataset}/{name}" for name in own]
    return out


def editing(project: Project) -> list[str]:
    """The vectors with which untrained decoders read edits in the explorer."""
    runs = [run for dataset in project.config.datasets for run in project.runs(dataset)]
    return sorted({used[1] for run in runs if (used := project.paths.untrained_decoder(run)) is not None})


def studies(project: Project) -> list[str]:
    """A table and a figure of each study on all datasets."""
    return [
        f"{project.results}/{dataset}/{name}"
        for dataset in project.config.datasets
        for name in _studies(project, dataset)
    ]


def _studies(project: Project, dataset: str) -> list[str]:
    """The files of the studies that have runs on a dataset."""
    names = [study for study in project.config.studies if project.runs(dataset, study)]
    return [f"studies/{study}.{end}" for study in names for end in ("csv", "png", "pdf")]


def partial(project: Project) -> list[str]:
    """The tables of the runs that are finished so far."""
    return _each(project, ["partial/table.md"])


def data(project: Project) -> list[str]:
    """Sessions, card and funnel of all datasets."""
    return _each(project, [f"data/{name}" for name in ("sessions.parquet", "card.md", "funnel.png")])


def downloads(project: Project) -> list[str]:
    """The folders of all models and raw files that the comparison and the measures of profiles need."""
    names = [*project.config.encoders, *project.config.decoders]
    raw = [folder for name in project.config.datasets if (folder := project.raw_folder(name))]
    names += [model for name in project.config.datasets for model in project.limit_models(name).values()]
    names += project.workflow.interpreters
    return [*raw, *map(project.paths.model_folder, names)]


def ranks(project: Project, group: str | None = None) -> list[str]:
    """The ranks of every run of the comparison, or of those of one group of methods."""
    runs = [run for run in project.runs() if group is None or project.methods[run.method].group == group]
    return [project.paths.ranks_of(run) for run in runs]


def metrics(project: Project) -> list[str]:
    """The per-session metrics of every run of the comparison."""
    return [project.paths.metrics_of(run) for run in project.runs()]


def untrained(project: Project) -> list[str]:
    """The ranks of zero-shot profiles and of the text controls."""
    groups = ("profiles", "text controls")
    runs = [run for run in project.runs() if project.methods[run.method].group in groups]
    return [project.paths.ranks_of(run) for run in runs if not project.source(run.method).trained]


def results(project: Project, dataset: str) -> list[str]:
    """Every final file of a dataset."""
    final = [*tables(project), *final_figures(project)]
    return [file for file in final if file.startswith(f"{project.results}/{dataset}/")]


def costs(project: Project) -> list[str]:
    """The cost files of every dataset; they are made after all other results."""
    names = ("cost.csv", "cost.md", "cost.png", "cost.pdf", "inference.csv")
    return _each(project, [f"comparison/{name}" for name in names])


def checklists(project: Project) -> list[str]:
    """The checklist of every dataset; made after all other results."""
    return _each(project, [f"comparison/checklist.{end}" for end in ("md", "html")])


def model_names(project: Project, dataset: str) -> dict[str, str]:
    """Identity of each model -> its name: specs have the identity, tables the name."""
    names = [*project.limit_models(dataset).values(), *project.config.encoders, *project.config.decoders]
    return {identity(project.models[name].model_dump(mode="json")): name for name in names}


def curves(project: Project) -> list[str]:
    """The curve of every trained phase of the comparison, once."""
    return list({curve: None for dataset in project.config.datasets for curve in phase_curves(project, dataset)})


def measures(project: Project) -> list[str]:
    """All measures of profiles of all runs, the verdicts on them included."""
    runs = [run for dataset in project.config.datasets for run in project.readable_runs(dataset)]
    own = [[project.measured(run, name) for name in (*MEASURES, "claims")] for run in runs]
    return [file for run, files in zip(runs, own, strict=True) for file in (*files, *project.judged(run).values())]


def interpretations(project: Project) -> list[str]:
    """The pages on profiles of all datasets.

    Raises:
        UserError: the reference is not among the methods of this config; not every config has profiles.
    """
    reference, readable = project.config.interpretability.reference, project.workflow.readable
    if reference not in readable:
        names = ", ".join(readable) or "(this run has no profiles)"
        raise UserError(f"interpretability.reference: '{reference}' is not run here; name one of {names}")
    return _each(project, [f"interpretability/{name}" for name in INTERPRETED])


def memorisation(project: Project) -> list[str]:
    """Tables of what the encoders have memorised of each dataset.

    Raises:
        UserError: the config has no encoder with local weights.
    """
    if not project.workflow.local_encoders:
        raise UserError("memorisation: this run has no encoder with local weights; no endpoint gives probabilities")
    return _each(project, [f"memorisation/{name}" for name in ("known.csv", "gains.csv", "table.md")])
