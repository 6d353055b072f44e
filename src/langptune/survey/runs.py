"""Which runs of a workflow people are asked about."""

from __future__ import annotations

from langptune.config.layout import Layout
from langptune.config.workflow import Run, Workflow


def surveyed(workflow: Workflow) -> list[Run]:
    """The first seed of every profile method whose encoder was trained; none where the reference has no run.

    A method that trains the decoder alone has the reference's own profiles, and shuffled ones are another user's: there
    is nothing to prefer. People's time is for users and methods, not for seeds.
    """
    config, layout, reference = workflow.config, Layout(workflow), workflow.config.interpretability.reference
    methods = [name for name in workflow.readable if workflow.methods[name].writes_profiles]
    if reference not in methods:
        return []
    runs = [
        Run(dataset, name, models, config.seeds[0])
        for dataset in config.datasets
        for name in methods
        for models in workflow.models_of(name)
    ]
    trained = [run for run in runs if layout.run_phase(run).encoder.chain]
    return [run for run in trained if layout.run_profiles(run) != layout.run_profiles(layout.reference_of(run))]


def surveys(workflow: Workflow) -> list[str]:
    """The files of all of them."""
    names = ("questionnaire.html", "codebook.json", "codebook.md")
    return [f"{workflow.config.results}/{run.folder}/survey/{name}" for run in surveyed(workflow) for name in names]
