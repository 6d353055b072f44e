"""Download the raw files of a dataset once: from the hub at a pinned revision, or an archive at an address."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from langptune.config.datasets import DatasetEntry
from langptune.errors import UserError
from langptune.files import own_folder, publish
from langptune.provenance import file_hash


def fetch(entry: DatasetEntry, name: str, target: Path, log: Callable[[str], None]) -> dict[str, object]:
    """Make ``target`` a folder with the files of a remote source, whole or not at all.

    What was downloaded before an interruption is kept by the hub's cache, and for an archive in ``target``'s
    ``.part`` folder; the next call goes on from there.

    Returns:
        Facts for the manifest: source, revision, SHA-256 of each file.

    Raises:
        UserError: one line: cannot be reached, gated, not found, wrong content.
    """
    target = Path(target)
    part = own_folder(target.with_name(f".{target.name}.part"))
    source = entry.source
    found = _from_hub(entry, name, part, log) if source.hub else [_from_url(str(source.url), name, part, log)]
    hashes = {}
    for path in found:
        relative = str(path.relative_to(part / source.path)) if source.hub else path.name
        log(f"{name}: checking {path.name} ({path.stat().st_size / 1e6:.0f} MB)")
        hashes[relative] = file_hash(path)
        # The hub names the content of a large file by its SHA-256, in the cache too.
        blob = path.resolve().name
        wanted = entry.sha256.get(relative) or (blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None)
        if wanted and hashes[relative] != wanted:
            bad = path.resolve()
            raise UserError(
                f"dataset '{name}': {bad}: SHA-256 is {hashes[relative][:12]}..., expected {wanted[:12]}...; the file "
                "is damaged or another version: delete it and run `make prefetch` again"
            )
    publish(part, target)
    facts = {"hub": source.hub, "revision": source.revision} if source.hub else {"url": source.url}
    return {**facts, "sha256": hashes, "licence": entry.licence}


def _from_hub(entry: DatasetEntry, name: str, part: Path, log: Callable[[str], None]) -> list[Path]:
    """Links to the files in the hub's cache, which jobs and datasets share."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    source, out = entry.source, []
    what = f"dataset '{name}' ({source.hub}@{str(source.revision)[:8]})"
    for file in source.files:
        inside = f"{source.path}/{file}" if source.path else file
        log(f"{name}: {inside} (kept in the hub's cache)")
        try:
            cached = Path(hf_hub_download(str(source.hub), inside, repo_type="dataset", revision=source.revision))
        except GatedRepoError:
            raise UserError(f"{what}: gated; accept its terms on the hub and set HF_TOKEN") from None
        except LocalEntryNotFoundError as error:
            raise UserError(_unreachable(what, inside, error)) from None
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            raise UserError(f"{what}: the hub has no file '{inside}' there; check id, revision and files") from None
        except (HfHubHTTPError, OSError) as error:
            raise UserError(_unreachable(what, inside, error)) from None
        link = part / inside
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(cached.resolve())
        out.append(link)
    return out


def _unreachable(what: str, file: str, error: Exception) -> str:
    return (
        f"{what}: '{file}' is not downloaded ({type(error).__name__}); the hub cannot be reached from here, or "
        "HF_HUB_OFFLINE is set; run `make prefetch` where it can, with HF_HOME on a disk that jobs share, or name a "
        "folder with the files: dataset_overrides"
    )


def _from_url(url: str, name: str, part: Path, log: Callable[[str], None]) -> Path:
    """An archive; a download that was cut off goes on where it stopped."""
    import requests
    from tqdm import tqdm

    path = part / url.rsplit("/", 1)[-1]
    growing = path.with_suffix(path.suffix + ".incomplete")
    if path.is_file():
        return path
    log(f"{name}: {url}")
    try:
        have = growing.stat().st_size if growing.is_file() else 0
        with requests.get(url, stream=True, timeout=60, headers={"Range": f"bytes={have}-"} if have else {}) as answer:
            if answer.status_code == 416:  # all of it is here already
                growing.rename(path)
                return path
            answer.raise_for_status()
            if answer.status_code != 206:
                have = 0
            total = have + int(answer.headers.get("Content-Length", 0))
            with (
                growing.open("ab" if have else "wb") as file,
                tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=path.name) as bar,
            ):
                for block in answer.iter_content(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        if total and growing.stat().st_size != total:
            raise OSError(f"{growing.stat().st_size} of {total} bytes came")
    except (requests.RequestException, OSError) as error:
        raise UserError(
            f"dataset '{name}': {url}: not downloaded ({type(error).__name__}: {str(error)[:100]}); run "
            "`make prefetch` where it can be reached, or put the archive into a folder and name that: dataset_overrides"
        ) from None
    growing.rename(path)
    return path
