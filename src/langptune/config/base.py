"""Strict pydantic base, YAML loading, and errors that name file, key, value and the nearest valid key."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from langptune.alike import nearest
from langptune.errors import UserError

__all__ = ["NAME_RULE", "Strict", "by_size", "nearest", "read_yaml", "retype", "sound_name", "validate"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "a name has 1 to 64 letters, digits, '.', '_' or '-', the first a letter or a digit"


def sound_name(name: str) -> bool:
    """Whether a registry entry may have this name (``NAME_RULE``); file names consist of several such names."""
    return _NAME.fullmatch(name) is not None


class Strict(BaseModel):
    """A config model: unknown keys are errors, values are not coerced across types, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


M = TypeVar("M", bound=BaseModel)
V = TypeVar("V")


# Without ruamel.yaml, which refuses duplicate keys by itself: it reads YAML 1.2 and Snakemake reads the same configs by
# PyYAML, YAML 1.1, so `1e-3`, `on` and `010` would have two values.
class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error, not a silent overwrite."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`: the keys that it merges may be overridden
            continue
        key = loader.construct_object(key_node, deep=deep)
        if key in seen:
            raise UserError(
                f"{key_node.start_mark.name}: line {key_node.start_mark.line + 1}: key '{key}' is repeated; keep one"
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: missing, unreadable, not YAML, not a mapping, or a repeated key.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as stream:
            data = yaml.load(stream, Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise UserError(f"{path}: not valid YAML: {str(error)[:500]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(data).__name__}")
    return data


def retype(value: Any) -> Any:
    """Values of ``snakemake --config key=value`` as YAML reads them: Snakemake leaves values inside lists as text."""
    if isinstance(value, dict):
        return {key: retype(item) for key, item in value.items()}
    if isinstance(value, list):
        return [retype(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return read if isinstance(read, bool | int | float | None) else value


def by_size(values: Mapping[float, V], weights: int) -> V | None:
    """The value for a model of ``weights`` weights; None if the model is larger than every size.

    Args:
        values: largest size, in billions of weights -> value.
    """
    size = min((size for size in values if size * 1e9 >= weights), default=None)
    return None if size is None else values[size]


def validate(model: type[M], data: Any, where: str) -> M:
    """``model`` built from plain data.

    Args:
        where: name of the source in error messages: a file, or a file and an entry.

    Raises:
        UserError: naming ``where``, the key, the value found and the nearest valid key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # Unknown keys first: an unknown key is usually a misspelt form of the missing one.
        issues = sorted(error.errors(), key=lambda issue: issue["type"] != "extra_forbidden")
        raise UserError("; ".join(_explain(model, issue, where) for issue in issues[:3])) from None


def _explain(model: type[BaseModel], issue: dict[str, Any], where: str) -> str:
    path = [part for part in issue["loc"] if not str(part).startswith("function-")]
    model, shown = _follow(model, path[:-1])
    key = ".".join([*shown, str(path[-1])]) if path else "(top level)"
    if issue["type"] == "extra_forbidden":
        return f"{where}: unknown key '{key}'{nearest(str(path[-1]), sorted(model.model_fields))}"
    if issue["type"] == "missing":
        return f"{where}: key '{key}' is missing"
    message = issue["msg"].removeprefix("Value error, ")
    return f"{where}: key '{key}': {message} (found {_short(issue['input'])})"


def _follow(model: type[BaseModel], path: list[Any]) -> tuple[type[BaseModel], list[str]]:
    """The model at ``path``, and the path as a user writes it.

    In a discriminated union, pydantic puts the discriminator's value into the path. This value selects the candidate
    and is not a key. ``entry``, which wraps a registry entry for validation, is not a key either.
    """
    shown: list[str] = []
    candidates = [model]
    for part in path:
        chosen = [c for c in candidates if len(candidates) > 1 and part in _tags(c)]
        if chosen:
            candidates = chosen
            continue
        if part != "entry":
            shown.append(str(part))
        field = candidates[0].model_fields.get(str(part))
        candidates = (_models_in(field.annotation) if field else []) or candidates
    return candidates[0], shown


def _tags(model: type[BaseModel]) -> list[Any]:
    """The values of a model's literal fields; they identify the model within a union."""
    return [value for field in model.model_fields.values() for value in getattr(field.annotation, "__args__", ())]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for arg in getattr(annotation, "__args__", ()) for found in _models_in(arg)]


def _short(value: Any) -> str:
    # Not repr: a few lines of YAML with aliases can expand to more than fits into memory.
    text = _SHOWN.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 100
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxset = _SHOWN.maxdict = 20
_SHOWN.maxlevel = 3
