"""Downloads the raw files of a dataset once: from the hub at a pinned revision, or an archive from a URL."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langptune.config.datasets import DatasetEntry
from langptune.errors import UserError
from langptune.files import own_folder, publish
from langptune.provenance import file_hash

LARGEST = 1 << 33
"""Limit on an archive in bytes: thirty times the largest of MovieLens."""
STALLED, SLOWEST = 60.0, 1000
"""A download of fewer than ``SLOWEST`` bytes/s over ``STALLED`` seconds is aborted; another run resumes it."""


def fetch(entry: DatasetEntry, name: str, target: Path, log: Callable[[str], None]) -> dict[str, object]:
    """Download the files of a remote source into a new folder ``target``, atomically.

    After an interruption the next call resumes: the hub's cache keeps its files, and the ``.part`` folder of ``target``
    keeps an archive.

    Returns:
        Facts for the manifest: source, revision, SHA-256 of each file.

    Raises:
        UserError: the source cannot be reached, is gated, is not found, or has the wrong content.
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
        # The hub and its cache name large files by their SHA-256.
        blob = path.resolve().name
        wanted = entry.sha256.get(relative) or (blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None)
        if wanted and hashes[relative] != wanted:
            bad = path.resolve()
            problem = f"SHA-256 is {hashes[relative][:12]}..., expected {wanted[:12]}..."
            problem += "; the file is damaged or another version"
            if source.url:
                bad.unlink()
                raise UserError(
                    f"dataset '{name}': {source.url}: {problem}, and was removed: run `make prefetch` again"
                )
            raise UserError(f"dataset '{name}': {bad}: {problem}: delete it and run `make prefetch` again")
    publish(part, target)
    facts = {"hub": source.hub, "revision": source.revision} if source.hub else {"url": source.url}
    return {**facts, "sha256": hashes, "licence": entry.licence}


def _from_hub(entry: DatasetEntry, name: str, part: Path, log: Callable[[str], None]) -> list[Path]:
    """Link to the files in the hub's cache, which jobs and datasets share."""
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
    """Download an archive, or resume its download. The caller checks its hash."""
    import requests
    import urllib3

    path = part / url.rsplit("/", 1)[-1]
    growing = path.with_suffix(path.suffix + ".incomplete")
    if path.is_file():
        return path
    log(f"{name}: {url}")
    try:
        have = growing.stat().st_size if growing.is_file() else 0
        # No compression: a few bytes could unpack to gigabytes.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, stream=True, timeout=60, headers=headers) as answer:
            start, end, total = _range(answer.headers.get("Content-Range", ""))
            if answer.status_code == 416 and have and total in (None, have):  # it is complete already
                growing.rename(path)
                return path
            if answer.status_code == 416:
                growing.unlink(missing_ok=True)
                raise OSError(f"{have} bytes are here, the file has {total}; they were removed, run again")
            answer.raise_for_status()
            if answer.status_code != 206:
                have = 0
            elif start != have or (total is not None and end != total - 1):
                raise OSError(f"bytes from {have} on were asked for, the server sends {start} to {end} of {total}")
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise OSError(f"sent as {answer.headers['Content-Encoding'][:40]}, which was not asked for")
            length = answer.headers.get("Content-Length", "")
            total = have + int(length) if length.isdecimal() and len(length) < 20 else total
            if (total or 0) > LARGEST:
                raise OSError(f"{total:,} bytes are more than the {LARGEST:,} of any dataset")
            _receive(answer, growing, have, total)
        if total and growing.stat().st_size != total:
            raise OSError(f"{growing.stat().st_size} of {total} bytes came")
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise UserError(
            f"dataset '{name}': {url}: not downloaded ({type(error).__name__}: {str(error)[:100]}); run "
            "`make prefetch` where it can be reached, or put the archive into a folder and name that: dataset_overrides"
        ) from None
    growing.rename(path)
    return path


def _range(header: str) -> tuple[int | None, int | None, int | None]:
    """First byte, last byte and size in ``Content-Range: bytes 5-9/10`` (or ``bytes */10``); None if not given."""
    found = re.fullmatch(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)", header.strip())
    if found is None:
        return None, None, None
    start, end, total = (int(part) if part and part != "*" else None for part in found.groups())
    return start, end, total


def _receive(answer: Any, growing: Path, have: int, total: int | None) -> None:
    """Append a response to a file, up to ``total`` or ``LARGEST`` bytes; an ``OSError`` if it is larger or too slow."""
    from tqdm import tqdm

    bound = total or LARGEST
    since, received = time.monotonic(), 0
    with (
        growing.open("ab" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=growing.stem) as bar,
    ):
        # read1 returns what has arrived: a server that sends a byte a minute would never fill a block.
        while block := answer.raw.read1(1 << 20):
            have += len(block)
            if have > bound:
                raise OSError(f"more than {bound:,} bytes came")
            file.write(block)
            bar.update(len(block))
            received += len(block)
            if (now := time.monotonic()) - since > STALLED:
                if received < SLOWEST * (now - since):
                    raise OSError(f"less than {SLOWEST} bytes a second come")
                since, received = now, 0
