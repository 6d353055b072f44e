"""Registry entries of ``config/datasets.yaml``: where a dataset comes from and by which protocol it is split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from langptune.config.base import Strict


class DataSource(Strict):
    """Where the raw files are: inside an installed package, or a folder. Exactly one of the two."""

    package: str | None = Field(None, description="installed Python package that carries the files")
    folder: str | None = Field(None, description="folder with the files, absolute or relative to the repo")
    path: str = Field("", description="sub-folder inside the package or folder")

    @model_validator(mode="after")
    def _one(self) -> DataSource:
        if (self.package is None) == (self.folder is None):
            raise ValueError("name exactly one of 'package' and 'folder'")
        return self


class Counts(Strict):
    """Sizes that the raw files must have; checked when the dataset is prepared."""

    interactions: int
    users: int
    items: int


class LeaveOneOut(Strict):
    """Per user, by time: last item is the test target, the one before it validation, all earlier ones train.

    Train sessions are all earlier windows: every interaction but the first is the target of one session
    whose history is what came before it. Interactions at the same time are ordered by a fixed hash of
    (user, item): independent of the order of rows in the file and of item ids (docs/protocol.md).
    """

    name: Literal["leave-one-out"]
    history_length: Annotated[int, Field(ge=1)] | None = Field(
        50, description="keep only the most recent N items in a session's history; null keeps all"
    )
    min_interactions: Annotated[int, Field(ge=3)] = Field(3, description="users with fewer are dropped and counted")


class Temporal(Strict):
    """One global cut-off in time per split: nothing that is used to predict is later than the cut-off.

    ``validation_from`` and ``test_from`` are quantiles of all interaction times. Train sessions have their
    target before the first cut; a validation (test) session is a user's first unseen item at or after the
    validation (test) cut, with everything of that user before the cut as history.
    """

    name: Literal["temporal"]
    history_length: Annotated[int, Field(ge=1)] | None = 50
    validation_from: Annotated[float, Field(gt=0, lt=1)] = 0.8
    test_from: Annotated[float, Field(gt=0, lt=1)] = 0.9

    @model_validator(mode="after")
    def _ordered(self) -> Temporal:
        if self.validation_from >= self.test_from:
            raise ValueError("validation_from must be smaller than test_from")
        return self


Protocol = Annotated[LeaveOneOut | Temporal, Field(discriminator="name")]


class DatasetEntry(Strict):
    """One dataset under one protocol. The same raw files under another protocol are another entry."""

    title: str = Field(description="how tables and plots call it")
    reader: str = Field(description="a reader of langptune.data.readers")
    source: DataSource
    sha256: dict[str, str] = Field({}, description="file name -> SHA-256 it must have; checked before use")
    expect: Counts | None = None
    licence: str
    url: str = Field("", description="where the dataset is described")
    rating_range: tuple[float, float] = Field(
        (1.0, 5.0), description="ratings outside are malformed rows", strict=False
    )
    users: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="keep only the first N users in a fixed hashed order (for small trials); null keeps all",
    )
    columns: dict[str, str] = Field(
        {}, description="our item field -> column of the raw item file; `title` is required by most readers"
    )
    lists: list[str] = Field([], description="item fields that hold several words, to be joined by commas")
    move_articles: bool = Field(False, description="turn titles like 'Usual Suspects, The' around")
    item_text: str = Field(description="Jinja template of what the decoder embeds for an item")
    prompt: str = Field(description="default entry of config/prompts.yaml for this dataset")
    protocol: Protocol
