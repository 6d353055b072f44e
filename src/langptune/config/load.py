"""From a config and the registries to a checked workflow: overrides, and entries that studies derive."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import RootModel

from langptune.config.base import NAME_RULE, Strict, nearest, read_yaml, sound_name, validate
from langptune.config.checks import check
from langptune.config.datasets import DatasetEntry
from langptune.config.judges import read_judges
from langptune.config.method import Method
from langptune.config.methods import MethodEntry
from langptune.config.models import DecoderEntry, EncoderEntry, ModelEntry
from langptune.config.prompts import Prompt
from langptune.config.published import Published, read_published
from langptune.config.recipes import RecipeEntry
from langptune.config.settings import Config, Study
from langptune.config.workflow import Workflow, variant
from langptune.errors import UserError

RESERVED = {"data", "comparison", "models", "phases", "report", "reference", "answers"}
"""Names that a method or dataset may not have, because folders of the results have them."""
METHOD_MAPPINGS = ("settings", "edit_reading")
"""Keys of methods that are mappings; a config changes them key by key."""
RECIPE_MAPPINGS = ("train", "terms", "guard", "settings")
"""Keys of recipes that are mappings; a config changes them key by key."""


class _Registry(RootModel[dict[str, dict[str, Any]]]):
    pass


class _ModelBox(Strict):
    entry: ModelEntry


class _MethodBox(Strict):
    entry: MethodEntry


class _RecipeBox(Strict):
    entry: RecipeEntry


def load(config: dict[str, Any], root: Path, where: str = "config") -> Workflow:
    """A checked workflow from a merged config (Snakemake's ``config``) and its registries.

    Raises:
        UserError: one line with file, key, value and the nearest valid key.
    """
    settings = validate(Config, config, where)
    folder = Path(root) / settings.registries
    datasets = _with_overrides(
        DatasetEntry, folder / "datasets.yaml", settings.dataset_overrides, "dataset", "protocol", where
    )
    models = {
        name: validate(_ModelBox, {"entry": entry}, f"{folder / 'models.yaml'}: {name}").entry
        for name, entry in _registry(folder / "models.yaml").items()
    }
    methods = _with_overrides(_MethodBox, folder / "methods.yaml", settings.overrides, "method", METHOD_MAPPINGS, where)
    recipes = _with_overrides(
        _RecipeBox, folder / "recipes.yaml", settings.recipe_overrides, "recipe", RECIPE_MAPPINGS, where
    )
    for study, definition in settings.studies.items():
        if not sound_name(study):
            raise UserError(f"{where}: studies: {study[:80]!r}: {NAME_RULE}")
        recipes |= _derived_recipes(study, definition, recipes, where)
        methods |= _derived(study, definition, methods, where)
    prompts = {
        name: validate(Prompt, entry, f"{folder / 'prompts.yaml'}: {name}")
        for name, entry in _registry(folder / "prompts.yaml").items()
    }
    if not settings.tune:
        methods = {name: method.untuned() for name, method in methods.items()}
    published = _published(settings, Path(root), methods, models, where)
    judges = read_judges(folder, models)
    workflow = Workflow(settings, datasets, models, methods, prompts, recipes, judges, published)
    check(workflow, where)
    return workflow


def _published(
    config: Config, root: Path, methods: Collection[str], models: dict[str, EncoderEntry | DecoderEntry], where: str
) -> tuple[Published, ...]:
    """The numbers in the file ``comparison.published``; empty if it is null."""
    comparison = config.comparison
    if comparison.published is None:
        if comparison.published_as:
            raise UserError(f"{where}: comparison.published_as needs comparison.published, the file with these names")
        return ()
    encoders, decoders = ([name for name, m in models.items() if m.role == role] for role in ("encoder", "decoder"))
    out = read_published(root / comparison.published, methods, encoders, decoders)
    there = sorted({number.dataset for number in out})
    for ours, theirs in comparison.published_as.items():
        at = f"{where}: comparison.published_as"
        if ours not in config.datasets:
            raise UserError(f"{at}: '{ours}' is not among this run's datasets{nearest(ours, config.datasets)}")
        if theirs not in there:
            raise UserError(f"{at}: {ours}: {comparison.published} has no dataset '{theirs}'{nearest(theirs, there)}")
    return out


def _registry(path: Path) -> dict[str, dict[str, Any]]:
    entries = validate(_Registry, read_yaml(path), str(path)).root
    for name in entries:
        if not sound_name(name) or name in RESERVED:
            raise UserError(f"{path}: entry {name[:80]!r}: {NAME_RULE}; reserved are {', '.join(sorted(RESERVED))}")
    return entries


def _with_overrides(
    model: type[Strict],
    path: Path,
    over: dict[str, dict[str, Any]],
    what: str,
    nested: str | tuple[str, ...],
    where: str,
) -> dict[str, Any]:
    """The checked entries of a registry, with a config's overrides."""
    raw = _registry(path)
    key = "overrides" if what == "method" else f"{what}_overrides"
    for name in over:
        if name not in raw:
            raise UserError(f"{where}: {key}: unknown {what} '{name}'{nearest(name, list(raw))}")
    boxed = "entry" in model.model_fields
    out = {}
    for name, entry in raw.items():
        if what == "recipe":
            entry = _like(raw, over, name, nested, path)
        merged = _merge(entry, over.get(name, {}), nested)
        at = f"{path}: {name}" + (f" (with {where}: {key})" * (name in over))
        checked = validate(model, {"entry": merged} if boxed else merged, at)
        out[name] = checked.entry if boxed else checked  # type: ignore[attr-defined]
    return out


def _like(
    raw: dict[str, dict[str, Any]],
    over: dict[str, dict[str, Any]],
    name: str,
    nested: str | tuple[str, ...],
    path: Path,
    behind: tuple[str, ...] = (),
) -> dict[str, Any]:
    """An entry merged over its ``like`` entry, with that entry's overrides and without its title.

    Args:
        behind: the entries whose ``like`` led to this one.

    Raises:
        UserError: an unknown entry, or a cycle.
    """
    own = dict(raw[name])
    if "like" not in own:
        return own
    base, behind = own.pop("like"), (*behind, name)
    if not isinstance(base, str) or base not in raw:
        raise UserError(f"{path}: {name}: like: unknown recipe '{base}'{nearest(str(base), list(raw))}")
    if base in behind:
        raise UserError(f"{path}: {name}: like: '{base}' is itself like '{name}'; write out the keys of one of them")
    inherited = _merge(_like(raw, over, base, nested, path, behind), over.get(base, {}), nested)
    inherited.pop("title", None)
    return _merge(inherited, own, nested)


def _merge(entry: dict[str, Any], over: dict[str, Any], nested: str | tuple[str, ...]) -> dict[str, Any]:
    """An entry with some keys changed; the mappings under ``nested`` are merged key by key."""
    merged = {**entry, **over}
    for key in (nested,) if isinstance(nested, str) else nested:
        if isinstance(entry.get(key), dict) and isinstance(over.get(key), dict):
            merged[key] = {**entry[key], **over[key]}
    return merged


def _derived_recipes(study: str, definition: Study, recipes: dict[str, Any], where: str) -> dict[str, Any]:
    """The recipes of a study of a recipe."""
    if definition.key != "recipe":
        return {}
    at = f"{where}: studies: {study}"
    if definition.recipe not in recipes:
        raise UserError(
            f"{at}: recipe: unknown recipe '{definition.recipe}'{nearest(str(definition.recipe), list(recipes))}"
        )
    base = recipes[definition.recipe]
    if base.trains is None:
        raise UserError(
            f"{at}: recipe: '{definition.recipe}' depends on the encoder; name one of "
            f"{', '.join(base.recipes.values())}"
        )
    try:
        changes = definition.changes()
    except ValueError as error:
        raise UserError(f"{at}: {error}") from None
    out = {}
    for slug, title, change in changes:
        entry = {**_merge(base.model_dump(), change, RECIPE_MAPPINGS), "title": f"{base.title}, {title}"}
        name = f"{definition.recipe}.{slug}"
        out[name] = validate(_RecipeBox, {"entry": entry}, f"{at}: {title}").entry
        if recipes.get(name, out[name]) != out[name]:
            raise UserError(
                f"{at}: '{title}' is also the name of a different variant of '{definition.recipe}'; rename one of them"
            )
    return out


def _derived(study: str, definition: Study, methods: dict[str, Method], where: str) -> dict[str, Method]:
    """The methods of one study, each with its key or its recipe changed."""
    out = {}
    for name in definition.methods:
        at = f"{where}: studies: {study}"
        if name not in methods:
            raise UserError(f"{at}: unknown method '{name}'{nearest(name, list(methods))}")
        if definition.key == "models":
            continue
        if definition.key == "recipe":
            phases = getattr(methods[name], "phases", [])
            for slug, title, _ in definition.changes() if definition.recipe in phases else ():
                chain = [f"{definition.recipe}.{slug}" if phase == definition.recipe else phase for phase in phases]
                entry = {**methods[name].model_dump(), "phases": chain, "title": f"{methods[name].title}, {title}"}
                out[f"{name}.{slug}"] = validate(_MethodBox, {"entry": entry}, f"{at}: {title}").entry
            continue
        if definition.key not in type(methods[name]).model_fields:
            raise UserError(f"{at}: method '{name}' has no key '{definition.key}'; leave it out of this study")
        for value in definition.values:
            entry = {**methods[name].model_dump(), definition.key: value}
            label = f"{methods[name].title}, {definition.key.replace('_', ' ')} {value:g}"
            changed = validate(
                _MethodBox, {"entry": {**entry, "title": label}}, f"{at}: {definition.key}: {value}"
            ).entry
            out[variant(name, definition.key, value)] = changed
    if definition.key == "recipe" and not out:
        raise UserError(f"{where}: studies: {study}: none of its methods has '{definition.recipe}' among its phases")
    return out
