"""Checks a model's files against its registry entry when it is fetched, before anything is computed with it.

A mismatch that loads without an error invalidates every rank, and a model that cannot be loaded should be refused here
rather than in a job. It reads the files of sentence-transformers (``modules.json``, the ``config.json`` of each module,
``config_sentence_transformers.json``) and of transformers (``config.json``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from langptune.config.models import DecoderEntry, EncoderEntry, ModelEntry, VerifierEntry
from langptune.errors import UserError
from langptune.reading import read_json

SUPPORTED = ("Transformer", "Pooling", "Dense", "Dropout", "LayerNorm", "Normalize")
"""Modules of sentence-transformers that a decoder may have."""
WITH_WEIGHTS = ("Dense", "LayerNorm")
"""Modules that keep weights in their own folder."""
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SHIFTED = ("roberta", "camembert", "xlm-roberta", "mpnet", "xmod", "longformer", "data2vec-text", "ibert", "luke")
"""Prefixes of model types that number positions from ``pad_token_id + 1``, so that so many fewer tokens fit."""
_ARGUMENTS = [f"{of}_{kind}" for of in ("model", "tokenizer", "processor", "config") for kind in ("args", "kwargs")]
"""Keys of a module's config whose arguments sentence-transformers passes to transformers, old and new names."""
_WORDS = {"dtype", "torch_dtype", "padding_side", "truncation_side", "attn_implementation"}
"""Arguments among them that may be a string. Others could name a file to read or a folder to write."""
_UNSAFE = {"trust_remote_code", "weights_only", "use_safetensors"}
_ADAPTER = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "task_type", "inference_mode"),
    *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
}
"""Keys of an adapter's config that our trainings write; the last five do not affect loading."""
_LAYERS = re.compile(r"(\.\*\\\.layers\\\.\([0-9|]{1,4000}\)\\\.\.\*\\\.\([\w|]{0,1000}\))(\|\.\*lm_head)?")
"""The regular expressions for layers that our trainings write (``langptune.training.policy``)."""
_WHOLE = re.compile(r"model\.layers\.[0-9]{1,4}")
"""The name of a layer that is trained as a whole."""


def check_reach(folder: Path, name: str) -> None:
    """Refuse settings of a model folder that reach beyond its weights and tokenizer.

    Libraries receive them as arguments, which could have a model read from pickles (which run code), have its tokenizer
    read from any file of this user (which a saved model would then contain), or have parts written to any folder.
    Called before anything of a folder is loaded: others may have changed it since it was fetched, or it may be another
    person's trained model.

    Raises:
        UserError: one line with the file and the key.
    """
    places = [folder, *(folder / module["path"] for module, _ in check_modules(folder, name) if module["path"])]
    for path in (path for place in places if place.is_dir() for path in sorted(place.glob("*.json"))):
        what = f"model '{name}': unsupported: {path.relative_to(folder).as_posix()}"
        if path.name == "adapter_config.json":
            raise UserError(f"{what}: an adapter within a model's folder; merge it into the weights, or remove it")
        if path.name == "tokenizer_config.json":
            config = _json(path, name)
            for key in ("vocab", "merges"):
                if isinstance(config, dict) and key in config:
                    raise UserError(f"{what}: key '{key}' may name another file; put it into tokenizer.json")
        if path.name.startswith("sentence_") and path.name.endswith("_config.json"):
            _check_arguments(_json(path, name), what)


def _check_arguments(config: Any, what: str) -> None:
    """Refuse arguments for transformers in a module's config that could select a file."""
    for key in _ARGUMENTS:
        given = config.get(key) if isinstance(config, dict) else None
        for argument, value in given.items() if isinstance(given, dict) else ():
            plain = value is None or isinstance(value, bool | int | float)
            word = argument in _WORDS and isinstance(value, str) and "/" not in value  # else kernels of the hub
            if argument in _UNSAFE or not (plain or word):
                raise UserError(
                    f"{what}: key '{key}.{argument}' (found {str(value)[:60]!r}) changes how files are read; "
                    "remove it, or choose another model"
                )


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The settings of a trained adapter that vary between our trainings.

    PEFT supports forty kinds of adapters. Some load a model or a tokenizer from a place that their config names, and
    ask whether to run its code.

    Returns:
        Arguments for ``peft.LoraConfig``.

    Raises:
        UserError: it is not an adapter of our trainings.
    """
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    path = folder / "adapter_config.json"
    config = _json(path, folder.name) if path.is_file() else None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: not an adapter of this program; delete the folder and rerun its training")
    plain = LoraConfig().to_dict()
    odd = [key for key, value in sorted(config.items()) if key not in _ADAPTER and value != plain.get(key) and value]
    modules, layers = config.get("target_modules"), config.get("modules_to_save") or []
    names = isinstance(modules, list) and all(isinstance(one, str) for one in modules)
    if not names and not (isinstance(modules, str) and (modules == DUMMY_TARGET_MODULES or _LAYERS.fullmatch(modules))):
        odd.append("target_modules")
    if not isinstance(layers, list) or not all(isinstance(one, str) and _WHOLE.fullmatch(one) for one in layers):
        odd.append("modules_to_save")
    if odd:
        raise UserError(
            f"{path}: key '{odd[0]}' (found {str(config.get(odd[0]))[:60]!r}) is not written by our trainings; "
            "delete the folder and rerun its training"
        )
    kept = ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "task_type")
    return {key: config[key] for key in kept if key in config}


def check_files(entry: ModelEntry, folder: Path, name: str) -> dict[str, object]:
    """Check a materialised model against its registry entry, and return facts for the manifest.

    An encoder's chat template is changed if its entry requires it (``settle_chat_template``).

    Raises:
        UserError: remote code, unsupported modules, weights that are not safetensors, pooling, dimensions or
            ``max_tokens`` that contradict the model, a chat template that is missing or depends on the date.
    """
    check_reach(folder, name)
    config = _json(folder / "config.json", name)
    _check_code(config, name)
    if isinstance(entry, DecoderEntry | VerifierEntry):
        _check_positions(entry, config, name)
    if isinstance(entry, EncoderEntry):
        from langptune.models.chat import settle_chat_template

        return settle_chat_template(entry, folder, name)
    return _check_decoder(entry, config, folder, name) if isinstance(entry, DecoderEntry) else {}


def _check_code(config: dict[str, Any], name: str) -> None:
    if not config.get("auto_map"):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"model '{name}': unsupported: model type '{kind}' needs code from the model's repository ('auto_map' in "
            "config.json), which is never run; choose a model that transformers has itself"
        )


def _check_positions(entry: DecoderEntry | VerifierEntry, config: dict[str, Any], name: str) -> None:
    text = config.get("text_config", config)
    limit = next((text[key] for key in ("max_position_embeddings", "n_positions") if key in text), None)
    relative = "relative_attention_num_buckets" in text or not text.get("position_biased_input", True)  # T5, DeBERTa
    if relative or not isinstance(limit, int) or limit <= 0:
        return
    if str(text.get("model_type", "")).startswith(_SHIFTED):
        limit -= int(text.get("pad_token_id") or 0) + 1
    if entry.max_tokens > limit:
        raise UserError(
            f"models.yaml: {name}: max_tokens {entry.max_tokens}, but the model has positions for {limit} tokens; "
            f"write at most {limit}"
        )


def _check_decoder(entry: DecoderEntry, config: dict[str, Any], folder: Path, name: str) -> dict[str, object]:
    listed = folder / "modules.json"
    text = config.get("text_config", config)
    dimensions = next((text[key] for key in ("hidden_size", "dim", "d_model", "n_embd") if key in text), None)
    if not listed.is_file():
        _check_dimensions(entry, dimensions, name)
        return {}
    for module, kind in check_modules(folder, name):
        own = folder / module["path"]
        if kind == "Pooling":
            dimensions = _check_pooling(entry, _json(own / "config.json", name), module["path"], name)
        elif kind == "Dense":
            dimensions = _json(own / "config.json", name).get("out_features", dimensions)
    declared = _json(folder / "config_sentence_transformers.json", name)
    if (cut := declared.get("truncate_dim")) is not None and dimensions is not None:
        dimensions = min(dimensions, cut)
    _check_dimensions(entry, dimensions, name)
    ours = (entry.query_prefix, entry.item_prefix)
    prompts = {key: text for key, text in (declared.get("prompts") or {}).items() if text and text not in ours}
    return {"prompts_not_used": prompts} if prompts else {}


def check_modules(folder: Path, name: str) -> list[tuple[dict[str, Any], str]]:
    """The modules that a folder lists in modules.json, each with its kind; empty without that file.

    Raises:
        UserError: a module is not supported, or its weights are not safetensors.
    """
    out = []
    for module in _json(folder / "modules.json", name):
        kind = module["type"].rpartition(".")[2]
        if not module["type"].startswith("sentence_transformers."):
            raise UserError(
                f"model '{name}': unsupported: module '{module['type']}' in modules.json is code from the model's "
                "repository, which is never run; choose another model"
            )
        if kind not in SUPPORTED:
            raise UserError(
                f"model '{name}': unsupported: module '{kind}' in modules.json; a decoder may have "
                f"{', '.join(SUPPORTED)}; choose another model"
            )
        if kind in WITH_WEIGHTS and not (folder / module["path"] / "model.safetensors").is_file():
            raise UserError(
                f"model '{name}': unsupported: module '{kind}' keeps no {module['path']}/model.safetensors; other "
                "weight formats are refused; choose a revision that has it, or convert it in a folder of your own"
            )
        out.append((module, kind))
    return out


def _check_pooling(entry: DecoderEntry, declared: dict[str, Any], path: str, name: str) -> int | None:
    """Check pooling, and return the dimensions after it: an unnoticed mismatch would invalidate every rank."""
    modes = declared.get("pooling_mode") or [mode for key, mode in _LEGACY_POOLING.items() if declared.get(key)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if modes != [{"last": "lasttoken"}.get(entry.pooling, entry.pooling)]:
        raise UserError(
            f"models.yaml: {name}: pooling '{entry.pooling}' contradicts the model's own {path}/config.json, which has "
            f"'{' and '.join(modes)}'; take over what the model declares, or choose another model"
        )
    if not declared.get("include_prompt", True) and (entry.query_prefix or entry.item_prefix):
        raise UserError(
            f"models.yaml: {name}: unsupported: {path}/config.json leaves the prompt out of pooling ('include_prompt: "
            "false'), and prefixes here are part of the text; leave out query_prefix and item_prefix, or choose "
            "another model"
        )
    return declared.get("embedding_dimension", declared.get("word_embedding_dimension"))


def _check_dimensions(entry: DecoderEntry, found: int | None, name: str) -> None:
    if found is not None and found != entry.dimensions:
        raise UserError(
            f"models.yaml: {name}: dimensions {entry.dimensions}, but the model has {found}; write what it has"
        )


def _json(path: Path, name: str) -> Any:
    """The content of a model's JSON file; empty if there is none."""
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise UserError(
            f"model '{name}': {path.name} is not JSON ({error}); the file is damaged; fetch it again"
        ) from None
