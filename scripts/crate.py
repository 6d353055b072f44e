"""Describe a folder of finished results as an RO-Crate: its files, and the jobs that made them, from their manifests.

    make crate FOLDER=results/ml-100k

Writes `ro-crate-metadata.json` into the folder and changes nothing else there (docs/ecosystem.md).
"""

from __future__ import annotations

import argparse
import datetime
import json
import mimetypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langptune.cli import finish
from langptune.errors import UserError
from langptune.provenance import file_hash, manifest_of, output_of, write_json
from langptune.reading import read_json

if TYPE_CHECKING:
    from rocrate.model.entity import Entity
    from rocrate.rocrate import ROCrate

SHA256 = re.compile("[0-9a-f]{64}")
METADATA = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
"""Process Run Crate: every job is an action, with its script, inputs and outputs."""
LICENCE = "Data and models have licences of their own: config/datasets.yaml and config/models.yaml name them."
TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".safetensors": "application/vnd.safetensors",
    ".yaml": "application/yaml",
}
"""Media types that Python's table does not have."""


def files_of(folder: Path) -> Iterator[Path]:
    """All files of a results folder in a fixed order, except hidden ones (checkpoints, locks) and links."""
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(path, name)
            if not name.startswith(".") and name != METADATA and file.is_file() and not file.is_symlink():
                yield file


def manifests(folder: Path, files: list[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Every output that lies in the folder, with its manifest, in the order in which they were begun.

    Raises:
        UserError: a manifest cannot be read.
    """
    out = []
    for file in files:
        if not file.name.endswith("manifest.json"):
            continue
        output = output_of(file)
        if output == folder or not output.exists() or manifest_of(output) != file:
            continue  # kept without its output, as those of ranks are
        try:
            manifest = read_json(file)
            needed = {key: manifest[key] for key in ("script", "code", "sha256", "started", "wall_seconds")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not a job's manifest ({error!r}); remove it, or run the config again") from None
        out.append((output, manifest | needed))
    return sorted(out, key=lambda pair: (pair[1]["started"], str(pair[0])))


def read_by(manifest: dict[str, Any]) -> dict[str, str]:
    """What a job read: path -> SHA-256. Stages with many inputs list them in a note, whatever its name."""
    notes = [note for note in manifest.get("notes", {}).values() if isinstance(note, dict)]
    listed = {path: digest for note in notes for path, digest in note.items() if SHA256.fullmatch(str(digest))}
    return {**manifest.get("inputs", {}), **listed}


def crate_of(folder: Path, licence: str | None) -> ROCrate:
    """The crate of a folder.

    Args:
        licence: of the folder as a whole, as a URL; None: a sentence on where the licences stand.

    Raises:
        UserError: rocrate is not installed, or nothing in the folder has a manifest.
    """
    try:
        from rocrate.model.contextentity import ContextEntity
        from rocrate.rocrate import ROCrate
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run `make env-dev`, or pip install rocrate") from None
    files = list(files_of(folder))
    made = manifests(folder, files)
    if not made:
        raise UserError(f"{folder}: no output with a manifest in it; give the folder of a finished run's dataset")

    crate = ROCrate(version="1.1")  # which the profile builds on
    crate.metadata.extra_terms["sha256"] = "http://schema.org/sha256"  # younger than that version
    by_hash: dict[str, Entity] = {}
    at: dict[Path, Entity] = {}

    def described(entity: dict[str, Any]) -> Entity:
        name = entity.pop("@id")
        return crate.dereference(name) or crate.add(ContextEntity(crate, name, properties=entity))

    for file in files:
        kind = TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        facts = {"encodingFormat": kind, "contentSize": str(file.stat().st_size), "sha256": file_hash(file)}
        name = file.relative_to(folder).as_posix()
        at[file] = by_hash[facts["sha256"]] = crate.add_file(file, name, properties={"name": name, **facts})
    for output, manifest in made:
        if output.is_dir():
            name = output.relative_to(folder).as_posix()
            at[output] = crate.add_dataset(output, f"{name}/", properties={"name": name})
            by_hash[manifest["sha256"]] = at[output]

    jobs: dict[str, tuple[dict[str, Any], list[Entity]]] = {}
    for output, manifest in made:  # the outputs of one job say the same of it
        key = json.dumps([manifest["script"], manifest["started"], manifest["wall_seconds"], manifest.get("spec")])
        jobs.setdefault(key, (manifest, []))[1].append(at[output])
    for number, (manifest, results) in enumerate(jobs.values(), 1):
        script, code = manifest["script"], manifest["code"]
        start = datetime.datetime.fromisoformat(manifest["started"])
        end = start + datetime.timedelta(seconds=manifest["wall_seconds"])
        action = described(
            {
                "@id": f"#job-{number}",
                "@type": "CreateAction",
                "name": f"{Path(script).stem}: {', '.join(result.id for result in results)}",
                "description": f"{script} on {manifest.get('host')}, as the manifests of its outputs say in full",
                "startTime": start.isoformat(timespec="seconds"),
                "endTime": end.isoformat(timespec="seconds"),
            }
        )
        named = {"@id": f"#{script}@{code}", "@type": "SoftwareApplication", "name": script, "version": code}
        action["instrument"] = described(named)
        action["result"] = results
        action["object"] = [
            by_hash.get(digest)
            or described({"@id": f"#{digest}", "@type": "CreativeWork", "name": path, "identifier": f"sha256:{digest}"})
            for path, digest in sorted(read_by(manifest).items())
        ]
        crate.root_dataset.append_to("mentions", action)

    crate.name = f"LangPTune benchmark: {folder.name}"
    crate.description = f"Results of {len(jobs)} jobs of the LangPTune benchmark; each output has a manifest beside it."
    crate.datePublished = made[-1][1]["started"]
    stated = {"@id": "#licence", "@type": "CreativeWork", "name": "Licences of data and models", "description": LICENCE}
    crate.license = described({"@id": licence, "@type": "CreativeWork", "name": licence} if licence else stated)
    version = {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
    crate.root_dataset["conformsTo"] = described(version)
    return crate


def main() -> int:
    """Write the metadata file of one folder.

    Raises:
        UserError: see ``crate_of``; or there is no such folder.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a dataset's results, or a folder that `keep` made")
    parser.add_argument("--licence", help="URL of the licence that the folder is given under")
    args = parser.parse_args()
    if not args.folder.is_dir():
        raise UserError(f"--folder {args.folder}: no such folder")
    folder = args.folder.resolve()
    write_json(folder / METADATA, crate_of(folder, args.licence).metadata.generate())
    print(args.folder / METADATA)
    return 0


if __name__ == "__main__":
    finish(main)
