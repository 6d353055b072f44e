"""Print the resources of this machine, and what is missing for a config. Exits 1 when something is missing."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import psutil

from langptune import allowed
from langptune.cli import finish
from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.config.workflow import Workflow
from langptune.data import readers
from langptune.errors import UserError
from langptune.provenance import LOCK, ROOT, versions

# Nothing is downloaded here. huggingface_hub reads the variable when it is imported, so it is set before any import.
os.environ["HF_HUB_OFFLINE"] = "1"


def machine() -> list[str]:
    """Lines about hardware and versions."""
    import torch

    from langptune.models.load import pick_device, pick_dtype

    device = pick_device()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(ROOT)
    lines = [
        f"cores     {len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        f"memory    {memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}",
        f"disk      {disk.free / 2**30:.1f} GiB free at {ROOT}",
        f"GPUs      {', '.join(gpus) or 'none'}",
        f"dtype     encoders load in {str(pick_dtype('auto', device)).removeprefix('torch.')} on {device}",
    ]
    installed = versions("torch", "transformers", "sentence-transformers", "recbole", "snakemake", "polars")
    return [*lines, "versions  " + ", ".join(f"{name} {version}" for name, version in installed.items())]


def unlocked() -> list[str]:
    """Packages whose installed version is not the locked one."""
    out = []
    for path in sorted(LOCK.parent.glob("lock*.txt")):
        pins = [line.split("==") for line in path.read_text().splitlines() if "==" in line]
        installed = versions(*[name for name, _ in pins])
        for name, wanted in pins:
            have = installed[name]
            if have is None and not path.name.startswith("lock-dev"):
                out.append(f"{path.name}: {name} {wanted} is not installed; run `make env`")
            elif have is not None and have.split("+")[0] != wanted:
                out.append(f"{path.name}: {name} is {have}, locked {wanted}; run `make env`")
    return out


def missing(workflow: Workflow) -> list[str]:
    """One line for each thing that the config needs and this machine lacks."""
    out = []
    later = "is not downloaded yet; run `make prefetch` with this CONFIG where the network can be reached"
    for name in workflow.config.datasets:
        source = workflow.datasets[name].source
        if source.remote:
            if not (ROOT / workflow.config.raw_dir / source.slug).is_dir():
                out.append(f"dataset '{name}' {later}")
            continue
        try:
            readers.source_folder(workflow.datasets[name], name)
        except UserError as error:
            out.append(str(error))
    from langptune.models.materialise import locate

    judges = [workflow.judges[judge].model for judge in workflow.config.interpretability.judges]
    for name in dict.fromkeys([*workflow.config.encoders, *workflow.config.decoders, *judges]):
        key = workflow.models[name].source.key
        try:
            allowed.check(workflow.models[name].source.endpoint, key, f"models.yaml: {name}")
        except UserError as error:
            out.append(str(error))
        if key is not None and not os.environ.get(key):
            out.append(f"model '{name}' is an endpoint with a key: `export {key}=...` before the run")
        if workflow.models[name].source.endpoint is not None:
            continue
        if (ROOT / workflow.config.models_dir / name / "manifest.json").is_file():
            continue
        if workflow.models[name].source.hub:  # `locate` would download it
            out.append(f"model '{name}' {later}")
            continue
        try:
            locate(workflow.models[name].source, name)
        except UserError as error:
            out.append(str(error))
    memory = psutil.virtual_memory().total / 2**30
    for name in workflow.config.encoders:
        need = 2.0 * workflow.models[name].parameters / 2**30
        named = [part for m in workflow.config.methods for part in workflow.methods[m].parts() or [m]]
        sources = [workflow.methods[workflow.source_of(m)] for m in named]
        if any(method.writes_profiles for method in sources) and need > memory:
            out.append(
                f"encoder '{name}' needs about {need:.0f} GiB for its weights alone, this machine has {memory:.0f}"
            )
    return out


def main() -> int:
    """Print the report; 0 when nothing is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "config" / "config.yaml")
    args = parser.parse_args()
    workflow = load(read_yaml(args.config), ROOT, str(args.config))
    print("\n".join(machine()))
    config = workflow.config
    trials = sum(len(workflow.points(method)) for method in config.methods)
    print(
        f"config    {args.config}: {len(workflow.runs())} runs on {len(config.datasets)} dataset(s), "
        f"{trials} validation trials"
    )
    lacks = unlocked() + missing(workflow)
    print("\n".join(f"missing   {line}" for line in lacks) if lacks else "missing   nothing")
    return 1 if lacks else 0


if __name__ == "__main__":
    finish(main)
