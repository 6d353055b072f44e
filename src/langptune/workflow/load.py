"""Reading and checking a config, as Snakemake passes it, into a project."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langptune.allowed import check as check_endpoint
from langptune.config import load as registries
from langptune.config.base import read_yaml, validate
from langptune.config.cluster import Cluster
from langptune.launch import Shape, shape
from langptune.workflow.project import Project

CLUSTER_FILE = "LANGPTUNE_CLUSTER"
"""Environment variable with the file of a site. It may be outside the checkout, which then has no local changes."""


def load(config: dict[str, Any], root: Path, where: str = "config") -> Project:
    """A project from a config with its registries.

    Args:
        root: the checkout.
        where: the name of the config in messages.

    Raises:
        UserError: one line with file, key, value and the nearest valid key.
    """
    project = Project(registries.load(config, root, where), root)
    judges = [project.judges[judge].model for judge in project.config.interpretability.judges]
    for name in dict.fromkeys([*project.config.encoders, *judges]):
        source = project.models[name].source
        check_endpoint(source.endpoint, source.key, f"models.yaml: {name}")
    for name in project.config.methods:
        project.methods[name].check_names()
    return project


def cluster(root: Path) -> Cluster:
    """The site: ``slurm/cluster.yaml`` of the checkout, or the file that ``LANGPTUNE_CLUSTER`` names.

    Raises:
        UserError: it cannot be read, or one of its keys or values is wrong.
    """
    file = Path(os.environ.get(CLUSTER_FILE, root / "slurm" / "cluster.yaml"))
    return validate(Cluster, read_yaml(file), str(file))


def shapes(project: Project) -> Mapping[str, Shape]:
    """Launch file of a recipe -> the numbers of machines and processes that it starts.

    Raises:
        UserError: there is no such file, or it has an impossible number.
    """
    files = [getattr(recipe, "launch", None) for recipe in project.recipes.values()]
    return {name: shape(project.root / "config" / "accelerate" / name) for name in files if name}
