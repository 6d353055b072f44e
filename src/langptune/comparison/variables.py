"""The variables of a comparison's checklist, by group, from the manifests of its jobs and from its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import polars as pl

from langptune.comparison.manifests import Manifests, several
from langptune.comparison.recorded import at, number, shown
from langptune.comparison.tuning import NOTHING
from langptune.config.datasets import Protocol
from langptune.metrics import title as metric_title
from langptune.spreadsheet import plain

TESTS = {
    "p_permutation": "sign-flip permutation of the mean difference, paired by session",
    "p_ttest": "paired t-test",
    "p_wilcoxon": "Wilcoxon signed-rank",
}
"""Columns of the tables of tests -> what they are."""


@dataclass(frozen=True)
class Tables:
    """Tables of the comparison, with their paths."""

    tuning: pl.DataFrame
    tuning_path: str
    costs: pl.DataFrame
    costs_path: str
    tests: pl.DataFrame
    tests_path: str
    users: pl.DataFrame
    users_path: str


Row = tuple[str, str, str]
"""Variable, value (empty where unknown), source."""


def groups(manifests: Manifests, tables: Tables) -> dict[str, list[Row]]:
    """All variables, by the title of their group."""
    return {
        "Dataset": _dataset(manifests),
        "Protocol": _protocol(manifests),
        "Order and leakage": _audit(manifests),
        "Models": _models(manifests),
        "Prompts and decoding": _decoding(manifests),
        "Training": _training(manifests),
        "Baselines": _baselines(manifests, tables),
        "Metrics": _metrics(manifests),
        "Statistics": _statistics(manifests, tables),
        "Cost": _cost(manifests, tables),
        "Code and environment": _code(manifests),
    }


def _row(name: str, found: list[tuple[Any, str]], form: Callable[[Any], str] = shown) -> Row:
    """A row of the distinct values of a variable."""
    texts = list(dict.fromkeys(text for value, _ in found if (text := _formed(form, value))))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return name, "; ".join(texts), f"{found[0][1]}{more}" if found else ""


def _formed(form: Callable[[Any], str], value: Any) -> str:
    """A value as text; empty where another version recorded a value of another form."""
    try:
        return form(value)
    except (AttributeError, KeyError, TypeError):
        return ""


def _dataset(manifests: Manifests) -> list[Row]:
    def noted(*keys: str | int) -> list[tuple[Any, str]]:
        return manifests.values("prepare_data", "notes", *keys)

    def described(*keys: str) -> list[tuple[Any, str]]:
        return manifests.values("describe_data", "spec", *keys)

    packages = [str(name) for name, _ in manifests.values("prepare_data", "spec", "dataset", "source", "package")]
    revision = manifests.values("prepare_data", "spec", "dataset", "source", "revision") + [
        (f"{name} {value}" if len(packages) > 1 else value, path)
        for name in packages
        for value, path in manifests.values("prepare_data", "versions", name)
    ]
    return [
        _row("name", described("name")),
        _row("title", described("dataset", "title")),
        _row("address", described("dataset", "url")),
        _row("source", manifests.values("prepare_data", "spec", "dataset", "source"), _given),
        _row("version: revision or version of the package", revision),
        _row("SHA-256 of the raw files", noted("raw")),
        _row("licence", noted("licence")),
        _row("users, items and interactions before filters", noted("funnel", 0), _without_step),
        _row("users, items and interactions after filters", noted("funnel", -1), _without_step),
        _row("filters, and what each left out", noted("drops")),
        _row("steps of the preparation, with counts", noted("funnel")),
        _row("text of an item", manifests.values("prepare_data", "spec", "dataset", "item_text")),
        _row("fields of items that are used", manifests.values("prepare_data", "spec", "dataset", "columns")),
    ]


def _given(mapping: Any) -> str:
    """A mapping without the keys that have no value."""
    return shown({key: value for key, value in mapping.items() if value not in (None, [], "", False)})


def _without_step(counts: Any) -> str:
    return shown({key: value for key, value in counts.items() if key != "step"})


def _protocol(manifests: Manifests) -> list[Row]:
    protocol = manifests.values("prepare_data", "notes", "protocol")
    drawn = ("draw_sample",)
    return [
        _row("protocol and its parameters", protocol),
        _row("split and target", protocol, _about),
        _row("candidates and mask", manifests.values("compare", "spec", "facts", 0)),
        _row("number of candidates", manifests.values("evaluate", "notes", "items")),
        _row("sessions of each split", manifests.values("prepare_data", "notes", "sessions")),
        _row("test sessions compared", manifests.values(drawn, "notes", "test")),
        _row("validation sessions of phases and weights", manifests.values(drawn, "notes", "val")),
        _row("train sessions of phases", manifests.values(drawn, "notes", "train")),
        _row("seed of the samples", manifests.values(drawn, "spec", "sample", "seed")),
        _row("what is selected on validation", manifests.values("compare", "spec", "facts", 1)),
    ]


def _about(protocol: Any) -> str:
    """The description of a protocol in the program."""
    for entry in get_args(get_args(Protocol)[0]):
        if at(protocol, "name") in get_args(entry.model_fields["name"].annotation):
            return " ".join(entry.__doc__.split())
    return ""


def _audit(manifests: Manifests) -> list[Row]:
    found = manifests.values("describe_data", "notes", "audit")
    checks = found[0][0] if found and isinstance(found[0][0], dict) else {}
    source = found[0][1] if found else ""
    rows = [(name, f"{shown(at(check, 'value'))}: {at(check, 'level')}", source) for name, check in checks.items()]
    # What an encoder knows of the dataset from its own training is not measured by the audit of the data.
    return [
        *(rows or [("audit of order and leakage", "", "")]),
        ("dataset in the training data of the encoder", "", ""),
    ]


def _models(manifests: Manifests) -> list[Row]:
    jobs = manifests.all("prefetch_model")
    if not jobs:
        return [("models", "none: no method of the comparison uses a language model", "prefetch_model: no job")]

    def of(*places: tuple[str, ...]) -> str:
        """The first value that a manifest has in some places, for each model."""
        out = []
        for _, manifest in jobs:
            value = next((found for place in places if (found := at(manifest, *place))), None)
            if value is not None:
                text = _given(value) if isinstance(value, dict) else f"{value:,}" if isinstance(value, int) else value
                out.append(f"{at(manifest, 'spec', 'name')}: {text}")
        return "; ".join(out)

    def source(keys: str) -> str:
        return several([path for path, _ in jobs], keys)

    entry = ("spec", "model")
    asked = manifests.values("write_profiles", "notes", "answered_by")
    by = asked[0][1] if asked else "write_profiles: spec.encoder.source.endpoint"
    return [
        ("names and roles", of((*entry, "role")), source("spec.model.role")),
        ("sources", of((*entry, "source")), source("spec.model.source")),
        (
            "revisions or versions",
            of((*entry, "source", "revision"), ("notes", "revision"), ("notes", "version")),
            source("spec.model.source.revision, notes.version"),
        ),
        ("SHA-256 of the files", of(("sha256",)), source("sha256")),
        ("parameters", of(("notes", "parameters"), (*entry, "parameters")), source("notes.parameters")),
        ("licences", of(("notes", "licence"), (*entry, "licence")), source("notes.licence")),
        ("models behind an API", shown(asked[0][0]) if asked else "" if _paid(manifests) else "none", by),
    ]


def _paid(manifests: Manifests) -> bool:
    """Whether a model behind an API wrote profiles."""
    return bool(manifests.values("write_profiles", "spec", "encoder", "source", "endpoint"))


def _decoding(manifests: Manifests) -> list[Row]:
    if not manifests.all("write_profiles"):
        return [("prompts", "none: no method of the comparison writes profiles", "write_profiles: no job")]

    def asked(*keys: str) -> list[tuple[Any, str]]:
        return manifests.values("write_profiles", "spec", *keys)

    return [
        _row("prompt: name", asked("prompt")),
        _row("prompt: template", asked("prompt_entry", "template")),
        _row("prompt: first words of a profile", asked("prompt_entry", "starts")),
        _row("items of the history in a prompt", asked("history_items")),
        _row("longest prompt, tokens", asked("encoder", "max_prompt_tokens")),
        _row("what is cut from a longer prompt", asked("prompt_entry", "over")),
        _row("longest profile, tokens", asked("max_tokens")),
        _row("temperature (0: greedy)", asked("temperature")),
        _row("profiles per session", asked("samples")),
        _row("seeds of profiles", asked("seed")),
        _row("precision", manifests.values("write_profiles", "notes", "dtype")),
        _row("prompts that lost items", [_total(manifests, "prompts_that_lost_items")]),
        _row(
            "share of profiles that ended within the limit",
            manifests.values("gather_profiles", "notes", "finished_share"),
        ),
        _row("limit of a text of the decoder, tokens", manifests.values("rank_texts", "spec", "decoder", "max_tokens")),
        _row("texts cut at that limit", manifests.values("rank_texts", "notes", "texts_cut_at_limit")),
    ]


def _total(manifests: Manifests, note: str) -> tuple[Any, str]:
    value, source = manifests.sum("write_profiles", "notes", note)
    return ("" if value is None else int(value)), source


def _training(manifests: Manifests) -> list[Row]:
    trained = ("train_decoder", "train_encoder")
    jobs = manifests.all(*trained)
    if not jobs:
        return [("training of language models", "none", "train_decoder, train_encoder: no job")]

    def each(read: Callable[[dict[str, Any]], str]) -> str:
        """A text of every phase, with its seed; equal texts of several seeds once."""
        out: dict[tuple[str, str], list[str]] = {}
        for _, manifest in jobs:
            if text := read(manifest):
                out.setdefault((at(manifest, "spec", "phase"), text), []).append(shown(at(manifest, "seed")))
        return "; ".join(f"{phase}, seed {', '.join(seeds)}: {text}" for (phase, text), seeds in out.items())

    def source(keys: str) -> str:
        return several([path for path, _ in jobs], keys)

    def kept(manifest: dict[str, Any]) -> str:
        notes = at(manifest, "notes") or {}
        return _given({key: notes.get(key) for key in ("best_batch", "best_ndcg", "collapsed")})

    return [
        (
            "recipes and hyperparameters",
            each(lambda one: shown(at(one, "spec", "recipe") or "")),
            source("spec.recipe"),
        ),
        ("state kept by validation", each(kept), source("notes.best_batch, notes.best_ndcg")),
        _row("train sessions", manifests.values(trained, "notes", "train_sessions")),
        _row("validation sessions", manifests.values(trained, "notes", "val_sessions")),
        _row("seeds", manifests.values(trained, "seed")),
        _row("trained weights of adapters", manifests.values(trained, "notes", "trained_weights")),
        _row("hardware", manifests.values(trained, "device")),
        ("hours", each(lambda one: _hours(number(one, "notes", "train_seconds"))), source("notes.train_seconds")),
    ]


def _hours(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 3600:.3g}"


def _baselines(manifests: Manifests, tables: Tables) -> list[Row]:
    chosen = tables.tuning.filter((pl.col("choice") == "hyperparameters") & pl.col("remark").ne_missing(NOTHING))
    epochs = tables.tuning.filter(pl.col("choice") == "epochs")
    fitted = manifests.values("fit_baseline", "spec", "baseline")

    def of(frame: pl.DataFrame, *columns: str) -> str:
        cells = [
            f"{plain(row['methods'])}: {', '.join(shown(row[one]) for one in columns if row[one] is not None)}"
            for row in frame.iter_rows(named=True)
            if any(row[one] is not None for one in columns)
        ]
        return "; ".join(cells)

    path = tables.tuning_path
    names = tables.tuning.filter(pl.col("choice") == "hyperparameters")["methods"].unique(maintain_order=True)
    fixed = chosen.filter(pl.col("trials") == 0)
    return [
        ("baselines", ", ".join(map(plain, names)), f"{path}: methods"),
        _row("implementations", fitted),
        _row("version of RecBole", manifests.values("fit_baseline", "versions", "recbole")),
        ("tuning: number of trials", of(chosen, "trials"), f"{path}: trials"),
        ("tuning: how points are drawn", of(chosen, "how", "draw_seed"), f"{path}: how, draw_seed"),
        ("tuning: values and ranges", of(chosen, "searched"), f"{path}: searched"),
        ("tuning: unequal budgets and other remarks", of(chosen, "remark") or "none", f"{path}: remark"),
        ("tuning: metric", ", ".join(chosen["metric"].drop_nulls().unique(maintain_order=True)), f"{path}: metric"),
        ("chosen values", of(chosen.filter(pl.col("trials") > 0), "chosen"), f"{path}: chosen"),
        ("values fixed without a search", of(fixed, "chosen") or "none", f"{path}: chosen"),
        ("epochs", of(epochs, "searched", "chosen"), f"{path}: searched, chosen"),
        _row("seeds", manifests.values("fit_baseline", "seed")),
    ]


def _metrics(manifests: Manifests) -> list[Row]:
    names = manifests.values("compare", "spec", "metrics")
    return [
        _row("metrics with cut-offs", names, lambda value: ", ".join(map(metric_title, value))),
        _row("main metric", manifests.values("compare", "spec", "main_metric")),
        _row("metrics on parts of the sessions", manifests.values("slice_metrics", "spec", "metrics")),
        _row("metrics of recommended lists", manifests.values("list_metrics", "notes", "metrics")),
        _row("length of these lists", manifests.values("list_metrics", "spec", "k")),
        _row("metrics of lists left out, and why", manifests.values("list_metrics", "notes", "left_out"), _or_none),
    ]


def _statistics(manifests: Manifests, tables: Tables) -> list[Row]:
    def asked(*keys: str) -> list[tuple[Any, str]]:
        return manifests.values("compare", "spec", *keys)

    columns, path = tables.tests.columns, tables.tests_path
    tests = "; ".join(name for column, name in TESTS.items() if column in columns)
    corrected = [column for column in columns if column.endswith("_holm")]
    effects = [column for column in ("difference", "detectable", "d_z", "wins", "ties", "losses") if column in columns]
    seeds = manifests.values("compare", "spec", "runs")
    return [
        _row("sessions compared", manifests.values("compare", "notes", "sessions")),
        _row("seeds of methods that draw random numbers", seeds, _seeds),
        _row("reference", manifests.values("compare", "notes", "reference")),
        ("tests", tests, f"{path}: columns"),
        (
            "correction for several tests",
            "Holm, over the rows within each metric" if corrected else "",
            f"{path}: columns",
        ),
        _row("level of intervals (percentile bootstrap over sessions and seeds)", asked("confidence")),
        _row("resamples", asked("bootstrap")),
        ("effect sizes, and the smallest that the sample would show", ", ".join(effects), f"{path}: columns"),
        _row("questions named beforehand (contrasts)", asked("contrasts"), _contrasts),
        _row("runs that are missing", manifests.values("compare", "notes", "missing"), _or_none),
    ]


def _or_none(value: Any) -> str:
    return shown(value) or "none"


def _seeds(runs: Any) -> str:
    return shown(sorted({run["seed"] for run in runs}))


def _contrasts(contrasts: Any) -> str:
    return "; ".join(map(_contrast, contrasts)) or "none"


def _contrast(one: Any) -> str:
    pair, beyond = f"{at(one, 'of')} against {at(one, 'against')}", at(one, "beyond")
    return f"{pair}, beyond {beyond[0]} against {beyond[1]}" if beyond else pair


def _cost(manifests: Manifests, tables: Tables) -> list[Row]:
    own = tables.costs.filter(~pl.col("shared"))
    path = tables.costs_path

    def hours(column: str) -> str:
        return f"{own[column].sum():.3g}" if len(own) else ""

    written, source = _written(manifests)
    usd, paid = manifests.sum("write_profiles", "notes", "usd")
    price = f"{usd:.2f}" if usd is not None else "" if _paid(manifests) else "none: no model behind an API"
    by_model = own.group_by("model", maintain_order=True).agg(pl.col("seconds").sum())
    spent = [f"{name or 'without a model'} {seconds / 3600:.3g}" for name, seconds in by_model.iter_rows()]
    return [
        ("hours of all jobs", f"{own['seconds'].sum() / 3600:.3g}" if len(own) else "", f"{path}: seconds"),
        ("core-hours", hours("core_hours"), f"{path}: core_hours"),
        ("GPU-hours", hours("gpu_hours"), f"{path}: gpu_hours"),
        ("hours by model", "; ".join(spent), f"{path}: model, seconds"),
        (
            "most memory of one job, GB",
            f"{own['peak_mb'].max() / 1000:.3g}" if own["peak_mb"].max() else "",
            f"{path}: peak_mb",
        ),
        ("tokens of written test profiles", written, source),
        ("tokens of prompts", "", ""),
        ("US dollars paid for an API", price, paid or "write_profiles: no endpoint"),
        ("time of inference per user, ms", _by_method(tables.users, "ms"), f"{tables.users_path}: ms"),
        ("energy of inference per user, J", _by_method(tables.users, "joules"), f"{tables.users_path}: joules"),
        ("energy of training", "", ""),
    ]


def _by_method(users: pl.DataFrame, column: str) -> str:
    """The value of every method that has one."""
    rows = users.drop_nulls(column)
    return "; ".join(f"{title} {value:.3g}" for title, value in rows.select("title", column).iter_rows())


def _written(manifests: Manifests) -> tuple[str, str]:
    """Tokens of profiles: their number times their mean, over all files."""
    tokens, paths = 0.0, []
    for path, manifest in manifests.all("gather_profiles"):
        count, mean = (number(manifest, "notes", key) for key in ("profiles", "mean_tokens"))
        if at(manifest, "spec", "split") == "test" and count is not None and mean is not None:
            tokens += count * mean
            paths.append(path)
    return (f"{tokens:,.0f}", several(paths, "notes.profiles, notes.mean_tokens")) if paths else ("", "")


def _code(manifests: Manifests) -> list[Row]:
    def everywhere(*keys: str) -> list[tuple[Any, str]]:
        return manifests.values((), *keys)

    libraries = everywhere("versions")
    days = sorted({value[:10] for value, _ in everywhere("started") if isinstance(value, str)})
    first = everywhere("started")
    return [
        _row("commit of the code", everywhere("git", "commit")),
        _row("local changes of the code", everywhere("git", "dirty")),
        _row("SHA-256 of the lock of all packages", everywhere("lock")),
        _row("Python", everywhere("python")),
        _row("versions of libraries", libraries),
        _row("devices", everywhere("device")),
        _row(
            "CPU and its instruction sets",
            everywhere("cpu"),
            lambda cpu: f"{at(cpu, 'name')} ({shown(at(cpu, 'flags') or [])})",
        ),
        _row("threads of a job", everywhere("threads")),
        _row("operating system", everywhere("platform")),
        (
            "days on which the jobs ran",
            " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
            first[0][1] if first else "",
        ),
    ]
