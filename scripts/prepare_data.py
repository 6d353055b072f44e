"""Raw files to items.parquet, sessions.parquet and users.parquet under one named protocol."""

from __future__ import annotations

from pydantic import Field

from langptune import stage
from langptune.config.datasets import DatasetEntry
from langptune.data import contracts, protocols, readers
from langptune.errors import UserError
from langptune.provenance import Record, file_hash


class Spec(stage.StageSpec):
    """Read a dataset, check it, and split it into sessions by its protocol."""

    name: str = Field(description="the dataset's name in config/datasets.yaml")
    dataset: DatasetEntry = Field(description="its registry entry")
    items_out: str
    sessions_out: str
    users_out: str = Field(description="user fields for prompts; only user_id where the dataset has none")


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Read, split, write."""
    raw = readers.read(spec.dataset, spec.name)
    done = protocols.prepare(raw, spec.dataset, spec.name)
    contracts.write(done.items, spec.items_out, "items")
    contracts.write(done.sessions, spec.sessions_out, "sessions")
    users = done.users if done.users is not None else raw.interactions.select("user_id").unique().sort("user_id")
    if users["user_id"].is_duplicated().any():
        raise UserError(f"{raw.files[-1]}: a user stands twice; keep one row")
    contracts.write(users, spec.users_out, "users")
    record.note(raw={path.name: file_hash(path) for path in raw.files}, licence=spec.dataset.licence, **done.facts)
    sessions = done.facts["sessions"]
    log(
        f"{spec.name}: {done.facts['interactions']} interactions, {done.facts['users']} users, "
        f"{done.facts['items']} items -> {sessions} sessions"
    )
    for reason, count in done.facts["drops"].items():
        if count:
            log(f"{spec.name}: dropped {count} {reason}")


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
