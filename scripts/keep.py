"""Keep a finished comparison in a folder small enough for git: tables, figures, manifests, per-session metrics, curves.

Seeds that other machines computed may be added one after the other: what is kept from a second results folder joins the
first, and the tables and figures are made anew over all of them.

    make keep CONFIG=config/rlso.yaml TO=results/reference/ml-100k

`python scripts/compare.py --spec results/reference/ml-100k/compare.json` makes the tables again, `plot.py` with
`plot.json` the figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from langptune import processes
from langptune.cli import finish
from langptune.config.base import read_yaml
from langptune.config.workflow import Workflow, load
from langptune.errors import UserError
from langptune.figures.comparison import REGISTRY
from langptune.files import whole_file
from langptune.provenance import ROOT, write_json

BESIDE_RUNS = ("metrics.parquet", "metrics.parquet.manifest.json", "ranks.parquet.manifest.json", "curve.jsonl")
BESIDE_PHASES = ("curve.jsonl", "curve.jsonl.manifest.json", "popularity.json", "popularity.json.manifest.json")
BESIDE_TABLES = ("profiles.html", "cost.md", "cost.csv")


def made_by(results: Path, name: str) -> dict[str, Any]:
    """The spec that a file of the comparison was made by.

    Raises:
        UserError: there is no such file, or its manifest cannot be read.
    """
    path = results / "comparison" / f"{name}.manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["spec"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no spec of a comparison in it ({error}); run the config first") from None


def drawn_by(results: Path) -> dict[str, Any]:
    """One spec for all figures of the comparison. The spec of each names only what that figure reads.

    Raises:
        UserError: no figure is there, or a manifest cannot be read.
    """
    names = [f"{name}.png" for name in REGISTRY.names()]
    there = [name for name in names if (results / "comparison" / name).is_file()]
    specs = [made_by(results, name) for name in there or names[:1]]
    out = {key: value for spec in specs for key, value in spec.items() if value not in (None, [])}
    empty = {"curves": [], "phases": []}
    return empty | out | {"figures_out": [path for spec in specs for path in spec["figures_out"]]}


def moved(value: Any, source: str, target: str) -> Any:
    """A spec whose paths below ``source`` lie below ``target``; figures as PNG alone."""
    if isinstance(value, dict):
        return {key: moved(one, source, target) for key, one in value.items()}
    if isinstance(value, list):
        return [moved(one, source, target) for one in value if not str(one).endswith(".pdf")]
    if isinstance(value, str) and value.startswith(f"{source}/"):
        return f"{target}/{value.removeprefix(f'{source}/').removeprefix('comparison/')}"
    return value


def added(runs: list[dict[str, Any]], before: list[dict[str, Any]], workflow: Workflow) -> list[dict[str, Any]]:
    """The runs to keep beside those before: a method that draws nothing runs one seed, whichever came first."""
    there = {(one["method"], one["models"]): one["seed"] for one in before if workflow.deterministic(one["method"])}
    return [one for one in runs if there.get((one["method"], one["models"]), one["seed"]) == one["seed"]]


def joined(new: list[dict[str, Any]], old: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The entries of both, the old ones first; where both have one, the new one."""
    found = {tuple(entry[key] for key in keys): entry for entry in [*old, *new]}
    return list(found.values())


def take(source: Path, target: Path) -> None:
    """Copy one file, whole or not at all; nothing where it does not exist."""
    if source.is_file():
        whole_file(source, target)


def kept(path: Path) -> dict[str, Any]:
    """A spec that was kept before; empty where none was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": [], "curves": [], "phases": []}


def same_config(kept_config: Path, config: Path) -> None:
    """Raise where what was kept before came of other settings; seeds may differ.

    Raises:
        UserError: a key has another value.
    """
    if not kept_config.is_file():
        return
    before, now = read_yaml(kept_config), read_yaml(config)
    other = sorted(key for key in before | now if key != "seeds" and before.get(key) != now.get(key))
    if other:
        raise UserError(
            f"{config}: key '{other[0]}' is not that of {kept_config}; keep these results in another folder"
        )


def keep(results: Path, config: Path, to: Path, workflow: Workflow) -> None:
    """Copy what is small, and make the tables and figures anew over everything that lies there then.

    Args:
        results: a dataset's folder in the results of a finished run, relative to the repository.
        config: what the run was made by.
        to: the folder to keep it in, relative to the repository.
        workflow: that of ``config``.

    Raises:
        UserError: an unfinished run, or a folder that holds the results of another config.
    """
    tables, figures = made_by(results, "table.csv"), drawn_by(results)
    same_config(ROOT / to / "config.yaml", config)
    before = {name: kept(ROOT / to / f"{name}.json") for name in ("compare", "plot")}
    for spec in (tables, figures):
        spec["runs"] = added(spec["runs"], before["compare"]["runs"], workflow)
    for entry in tables["runs"]:
        folder = Path(entry["metrics_path"]).parent
        for name in BESIDE_RUNS:
            take(ROOT / folder / name, ROOT / to / folder.relative_to(results) / name)
        if weight := entry.get("weight_path"):
            take(ROOT / weight, ROOT / to / Path(weight).relative_to(results))
    for entry in figures["phases"]:
        folder = Path(entry["path"]).parent
        target = ROOT / to / folder.relative_to(results)
        for name in BESIDE_PHASES:
            take(ROOT / folder / name, target / name)
        for model in ("encoder", "decoder"):
            take(ROOT / folder / model / "manifest.json", target / f"{model}.manifest.json")
            take(ROOT / folder / model / "README.md", target / "model_card.md")
    for name in BESIDE_TABLES:
        take(ROOT / results / "comparison" / name, ROOT / to / name)
    take(config, ROOT / to / "config.yaml")

    made = json.loads((ROOT / f"{figures['runs'][0]['metrics_path']}.manifest.json").read_text(encoding="utf-8"))
    specs = {
        "compare": moved(tables, str(results), str(to)) | {"sessions_in": None},
        "plot": moved(figures, str(results), str(to)) | {"items_in": None, "n_items": made["notes"]["items"]},
    }
    for name, spec in specs.items():
        order = workflow.config.methods
        runs = joined(spec["runs"], before[name]["runs"], ("method", "models", "seed"))
        spec["runs"] = sorted(runs, key=lambda one: (order.index(one["method"]), one["seed"]))
        for key in ("curves", "phases") if name == "plot" else ():
            spec[key] = joined(spec[key], before[name][key], ("key", "path"))
        write_json(ROOT / to / f"{name}.json", spec)
        command = processes.python(f"scripts/{name}.py", "--spec", f"{to}/{name}.json")
        if processes.run(command, cwd=ROOT).returncode:
            raise UserError(f"{to}/{name}.json: not carried out, see the line above; what was copied stays")
    # All tables were made by one job, and all figures by another: one manifest of each says everything.
    one_of_each = {f"{Path(name).name}.manifest.json" for name in ("table.csv", specs["plot"]["figures_out"][0])}
    for path in (ROOT / to).iterdir():
        if path.name.endswith((".lock", ".manifest.json")) and path.name not in one_of_each:
            path.unlink()


def main() -> int:
    """Keep it; 2 after one line about what to correct."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "config/config.yaml", help="what the run was made by")
    parser.add_argument("--to", type=Path, required=True, help="the folder to keep it in; one below it per dataset")
    args = parser.parse_args()
    if args.to.is_absolute() or ".." in args.to.parts:
        raise UserError(f"{args.to}: give it relative to the repository, so that no file names a machine's path")
    workflow = load(read_yaml(args.config), ROOT, str(args.config))
    several = len(workflow.config.datasets) > 1
    for dataset in workflow.config.datasets:
        results = Path(workflow.config.results) / dataset
        keep(results, args.config, args.to / dataset if several else args.to, workflow)
    return 0


if __name__ == "__main__":
    finish(main)
