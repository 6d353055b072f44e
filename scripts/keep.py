"""Keep a finished comparison, its studies and the measures of its profiles in a folder small enough for git.

Seeds from several machines can be added one after the other. The runs of a second results folder are added to those of
the first, and the tables and figures are made again over all of them.

    make keep CONFIG=config/rlso.yaml TO=results/reference/ml-100k

`python scripts/compare.py --spec results/reference/ml-100k/compare.json` makes the tables again, `plot.py` with
`plot.json` the figures, and `study.py` with `studies/NAME.json` a study.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from langptune import processes
from langptune.cli import finish
from langptune.comparison.grid import RunEntry
from langptune.config.base import nearest, read_yaml, validate
from langptune.config.load import load
from langptune.config.workflow import Workflow
from langptune.errors import UserError
from langptune.figures.comparison import REGISTRY
from langptune.files import whole, whole_file
from langptune.provenance import ROOT, write_json
from langptune.reading import read_inside, read_json
from langptune.workflow.targets import INTERPRETED

BESIDE_RUNS = ("metrics.parquet", "metrics.parquet.manifest.json", "ranks.parquet.manifest.json", "curve.jsonl")
BESIDE_PHASES = ("curve.jsonl", "curve.jsonl.manifest.json", "popularity.json", "popularity.json.manifest.json")
BESIDE_TABLES = (
    *("profiles.html", "cost.md", "cost.csv"),
    *("slices.csv", "slices.csv.manifest.json", "lists.csv", "lists.csv.manifest.json"),
    *("tuning.csv", "checklist.md"),
)
MEASURED = ("table.csv.manifest.json", *(name for name in INTERPRETED if not name.endswith((".pdf", "table.html"))))
"""Files of the measures of profiles, kept in ``interpretability/`` where they were made."""
LARGEST = 100_000_000
"""Maximum size in bytes of a file to keep."""


class Curve(BaseModel):
    """A curve of a figure; plot.py checks its other keys."""

    model_config = ConfigDict(extra="allow", strict=True)

    key: str
    path: str


class Made(BaseModel):
    """The fields of the spec of a table or a figure that are used here; the script checks the others."""

    model_config = ConfigDict(extra="allow", strict=True)

    runs: Annotated[list[RunEntry], Field(min_length=1)]
    curves: list[Curve] = []
    phases: list[Curve] = []
    figures_out: list[str] = []


class Trained(BaseModel):
    """A curve of a study's run; its other keys are study.py's to check."""

    model_config = ConfigDict(extra="allow", strict=True)

    path: str


class Point(BaseModel):
    """A run of a study; its other keys are study.py's to check."""

    model_config = ConfigDict(extra="allow", strict=True)

    method: str
    metrics_path: str
    curves: list[Trained] = []


class Study(BaseModel):
    """What is used here of the spec of a study."""

    model_config = ConfigDict(extra="allow", strict=True)

    runs: Annotated[list[Point], Field(min_length=1)]


def content(results: Path, path: Path) -> bytes | None:
    """The content of a file of the results; None where there is none.

    A folder of results may belong to another user. No link in it is followed: otherwise a link to a private file of
    this user would put that file into git and publish it.

    Args:
        results: a dataset's folder in the results, relative to the repository.
        path: of the file, below ``results``.

    Raises:
        UserError: there is a link, it is no regular file, or it has more than ``LARGEST`` bytes.
    """
    try:
        with read_inside(ROOT / results.parent, path.relative_to(results.parent)) as file:
            out = file.read(LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path}: not kept: it is not a plain file, or a link is in its path ({error.strerror})"
        ) from None
    if len(out) > LARGEST:
        raise UserError(f"{path}: not kept: more than {LARGEST:,} bytes, which git hosts refuse")
    return out


def read_object(results: Path, path: Path) -> dict[str, Any]:
    """The JSON object in a file of the results.

    Raises:
        UserError: there is no such file, or it is no JSON object.
    """
    try:
        out = json.loads(content(results, path) or b"")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the config first") from None
    if not isinstance(out, dict):
        raise UserError(f"{path}: holds no JSON object; run the config again")
    return out


def made_by(results: Path, name: str, methods: list[str], model: type[BaseModel] = Made) -> dict[str, Any]:
    """The spec of the job that made a table or figure, from its manifest.

    Args:
        results: a dataset's folder in the results.
        name: the file, relative to ``results``.
        methods: the methods that the spec may name.
        model: what is used of the spec.

    Raises:
        UserError: there is no such manifest, its spec is not valid, or the spec names a file outside the results or a
            method that is not in this config.
    """
    path = results / f"{name}.manifest.json"
    spec = read_object(results, path).get("spec")
    validate(model, spec, f"{path}: spec")
    assert isinstance(spec, dict)
    spec |= {key: None for key in ("sessions_in", "items_in") if key in spec}  # neither file is kept
    for one in named(spec):
        if ".." in Path(one).parts or not Path(one).is_relative_to(results):
            raise UserError(f"{path}: spec: '{one[:200]}' lies outside {results}; run the config again")
    for run in spec["runs"]:
        if run["method"] not in methods:
            raise UserError(f"{path}: spec: method '{run['method'][:80]}' is not one of this config")
    return spec


def named(value: Any, path: bool = False) -> Iterator[str]:
    """The paths in a spec: strings in fields whose names end in ``_in``, ``_out`` or ``path``."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from named(one, key.endswith(("_in", "_out", "path")))
    elif isinstance(value, list):
        for one in value:
            yield from named(one, path)
    elif isinstance(value, str) and path:
        yield value


def drawn_by(results: Path, methods: list[str]) -> dict[str, Any]:
    """One spec for all figures of the comparison, joined from theirs: each names only the inputs of its figure.

    Raises:
        UserError: there is no figure, or a manifest cannot be used (``made_by``).
    """
    names = [f"comparison/{name}.png" for name in REGISTRY.names()]
    drawn = [name for name in names if (results / name).is_file()] or names[:1]
    specs = [made_by(results, name, methods) for name in drawn]
    for name, spec in zip(drawn, specs, strict=True):
        if not spec.get("figures_out"):
            path = results / name
            raise UserError(f"{path}: drawn by an older version; draw it again: `snakemake --forcerun plot`")
    out = {key: value for spec in specs for key, value in spec.items() if value not in (None, [])}
    empty = {"curves": [], "phases": []}
    return empty | out | {"figures_out": [path for spec in specs for path in spec["figures_out"]]}


def moved(value: Any, source: str, target: str) -> Any:
    """A spec with the paths below ``source`` moved below ``target``; figures only as PNG."""
    if isinstance(value, dict):
        return {key: moved(one, source, target) for key, one in value.items()}
    if isinstance(value, list):
        return [moved(one, source, target) for one in value if not str(one).endswith(".pdf")]
    if isinstance(value, str) and value.startswith(f"{source}/"):
        return f"{target}/{value.removeprefix(f'{source}/').removeprefix('comparison/')}"
    return value


def added(runs: list[dict[str, Any]], before: list[dict[str, Any]], workflow: Workflow) -> list[dict[str, Any]]:
    """The runs to add to those kept before: a deterministic method keeps only the seed that was added first."""
    there = {(one["method"], one["models"]): one["seed"] for one in before if workflow.deterministic(one["method"])}
    return [one for one in runs if there.get((one["method"], one["models"]), one["seed"]) == one["seed"]]


def joined(new: list[dict[str, Any]], old: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The entries of both lists, the old ones first; a new entry replaces an old one with the same keys."""
    entries = {tuple(entry[key] for key in keys): entry for entry in [*old, *new]}
    return list(entries.values())


def outputs(spec: dict[str, Any]) -> Iterator[str]:
    """The output files of a spec."""
    return named([value for key, value in spec.items() if key.endswith("_out")], True)


def take(results: Path, path: Path, target: Path) -> None:
    """Copy one file of the results atomically; nothing where it does not exist."""
    data = content(results, path)
    if data is not None:
        with whole(target) as part:
            part.write_bytes(data)


def kept(path: Path) -> dict[str, Any]:
    """A spec that was kept before; one without runs where there is none."""
    return read_json(path) if path.is_file() else {"runs": [], "curves": [], "phases": []}


def same_config(kept_config: Path, config: Path) -> None:
    """Check that the results kept before have the same settings; seeds may differ.

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
    """Copy the small files, and make the tables and figures again over all runs that are kept.

    Args:
        results: a dataset's folder in the results of a finished run, relative to the repository.
        config: the config of the run.
        to: the folder to keep it in, relative to the repository.
        workflow: the workflow of ``config``.

    Raises:
        UserError: the run is not finished, or the folder has the results of another config.
    """
    order = workflow.config.methods
    tables, figures = made_by(results, "comparison/table.csv", order), drawn_by(results, order)
    same_config(ROOT / to / "config.yaml", config)
    before = {name: kept(ROOT / to / f"{name}.json") for name in ("compare", "plot")}
    for spec in (tables, figures):
        spec["runs"] = added(spec["runs"], before["compare"]["runs"], workflow)
    for entry in tables["runs"]:
        take_run(results, entry, to)
        if weight := entry.get("weight_path"):
            take(results, Path(weight), ROOT / to / Path(weight).relative_to(results))
    for entry in figures.get("phases", []):
        take_phase(results, entry, to)
    for name in BESIDE_TABLES:
        take(results, results / "comparison" / name, ROOT / to / name)
    for name in MEASURED:
        take(results, results / "interpretability" / name, ROOT / to / "interpretability" / name)
    whole_file(config, ROOT / to / "config.yaml")

    notes = read_object(results, Path(f"{figures['runs'][0]['metrics_path']}.manifest.json")).get("notes")
    items = notes.get("items") if isinstance(notes, dict) else None
    specs = {
        "compare": moved(tables, str(results), str(to)) | {"sessions_in": None},
        "plot": moved(figures, str(results), str(to)) | {"items_in": None, "n_items": items},
    }
    for name, spec in specs.items():
        runs = joined(spec["runs"], before[name]["runs"], ("method", "models", "seed"))
        spec["runs"] = sorted(runs, key=lambda one: (order.index(one["method"]), one["seed"]))
        for key in ("curves", "phases") if name == "plot" else ():
            spec[key] = joined(spec.get(key, []), before[name][key], ("key", "path"))
        remake(f"{name}.py", to / f"{name}.json", spec)
    for study in workflow.config.studies:
        keep_study(results, study, to, workflow)
    # One job made all tables and another one all figures, so one manifest of each is enough.
    kept_manifests = {f"{Path(name).name}.manifest.json" for name in ("table.csv", specs["plot"]["figures_out"][0])}
    tidy(to, {Path(one).name for spec in specs.values() for one in outputs(spec)}, kept_manifests)


def take_run(results: Path, entry: dict[str, Any], to: Path) -> None:
    """Copy the small files of a run."""
    folder = Path(entry["metrics_path"]).parent
    for name in BESIDE_RUNS:
        take(results, folder / name, ROOT / to / folder.relative_to(results) / name)


def take_phase(results: Path, entry: dict[str, Any], to: Path) -> None:
    """Copy the small files of a phase; ``entry`` has the path of its curve."""
    folder = Path(entry["path"]).parent
    target = ROOT / to / folder.relative_to(results)
    for name in BESIDE_PHASES:
        take(results, folder / name, target / name)
    for model in ("encoder", "decoder"):
        take(results, folder / model / "manifest.json", target / f"{model}.manifest.json")
        take(results, folder / model / "README.md", target / "model_card.md")


def remake(script: str, path: Path, spec: dict[str, Any]) -> None:
    """Write a spec, and make its outputs anew.

    Raises:
        UserError: the script failed.
    """
    write_json(ROOT / path, spec)
    command = processes.python(f"scripts/{script}", "--spec", str(path))
    if processes.run(command, cwd=ROOT).returncode:
        raise UserError(f"{path}: not carried out, see the line above; what was copied stays")


def tidy(folder: Path, made: Iterable[str], manifests: set[str]) -> None:
    """Delete the locks of outputs, and their manifests except the given ones."""
    for output in made:
        (ROOT / folder / f".{output}.lock").unlink(missing_ok=True)
        if f"{output}.manifest.json" not in manifests:
            (ROOT / folder / f"{output}.manifest.json").unlink(missing_ok=True)


def keep_study(results: Path, name: str, to: Path, workflow: Workflow) -> None:
    """Copy the small files of a study's runs, and make its table and figure again.

    A study has the seeds of one config: runs of another machine do not join it.

    Raises:
        UserError: the study is not finished.
    """
    spec = made_by(results, f"studies/{name}.csv", [one.name for one in workflow.variants(name)], Study)
    for entry in spec["runs"]:
        take_run(results, entry, to)
        for curve in entry.get("curves", []):
            take_phase(results, curve, to)
    remake("study.py", to / "studies" / f"{name}.json", moved(spec, str(results), str(to)))
    tidy(to / "studies", (f"{name}.csv", f"{name}.png"), {f"{name}.csv.manifest.json"})


def main() -> int:
    """Keep the results; exit status 2 after one line on an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "config/config.yaml", help="what the run was made by")
    parser.add_argument(
        "--to", type=Path, required=True, help="the folder to keep it in; one below it per dataset if there are several"
    )
    parser.add_argument("--dataset", help="keep only this dataset of the config, in the folder itself")
    args = parser.parse_args()
    if args.to.is_absolute() or ".." in args.to.parts:
        raise UserError(f"{args.to}: give it relative to the repository, so that no file names a machine's path")
    workflow = load(read_yaml(args.config), ROOT, str(args.config))
    datasets = workflow.config.datasets
    if args.dataset is not None:
        if args.dataset not in datasets:
            hint = nearest(args.dataset, datasets)
            raise UserError(f"--dataset: '{args.dataset}' is not among the datasets of {args.config}{hint}")
        datasets = [args.dataset]
    several = len(datasets) > 1
    for dataset in datasets:
        results = Path(workflow.config.results) / dataset
        keep(results, args.config, args.to / dataset if several else args.to, workflow)
    return 0


if __name__ == "__main__":
    finish(main)
