"""What was chosen on validation for each method, and what was not: ranges, budgets, scores and time.

Everything is read from the files of a finished run: the trials and the choice of a baseline, the chosen weights of
popularity, the curves of phases, and manifests. A choice that a config fixes is listed as "not searched".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from langptune.comparison.recorded import at, content, manifest, number, shown
from langptune.config.base import Strict
from langptune.config.ranges import Range
from langptune.errors import UserError
from langptune.markup import duration, markdown, table_row
from langptune.provenance import manifest_of
from langptune.reading import read_lines

GRID, RANDOM, VALIDATIONS, FIXED = "grid", "random", "validations", "not searched"
"""How a choice was made: by every point of a grid, random points, the validations of one training, or not at all."""

NOTHING = "no hyperparameters"
"""Remark on a baseline that has no key ``tune``."""

WRITTEN = ("prompt", "history_items", "max_tokens", "temperature", "samples")
"""Settings of written profiles that are listed."""

SCHEMA = {
    **dict.fromkeys(("methods", "models", "seeds", "choice", "how", "searched"), pl.String),
    "trials": pl.Int64,
    "draw_seed": pl.Int64,
    **dict.fromkeys(("metric", "chosen"), pl.String),
    "score": pl.Float64,
    "default": pl.String,
    "default_score": pl.Float64,
    "seconds": pl.Float64,
    **dict.fromkeys(("remark", "source"), pl.String),
}
"""Columns of ``tuning.csv``; ``table`` explains them."""


class BaselineChoices(Strict):
    """A baseline of a comparison, with the files of its choices."""

    method: str
    models: str
    note: str = Field("", description="the note on its row of the table")
    kind: str = Field(description="entry of langptune.baselines")
    keys: dict[str, Any] = Field(description="its keys that change a result")
    tune: dict[str, list[Any] | Range] = Field({}, description="key -> values or range")
    best_path: str | None = Field(None, description="JSON of select_baseline.py; null: nothing is tuned")
    fits: dict[str, str] = Field(description="seed -> ranks of the final fit")


class PhaseChoices(Strict):
    """A phase that trained a model of a method."""

    title: str
    folders: dict[str, str] = Field(description="seed -> folder of the trained model; its curve is beside it")


class TextChoices(Strict):
    """A method that ranks by texts, with the files of its choices."""

    method: str
    models: str
    ranks: dict[str, str] = Field(description="seed -> ranks")
    weights: dict[str, str | float] = Field(
        description="seed -> file of the chosen weight of popularity, or its number"
    )
    phases: list[PhaseChoices] = Field([], description="in the order of training")


class FusionChoices(Strict):
    """A fusion that chooses a weight, with the files of its choices."""

    method: str
    models: str
    of: list[str] = Field(description="the two methods whose scores it adds")
    choices: dict[str, str] = Field(description="seed -> JSON of fuse.py")


def table(
    baselines: Iterable[tuple[BaselineChoices, Any]],
    texts: Iterable[TextChoices],
    trials: int | None,
    seed: int,
    fusions: Iterable[FusionChoices] = (),
) -> pl.DataFrame:
    """A row per choice. Seeds, phases and weights that several methods share are listed once.

    Args:
        baselines: each with its checked ``Keys`` (``langptune.baselines``), ``tune`` included.
        trials: number of random trials; None: grids.
        seed: of the draw of random trials.
        fusions: those that choose a weight.

    Columns:
        methods, models, seeds: the key of the row; several are separated by semicolons.
        choice: what is chosen.
        how: ``grid``, ``random``, ``validations`` (the best of the validations of one training) or ``not searched``.
        searched: the values or ranges.
        trials: number of points that were tried; of validations.
        draw_seed: seed of the draw of random points.
        metric, score: of the choice, on the validation sessions.
        chosen: the value that was chosen or fixed.
        default, default_score: the value without a search, and its score where it was tried.
        seconds: wall time of all trials, on the machine of the run; of the training for ``validations``.
        remark: what a reader must know, such as an unequal budget.
        source: the file that it was read from.
    """
    rows: list[dict[str, Any]] = []
    for entry, keys in baselines:
        rows += [_hyperparameters(entry, keys, trials, seed), *_epochs(entry)]
    rows = _budgets(rows)
    texts = list(texts)
    rows += _phases(texts)
    rows += _weights(texts)
    rows += _inputs(texts)
    rows += [row for entry in fusions for row in _fused(entry)]
    # An empty text is null, so that the CSV has an empty cell.
    filled = [{key: None if row.get(key) == "" else row.get(key) for key in SCHEMA} for row in rows]
    return pl.DataFrame(filled, schema=SCHEMA)


def _hyperparameters(entry: BaselineChoices, keys: Any, trials: int | None, seed: int) -> dict[str, Any]:
    """The row of the values that trials chose, or of those that the config fixes."""
    row = {"methods": entry.method, "models": entry.models, "choice": "hyperparameters", "metric": "NDCG@10"}
    if entry.best_path is None:
        fit = next(iter(entry.fits.values()))
        val = number(manifest(fit), "notes", "val", "ndcg@10")
        some = "tune" in type(keys).model_fields
        return {
            **row,
            "seeds": next(iter(entry.fits)),
            "how": FIXED,
            "trials": 0,
            "chosen": shown(_plain(entry.keys)) if some else "",
            "score": val,
            "remark": entry.note if some else NOTHING,
            "source": str(manifest_of(fit)),
        }
    best, default = content(entry.best_path), keys.tuned(keys.own())
    try:
        tried = [(keys.tuned(trial["settings"]), trial["val"]["ndcg@10"]) for trial in best["trials"]]
        chosen, score = keys.tuned(best["settings"]), best["val"]["ndcg@10"]
    except (KeyError, TypeError):
        raise UserError(f"{entry.best_path}: no choice of select_baseline.py; delete it and rerun its rule") from None
    files = at(manifest(entry.best_path), "spec", "trials_in") or []
    seconds = [number(manifest(path), "wall_seconds") for path in files]
    return {
        **row,
        "seeds": shown(at(manifest(files[0]), "seed")) if files else "",
        "how": GRID if trials is None else RANDOM,
        "searched": "; ".join(f"{key}: {_values(entry.tune[key])}" for key in sorted(entry.tune)),
        "trials": len(tried),
        "draw_seed": None if trials is None else seed,
        "chosen": shown(chosen),
        "score": score,
        "default": shown(default),
        "default_score": next((score for values, score in tried if values == default), None),
        "seconds": sum(seconds) if seconds and None not in seconds else None,
        "remark": "",
        "source": entry.best_path,
    }


def _plain(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys of an entry without the mappings in it."""
    out: dict[str, Any] = {}
    for key, value in keys.items():
        out |= value if isinstance(value, dict) else {key: value}
    return out


def _values(values: list[Any] | Range) -> str:
    if isinstance(values, list):
        return shown(values)
    return f"{values.low:g} to {values.high:g}" + (" (log)" if values.scale == "log" else "")


def _budgets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Remarks on numbers of trials that differ from those of the other baselines."""
    tuned = {row["trials"] for row in rows if row["choice"] == "hyperparameters" and row["trials"]}
    for row in rows:
        if row["choice"] == "hyperparameters" and tuned and row["trials"] < max(tuned) and row["remark"] != NOTHING:
            budget = f"{row['trials'] or 'no'} trials, other methods up to {max(tuned)}"
            row["remark"] = "; ".join([budget, *([row["remark"]] if row["remark"] else [])])
    return rows


def _epochs(entry: BaselineChoices) -> list[dict[str, Any]]:
    """The rows of the numbers of epochs: one for each seed of a baseline that is trained by epochs."""
    out = []
    for seed, path in entry.fits.items():
        found = manifest(path)
        run = at(found, "notes", "epochs_run")
        if not run:
            continue
        keys = at(found, "spec", "keys") or at(found, "spec") or {}
        every, patience = keys.get("validate_every"), keys.get("patience")
        out.append(
            {
                "methods": entry.method,
                "models": entry.models,
                "seeds": seed,
                "choice": "epochs",
                "how": VALIDATIONS,
                "searched": f"at most {keys.get('epochs')}, validated every {every}, patience {patience} validations",
                "trials": -(-run // every) if every else None,
                "metric": "NDCG@10",
                "chosen": shown(at(found, "notes", "best_epoch")),
                "score": number(found, "notes", "val", "ndcg@10"),
                "seconds": number(found, "notes", "train_seconds"),
                "remark": "stopped at the maximum number of epochs, not by patience"
                if run == keys.get("epochs")
                else "",
                "source": str(manifest_of(path)),
            }
        )
    return out


def _phases(texts: list[TextChoices]) -> list[dict[str, Any]]:
    """The rows of each trained phase: the state that was kept, by seed, and the recipe, which is not searched."""
    shared: dict[tuple[str, str], list[tuple[TextChoices, str]]] = {}
    for entry in texts:
        for phase in entry.phases:
            for seed, folder in phase.folders.items():
                shared.setdefault((phase.title, folder), []).append((entry, seed))
    out, recipes = [], {}
    for (title, folder), users in shared.items():
        found, source = manifest(folder), str(manifest_of(folder))
        recipe = at(found, "spec", "recipe") or {}
        out.append({**_users(users), **_kept(title, folder, found, recipe), "source": source})
        fixed = shown({key: value for key, value in recipe.items() if key not in ("title", "kind", "launch")})
        one = recipes.setdefault((title, fixed), {"users": [], "source": source})
        one["users"] += users
    for (title, fixed), one in recipes.items():
        row = {"choice": f"recipe: {title}", "how": FIXED, "trials": 0, "chosen": fixed, "source": one["source"]}
        out.append({**_users(one["users"]), **row})
    return out


def _kept(title: str, folder: str, found: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """The cells on the state of a phase that was kept."""
    curve = [row for row in read_lines(Path(folder).parent / "curve.jsonl") if number(row, "val_ndcg") is not None]
    before = next((number(row, "val_ndcg") for row in curve if row.get("batch") == 0), None)
    searched = f"batches 0 to {recipe.get('batches')}, validated every {recipe.get('validate_every')}"
    if recipe.get("patience") is not None:
        searched += f", patience {recipe['patience']} validations"
    collapsed = at(found, "notes", "collapsed")
    last = recipe.get("select") == "last"
    return {
        "choice": f"state: {title}",
        "how": FIXED if last else VALIDATIONS,
        "searched": "" if last else searched,
        "trials": 0 if last else len(curve),
        "metric": "NDCG",
        "chosen": f"batch {shown(at(found, 'notes', 'best_batch'))}",
        "score": number(found, "notes", "best_ndcg"),
        "default": "batch 0 (before the phase)",
        "default_score": before,
        "seconds": number(found, "notes", "train_seconds"),
        "remark": f"stopped: {shown(collapsed)}" if collapsed else "",
    }


def _weights(texts: list[TextChoices]) -> list[dict[str, Any]]:
    """The rows of the weights of popularity: one for each file, and one for each number that a config fixes."""
    shared: dict[str | float, list[tuple[TextChoices, str]]] = {}
    for entry in texts:
        for seed, weight in entry.weights.items():
            shared.setdefault(weight, []).append((entry, seed))
    out = []
    for weight, users in shared.items():
        row = {"choice": "weight of popularity", **_users(users)}
        if not isinstance(weight, str):
            entry, seed = users[0]
            source = str(manifest_of(entry.ranks[seed]))
            out.append({**row, "how": FIXED, "trials": 0, "chosen": shown(weight), "source": source})
            continue
        found = content(weight) or {}
        denials = number(found, "denials")  # None unless it was chosen, too
        out.append(
            {
                **row,
                **_best_weight(weight, found, "0 (text alone)"),
                "remark": ", ".join(
                    [
                        *([f"together with the weight of denials, {denials:g}"] if denials is not None else []),
                        *(["the largest of the grid"] if at(found, "largest_of_grid") else []),
                    ]
                ),
            }
        )
    return out


def _best_weight(path: str, found: dict[str, Any], default: str) -> dict[str, Any]:
    """The cells on a weight that is the best of a grid.

    Args:
        path: the JSON file of the choice.
        found: its content; a weight of denials in it is held at its chosen value.
        default: what weight 0 means.
    """
    grid = at(found, "grid") or []
    denials = number(found, "denials")
    scores = {number(one, "weight"): number(one, "ndcg") for one in grid if number(one, "denials") == denials}
    return {
        "how": GRID,
        "searched": shown(list(scores)),
        "trials": len(grid),
        "metric": "NDCG",
        "chosen": shown(at(found, "weight")),
        "score": scores.get(number(found, "weight")),
        "default": default,
        "default_score": scores.get(0.0),
        "seconds": number(manifest(path), "wall_seconds"),
        "source": path,
    }


def _inputs(texts: list[TextChoices]) -> list[dict[str, Any]]:
    """The rows of what texts are made of: prompt, history, lengths and temperature, which are not searched."""
    shared: dict[str, list[tuple[TextChoices, str]]] = {}
    sources: dict[str, str] = {}
    for entry in texts:
        for seed, path in entry.ranks.items():
            spec = at(manifest(path), "spec") or {}
            source, values = path, {"text": spec.get("source"), "history_items": spec.get("history_items")}
            if spec.get("profiles_in"):
                shards = at(manifest(spec["profiles_in"]), "spec", "shards_in") or [spec["profiles_in"]]
                source, wrote = shards[0], at(manifest(shards[0]), "spec") or {}
                values = {key: wrote.get(key) for key in WRITTEN}
            shared.setdefault(shown(values), []).append((entry, seed))
            sources.setdefault(shown(values), str(manifest_of(source)))
    row = {"choice": "text of a session", "how": FIXED, "trials": 0}
    return [{**row, **_users(users), "chosen": key, "source": sources[key]} for key, users in shared.items()]


def _fused(entry: FusionChoices) -> list[dict[str, Any]]:
    """The rows of a fusion's weights, one for each seed."""
    first, second = entry.of
    row = {"methods": entry.method, "models": entry.models, "choice": f"weight of {second}"}
    return [
        {**row, "seeds": seed, **_best_weight(path, content(path) or {}, f"0 ({first} alone)")}
        for seed, path in entry.choices.items()
    ]


def _users(users: list[tuple[TextChoices, str]]) -> dict[str, str]:
    """The key of a row that several methods and seeds share."""
    return {
        "methods": _joined(entry.method for entry, _ in users),
        "models": _joined(entry.models for entry, _ in users),
        "seeds": _joined(seed for _, seed in users),
    }


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def page(choices: pl.DataFrame, title: str) -> str:
    """The table as Markdown, with sentences on the budgets above it.

    Args:
        choices: the result of ``table``.
        title: the dataset's title.
    """
    out = [f"# What was chosen on validation: {markdown(title)}", ""]
    out += [f"- {markdown(line)}" for line in remarks(choices)]
    head = ["method", "models", "seed", "choice", "how", "searched", "trials", "chosen", "score", "without search"]
    head += ["its score", "time", "remark"]
    out += ["", table_row(head), table_row(["---"] * len(head))]
    for row in choices.iter_rows(named=True):
        texts = [row[key] or "" for key in ("methods", "models", "seeds", "choice", "how", "searched")]
        scores = [_score(row, "score"), row["default"] or "", _score(row, "default_score")]
        trials = "" if row["trials"] is None else str(row["trials"])
        cells = [*texts, trials, row["chosen"] or "", *scores, duration(row["seconds"]), row["remark"] or ""]
        out.append(table_row([markdown(cell) for cell in cells]))
    return "\n".join(out) + "\n"


def remarks(choices: pl.DataFrame) -> list[str]:
    """Sentences on budgets and scores."""
    tried = choices.filter((pl.col("choice") == "hyperparameters") & pl.col("remark").ne_missing(NOTHING))
    budgets = sorted(set(tried["trials"]), reverse=True)
    seeds = tried["draw_seed"].drop_nulls().unique().to_list()
    drawn = (
        f"at random with seed {seeds[0]} after the entry's own settings"
        if seeds
        else "from grids, all of whose points are tried"
    )
    out = []
    if len(budgets) == 1:
        out.append(
            f"Every baseline with hyperparameters had {budgets[0]} trials, {drawn}."
            if budgets[0]
            else "No baseline was tuned."
        )
    elif budgets:
        named = "; ".join(
            f"{budget} ({', '.join(tried.filter(pl.col('trials') == budget)['methods'])})" for budget in budgets
        )
        out.append(f"Budgets are not equal. Numbers of trials, {drawn}: {named}.")
    out += [
        "Scores are means over the validation sessions. NDCG is without a cut-off. Test sessions are not used.",
        "A score without a search is empty where those values were not among the trials.",
        "Time is that of all trials, or of a training with its validations, on the machine of the run.",
        "Not searched: the config fixes the value. It may have been chosen before, in runs that are not counted here.",
    ]
    return out


def _score(row: dict[str, Any], key: str) -> str:
    return "" if row[key] is None else f"{row['metric']} {row[key]:.4f}"
