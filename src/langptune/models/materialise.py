"""Materialises a registry model: one local folder of safetensors and tokenizer files, written once.

For a model behind an endpoint the folder contains a description (``endpoint.json``); no request is sent.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from langptune.config.models import ModelEntry, ModelSource
from langptune.errors import UserError
from langptune.files import new_folder
from langptune.models.check import check_files, check_reach
from langptune.provenance import ROOT, file_hash, installed, write_json
from langptune.reading import read_inside

# The files of a hub snapshot that are downloaded: weights as safetensors only, never pickles, never remote code.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "1_Pooling/*", "2_Normalize/*"]


def materialise(entry: ModelEntry, name: str, target: Path) -> dict[str, object]:
    """Write a complete model folder to ``target``, atomically.

    Returns:
        Facts for the manifest: source, revision or package version, hashes of the source files, licence.
        ``prompts_not_used``, if there are any: prompts in a decoder's config that its entry does not use.

    Raises:
        UserError: the package is not installed, the model is not downloaded and the hub is unreachable, it is gated, a
            hash is wrong, there are no safetensors, or the files contradict the entry or are not supported
            (``langptune.models.check``).
    """
    with new_folder(target) as part:
        if entry.source.endpoint is not None:
            return {**_describe(entry.source, part), "licence": entry.licence}
        source, facts = locate(entry.source, name)
        _check_hashes(entry, source, name)
        with _readable(source, name):
            check_reach(source if source.is_dir() else source.parent, name)
        if entry.source.is_gguf:
            with _readable(source, name):
                _convert_gguf(source, part)
        elif entry.source.hub:
            # A snapshot is in the hub cache, which jobs may share; links avoid a second copy of large weights.
            _mirror(source, part, name, link=True)
        else:
            _mirror(source, part, name)
        if not any(part.glob("*.safetensors")):
            raise UserError(f"model '{name}': {source} holds no .safetensors file; other weight formats are refused")
        with _readable(source, name):
            facts |= check_files(entry, part, name)
    return {**facts, "licence": entry.licence, "parameters": entry.parameters}


def _describe(source: ModelSource, folder: Path) -> dict[str, object]:
    """The description of a model without files: its endpoint and its name there."""
    facts: dict[str, object] = {"endpoint": source.endpoint, "model": source.model}
    write_json(folder / "endpoint.json", facts)
    return facts


def locate(source: ModelSource, name: str) -> tuple[Path, dict[str, object]]:
    """The folder (or GGUF file) of a source, downloaded if it is on the hub, and facts about it.

    Raises:
        UserError: it is missing; the message says how to get it.
    """
    if source.package is not None:
        base = installed(str(source.module))
        if base is None:
            raise UserError(f"model '{name}': package '{source.package}' is not installed; run `make env`")
        from importlib.metadata import version

        path, facts = base / source.path, {"package": source.package, "version": version(source.package)}
    elif source.folder is not None:
        path, facts = ROOT / source.folder / source.path, {"folder": source.folder}
    else:
        path, facts = _snapshot(source, name), {"hub": source.hub, "revision": source.revision}
    if not path.exists():
        raise UserError(f"model '{name}': {path} does not exist; check 'source' in models.yaml")
    return path, facts


def _snapshot(source: ModelSource, name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"model '{name}' ({source.hub}@{str(source.revision)[:8]})"
    try:
        return Path(snapshot_download(str(source.hub), revision=source.revision, allow_patterns=HUB_PATTERNS))
    except GatedRepoError:
        raise UserError(f"{what}: gated; accept its licence on the hub and set HF_TOKEN") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"{what}: not found on the hub, or private; check the id, the revision and HF_TOKEN") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if source.gated and not os.environ.get("HF_TOKEN"):
            hint = "it is gated: accept its licence, set HF_TOKEN"
        else:
            hint = "the hub cannot be reached from here, or HF_HUB_OFFLINE is set"
        raise UserError(
            f"{what}: not downloaded ({type(error).__name__}); {hint}; run `make prefetch` where the hub is reachable, "
            "with HF_HOME on a disk that jobs share"
        ) from None


def _check_hashes(entry: ModelEntry, source: Path, name: str) -> None:
    for file, wanted in entry.sha256.items():
        path = source if source.is_file() else source / file
        if not path.is_file():
            raise UserError(f"model '{name}': {path} is missing")
        if (found := file_hash(path)) != wanted:
            raise UserError(
                f"model '{name}': wrong hash: {path.name} has SHA-256 {found[:12]}..., models.yaml expects "
                f"{wanted[:12]}...; the file is damaged or another version; reinstall or download it again"
            )


@contextmanager
def _readable(source: Path, name: str) -> Iterator[None]:
    """Turn any error of a library about damaged or misnamed files into one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk, not of the file
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"model '{name}': {source}: cannot be read ({type(error).__name__}: {text}); the files are damaged, or not "
            "a model of this kind: get them again"
        ) from None


def _convert_gguf(source: Path, target: Path) -> None:
    """Dequantise a GGUF file into float32 safetensors (exact: every quantised value is a float32)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # A config.json beside the file may name code, and transformers would ask whether to run it.
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, trust_remote_code=False
    )
    # save_pretrained refuses quantised models; these weights are no longer quantised.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _mirror(source: Path, target: Path, name: str, link: bool = False) -> None:
    """Copy a model's files (``link``: link to them), except pickles and code.

    A link must lead to a file of the model: otherwise anyone with write access to a shared folder could have any file
    of this user copied to a place that others can read. In the hub's cache a snapshot's files are links to its blobs.

    Raises:
        UserError: a link leads outside the model's folder, or a file cannot be read.
    """
    own = [source.resolve()]
    if source.parent.name == "snapshots":
        own.append((source.parent.parent / "blobs").resolve())
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        relative, real = file.relative_to(source), file.resolve()
        if file.suffix in {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".py"}:
            continue
        base = next((folder for folder in own if real.is_relative_to(folder)), None)
        if base is None:
            raise UserError(
                f"model '{name}': {file} is a link to {real}, outside the model's folder; put the file itself there"
            )
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        if link:
            (target / relative).symlink_to(real)
            continue
        try:
            with read_inside(base, real.relative_to(base)) as content, (target / relative).open("xb") as copy:
                shutil.copyfileobj(content, copy, 1 << 20)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"model '{name}': {file}: cannot be copied: {error.strerror}") from None
