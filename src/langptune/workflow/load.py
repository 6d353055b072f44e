"""From a config, as Snakemake hands it over, to a project; nothing but reading and checking."""

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
"""Variable with the file of a site, which may lie anywhere, so that a checkout stays clean."""


def load(config: dict[str, Any], root: Path, where: str = "config") -> Project:
    """A project from a config with its registries.

    Args:
        root: the checkout.
        where: how messages call the config.

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
        UserError: it cannot be read, or a key or value of it is wrong.
    """
    file = Path(os.environ.get(CLUSTER_FILE, root / "slurm" / "cluster.yaml"))
    return validate(Cluster, read_yaml(file), str(file))


def shapes(project: Project) -> Mapping[str, Shape]:
    """Launch file of a recipe -> how many machines and processes it starts.

    Raises:
        UserError: no such file, or a number in it that cannot be.
    """
    files = [getattr(recipe, "launch", None) for recipe in project.recipes.values()]
    return {name: shape(project.root / "config" / "accelerate" / name) for name in files if name}
