"""The runs of a workflow that have a survey."""

from __future__ import annotations

from langptune.config.layout import Layout
from langptune.config.workflow import Run, Workflow


def surveyed(workflow: Workflow) -> list[Run]:
    """The first seed of every profile method with a trained encoder; none if the reference has no run.

    A method that trains only the decoder has the reference's profiles, and shuffled profiles belong to other users:
    neither allows a preference. Respondents' time is spent on users and methods, not on seeds.
    """
    config, layout, reference = workflow.config, Layout(workflow), workflow.config.interpretability.reference
    methods = [name for name in workflow.readable if workflow.methods[name].writes_profiles]
    if reference not in methods:
        return []
    runs = [
        Run(dataset, name, models, config.seeds[0])
        for dataset in config.datasets
        for name in methods
        if workflow.runs_on(name, dataset)
        for models in workflow.models_of(name)
    ]
    trained = [run for run in runs if layout.run_phase(run).encoder_recipes]
    return [run for run in trained if layout.run_profiles(run) != layout.run_profiles(layout.reference_of(run))]


def surveys(workflow: Workflow) -> list[str]:
    """The files of all surveys."""
    names = ("questionnaire.html", "codebook.json", "codebook.md")
    return [f"{workflow.config.results}/{run.folder}/survey/{name}" for run in surveyed(workflow) for name in names]
