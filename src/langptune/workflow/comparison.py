"""The inputs of tables, figures and pages of a comparison: entries of its runs, and curves."""

from __future__ import annotations

from typing import Any

from langptune.config.layout import decoder_of
from langptune.config.recipes import Recipe
from langptune.config.workflow import Run
from langptune.workflow.project import Project

TEXTS = {"profiles": "profiles", "history": "histories", "mixed": "histories and profiles"}


def run_entry(project: Project, run: Run) -> dict[str, Any]:
    """The entry of a run in the specs of the comparison."""
    method = project.methods[run.method]
    return {
        "method": run.method,
        "models": run.models,
        "seed": run.seed,
        "title": method.title,
        "group": method.group,
        "note": "; ".join(filter(None, [method.note, _other_prompt(project, run)])),
        "trials": len(project.workflow.points(run.method)),
        **_weight(project, run),
        "metrics_path": project.paths.metrics_of(run),
    }


def _other_prompt(project: Project, run: Run) -> str:
    """The prompts of a transferred encoder where those of its two datasets differ; otherwise empty."""
    source = project.workflow.source_of(run.method)
    origin = project.methods[source].origin()
    if origin is None:
        return ""
    prompt_of = project.workflow.prompt_of
    before, here = prompt_of(origin.dataset, origin.method), prompt_of(run.dataset, source)
    return "" if before == here else f"its encoder was trained with prompt '{before}' and writes here with '{here}'"


def _weight(project: Project, run: Run) -> dict[str, Any]:
    """The weight of popularity in a run's scores, or its file; in a fusion the file of the second method's weight.

    Empty where a method has neither.
    """
    if project.methods[run.method].adds_scores():
        return {"weight_path": project.paths.choice_of(run)}
    if not project.ranks_texts(run.method):
        return {}
    weight = project.paths.run_weight(run)
    return {"weight_path": weight} if isinstance(weight, str) else {"weight": weight}


def trained_recipes(project: Project, dataset: str) -> list[Recipe]:
    """The recipes of the trained methods of a comparison, with the methods' changes."""
    runs = [run for run in project.runs(dataset) if project.has_phases(run.method)]
    return [recipe for run in runs for _, recipe in project.paths.run_phase(run).chain]


def phase_curves(project: Project, dataset: str, runs: list[Run] | None = None) -> dict[str, dict[str, str]]:
    """Path of the curve of every trained phase of the comparison -> its key (equal for all seeds) and its title.

    Args:
        runs: those whose phases are listed; None: the runs of the comparison.
    """
    config = project.config
    out = {}
    for run in project.runs(dataset) if runs is None else runs:
        if not project.has_phases(run.method):
            continue
        for phase in project.paths.run_phase(run).all()[1:]:
            titles = [recipe.title for _, recipe in phase.chain]
            # Five iterations of two recipes would fill the page with their names.
            title = ", then ".join(titles if len(titles) <= 4 else dict.fromkeys(titles))
            title += f", phase {len(titles)}" if len(titles) > 4 else ""
            texts = getattr(phase.recipe, "texts", "profiles")
            title += "" if f" on {TEXTS[texts]}" in titles[-1] else f" on {TEXTS[texts]}"
            models = run.models if phase.prompt is not None else decoder_of(run.models)
            several = len(config.decoders) * (1 if phase.prompt is None else len(config.encoders)) > 1
            title += f" ({models})" if several else ""
            path = f"{project.paths.phase_folder(dataset, models, run.seed, phase)}/curve.jsonl"
            out[path] = {"key": f"{models}/{phase.id}", "title": title}
    phases = {named["key"]: named["title"] for named in out.values()}
    for named in out.values():
        # Phases of the same recipes may differ in their profiles (length, history).
        if list(phases.values()).count(named["title"]) > 1:
            named["title"] += f", {named['key'].rpartition('/')[2]}"
    return out


def baseline_curves(project: Project, dataset: str) -> dict[str, dict[str, str]]:
    """Path of the learning curve of every baseline that has one -> its key (equal for all seeds) and its title."""
    return {
        f"{project.results}/{run.folder}/curve.jsonl": {"key": run.method, "title": project.methods[run.method].title}
        for run in project.runs(dataset)
        if project.methods[run.method].curve
    }


def encoder_curves(project: Project, run: Run) -> list[dict[str, Any]]:
    """The curves of the phases that trained a run's encoder, with the number of profiles per batch."""
    if not project.has_profiles(run.method):
        return []
    dataset, last = run.dataset, project.paths.run_phase(run)
    if last.transfer is not None:
        dataset, last = last.transfer.dataset, last.transfer.phase
    return [
        {
            "path": f"{project.paths.phase_folder(dataset, run.models, run.seed, phase)}/curve.jsonl",
            "profiles": phase.recipe.sessions_per_batch * phase.recipe.samples,
        }
        for phase in last.all()[1:]
        if phase.recipe.trains == "encoder"
    ]


def _with_parts(project: Project, dataset: str) -> list[Run]:
    """The runs of a comparison and those that only its fusions name."""
    runs = project.runs(dataset)
    return list(dict.fromkeys([*runs, *(part for run in runs for part in project.workflow.parts_of(run))]))


def baseline_choices(project: Project, dataset: str) -> list[dict[str, Any]]:
    """The baselines of a comparison with the files of what was chosen for them, one entry for all seeds."""
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for run in _with_parts(project, dataset):
        method = project.methods[run.method]
        if method.ranked_by != "fit_baseline":
            continue
        one = out.setdefault(
            (run.method, run.models),
            {
                "method": run.method,
                "models": run.models,
                "note": method.note,
                "kind": method.kind,
                "keys": method.keys(),
                "tune": method.model_dump(mode="json").get("tune", {}),
                "best_path": project.paths.tuned(run) if project.workflow.points(run.method) else None,
                "fits": {},
            },
        )
        one["fits"][str(run.seed)] = project.paths.ranks_of(run)
    return list(out.values())


def text_choices(project: Project, dataset: str) -> list[dict[str, Any]]:
    """The methods that rank by their own texts with the files of what was chosen for them, one entry for all seeds."""
    out: dict[tuple[str, str], dict[str, Any]] = {}
    runs = _with_parts(project, dataset)
    titles = phase_curves(project, dataset, runs)
    for run in runs:
        if not project.has_phases(run.method):
            continue
        one = out.setdefault(
            (run.method, run.models),
            {"method": run.method, "models": run.models, "ranks": {}, "weights": {}, "phases": []},
        )
        one["ranks"][str(run.seed)] = project.paths.ranks_of(run)
        one["weights"][str(run.seed)] = project.paths.run_weight(run)
        for at, phase in enumerate(project.paths.run_phase(run).all()[1:]):
            folder = project.paths.phase_folder(dataset, run.models, run.seed, phase)
            if len(one["phases"]) == at:
                one["phases"].append({"title": titles[f"{folder}/curve.jsonl"]["title"], "folders": {}})
            one["phases"][at]["folders"][str(run.seed)] = f"{folder}/{phase.recipe.trains}"
    return list(out.values())


def fusion_choices(project: Project, dataset: str) -> list[dict[str, Any]]:
    """The fusions of a comparison that choose a weight, with the files of their choices by seed."""
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for run in project.runs(dataset):
        method = project.methods[run.method]
        if method.adds_scores():
            keys = {"method": run.method, "models": run.models, "of": method.parts(), "choices": {}}
            one = out.setdefault((run.method, run.models), keys)
            one["choices"][str(run.seed)] = project.paths.choice_of(run)
    return list(out.values())


def chosen_files(project: Project, dataset: str) -> list[str]:
    """The files that ``baseline_choices``, ``text_choices`` and ``fusion_choices`` name."""
    out: list[str] = []
    for entry in fusion_choices(project, dataset):
        out += entry["choices"].values()
    for entry in baseline_choices(project, dataset):
        out += [*entry["fits"].values(), *([entry["best_path"]] if entry["best_path"] else [])]
    for entry in text_choices(project, dataset):
        out += [*entry["ranks"].values(), *(file for file in entry["weights"].values() if isinstance(file, str))]
        out += [folder for phase in entry["phases"] for folder in phase["folders"].values()]
    return list(dict.fromkeys(out))


def figure_inputs(project: Project, dataset: str, reads: tuple[str, ...]) -> dict[str, Any]:
    """The input files of a figure of the comparison, by the names in its entry's ``reads``, with the suffix ``_in``.

    Files that entries of its spec name have no ``_in``. They are inputs only so that their jobs run first.
    """
    folder = f"{project.results}/{dataset}/comparison"
    files = {
        "table_in": f"{folder}/table_long.csv",
        "gains_in": f"{folder}/gains.parquet",
        "contrasts_in": f"{folder}/contrasts.csv",
        "slices_in": f"{folder}/slices.csv",
        "lists_in": f"{folder}/lists.csv",
        "items_in": project.paths.data_file(dataset, "items"),
        "metrics": [project.paths.metrics_of(run) for run in project.runs(dataset)],
        "curves": list(baseline_curves(project, dataset)) if "curves" in reads else [],
        "phases": list(phase_curves(project, dataset)) if "phases" in reads else [],
    }
    return {name: files for name, files in files.items() if name.removesuffix("_in") in reads}


def profile_columns(project: Project, dataset: str) -> list[dict[str, str]]:
    """Title, profiles and ranks of every profile method's first seed."""
    config, out = project.config, []
    for run in project.runs(dataset):
        method = project.methods[run.method]
        if method.writes_profiles and method.best_of == 1 and run.seed == config.seeds[0]:
            several = len(config.encoders) * len(config.decoders) > 1
            out.append(
                {
                    "title": f"{method.title} ({run.models})" if several else method.title,
                    "profiles": project.paths.run_profiles(run),
                    "ranks": project.paths.ranks_of(run),
                }
            )
    return out


def example_columns(project: Project, dataset: str) -> list[dict[str, str]]:
    """Title, ranks and measures of every method on the page of examples."""
    return [
        {
            "title": project.methods[run.method].title,
            "ranks": project.paths.ranks_of(run),
            **{name: project.measured(run, name) for name in ("measures", "claims", "simulation")},
        }
        for run in project.example_runs(dataset)
    ]
