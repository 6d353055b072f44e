"""Registry entries of ``config/datasets.yaml``: where a dataset comes from and by which protocol it is split."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from langptune.config.base import Strict, sound_name

HEX = set("0123456789abcdef")


class DataSource(Strict):
    """Where the raw files are: an installed package, a folder, a hub repository or an address. Exactly one."""

    package: str | None = Field(None, description="installed Python package that carries the files")
    folder: str | None = Field(None, description="folder with the files, absolute or relative to the repo")
    hub: str | None = Field(None, description="dataset id on the Hugging Face hub")
    revision: str | None = Field(None, description="full commit hash on the hub; a branch name is refused")
    url: str | None = Field(
        None, description="address of one archive, which is downloaded once; `sha256` must hold its hash"
    )
    path: str = Field("", description="sub-folder inside the package, folder, hub repository or archive")
    files: list[str] = Field([], description="files of the hub repository, below `path`")

    @model_validator(mode="after")
    def _one(self) -> DataSource:
        if sum(value is not None for value in (self.package, self.folder, self.hub, self.url)) != 1:
            raise ValueError("name exactly one of 'package', 'folder', 'hub' and 'url'")
        if self.hub and not (self.revision and len(self.revision) == 40 and set(self.revision) <= HEX):
            raise ValueError(f"hub dataset '{self.hub}' needs 'revision', a full 40-digit commit hash")
        if bool(self.hub) != bool(self.files):
            raise ValueError("'files' goes with 'hub': list the files to download")
        for name in [self.path, *self.files] if self.hub else []:
            if name.startswith("/") or ".." in name.split("/"):  # links to what is downloaded are made by these names
                raise ValueError(f"'{name[:100]}' leaves the repository: give names below it, without '..'")
        if self.url and not (re.match(r"^https?://[^/]", self.url) and sound_name(self.url.rsplit("/", 1)[-1])):
            raise ValueError(
                f"url '{self.url[:100]}' must be http(s) and end in the archive's file name (letters, figures, . _ -)"
            )
        return self

    @property
    def remote(self) -> bool:
        """Whether the files have to be downloaded before they can be read."""
        return self.hub is not None or self.url is not None

    @property
    def slug(self) -> str:
        """The folder name of a downloaded source: the same for all datasets that read the same files."""
        what = f"{self.hub}@{self.revision}" if self.hub else str(self.url)
        key = hashlib.sha256("\n".join([what, self.path, *self.files]).encode()).hexdigest()[:8]
        name = str(self.hub).replace("/", "--") if self.hub else str(self.url).rsplit("/", 1)[-1]
        return f"{name}-{key}"


class Counts(Strict):
    """Sizes that the raw files must have; checked when the dataset is prepared."""

    interactions: int
    users: int
    items: int


Core = Annotated[int, Field(ge=1)] | None
CORE = Field(
    None,
    description="k: drop users and items with fewer than k interactions until nothing changes; null keeps all",
)


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
    core: Core = CORE


class Temporal(Strict):
    """One global cut-off in time per split: nothing that is used to predict is later than the cut-off.

    ``validation_from`` and ``test_from`` are quantiles of all interaction times. Train sessions have their
    target before the first cut; a validation (test) session is a user's first unseen item at or after the
    validation (test) cut, with everything of that user before the cut as history. With ``core``, the catalogue and the
    users are those of the core of the interactions before the validation cut; a test user needs as many interactions
    before the test cut.
    """

    name: Literal["temporal"]
    history_length: Annotated[int, Field(ge=1)] | None = 50
    validation_from: Annotated[float, Field(gt=0, lt=1)] = 0.8
    test_from: Annotated[float, Field(gt=0, lt=1)] = 0.9
    core: Core = CORE
    windows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="train on at most this many most recent sessions of a user; null: all"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Temporal:
        if self.validation_from >= self.test_from:
            raise ValueError("validation_from must be smaller than test_from")
        return self


class Limits(Strict):
    """Lengths, in tokens, that the texts of a dataset must keep."""

    decoder: str = Field(description="entry of config/models.yaml whose tokenizer counts an item's text")
    item_tokens: Annotated[int, Field(ge=1)] = 512
    encoder: str = Field(description="entry of config/models.yaml whose tokenizer counts a prompt")
    prompt_tokens: Annotated[int, Field(ge=1)] = 1024
    over: Literal["drop", "truncate"] = Field(
        "drop",
        description="drop: a user with an item or a prompt over its limit is dropped, as published; truncate: kept, "
        "and the text is cut where it is used. Counted either way",
    )


class Paper(Strict):
    """The published protocol (PAPER, section Data): user-disjoint, the first items of a user are the history.

    Iterative k-core, users over the limits dropped, k-core again; users by the time of their first interaction: the
    first part train, the rest held out, without items unknown to training; one session a user: the first
    ``history_length`` items, and the first later one that is not among them. Held-out sessions are validation and test
    by halves. ``defects`` turn on what the public code does and a benchmark should not (docs/protocol.md).
    """

    name: Literal["paper"]
    core: Annotated[int, Field(ge=1)] = 5
    history_length: Annotated[int, Field(ge=1)] = 4
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of users that are held out")
    limits: Limits | None = Field(None, description="null: no text is counted")
    seed: int = Field(0, description="of the split of held-out sessions into validation and test")
    defects: list[Literal["duplicates", "average-rating", "unseeded-split", "monitor-test"]] = Field(
        [],
        description="duplicates: a repeated review counts again; average-rating: item texts have the rating averaged "
        "over all time; unseeded-split: validation and test are drawn anew in each run; monitor-test: validation "
        "sessions are the test sessions",
    )


Protocol = Annotated[LeaveOneOut | Temporal | Paper, Field(discriminator="name")]


class Tables(Strict):
    """One's own interactions and items, as CSV, TSV or Parquet (reader ``csv``)."""

    interactions: str = Field(description="file name of the interactions")
    items: str = Field(description="file name of the items")
    user: str = Field(description="column of the user id, in the interactions")
    item: str = Field(description="column of the item id, in both files")
    timestamp: str = Field(description="column of the time: numbers (any unit; fractions are kept), or ISO dates")
    rating: str | None = Field(None, description="column of the rating; null: there is none, and 1 stands for it")
    review: str | None = Field(None, description="column of the review's text; null: there is none")


class PublishedCounts(Strict):
    """What a publication reports of one step; left out where it reports nothing."""

    interactions: int | None = None
    users: int | None = None
    items: int | None = None


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
    category: str = Field("", description="amazon-2023: the category, as it stands in the file names")
    tables: Tables | None = Field(None, description="csv: the files and the columns of the interactions")
    max_bad: Annotated[float, Field(ge=0, le=1, strict=False)] = Field(
        0.001, description="share of malformed rows above which reading stops; below, they are left out and counted"
    )
    published: dict[str, PublishedCounts] = Field(
        {}, description="step of the protocol's funnel -> published counts, shown beside ours"
    )
    lists: list[str] = Field([], description="item fields that hold several words, to be joined by commas")
    move_articles: bool = Field(False, description="turn titles like 'Usual Suspects, The' around")
    item_text: str = Field(description="Jinja template of what the decoder embeds for an item")
    prompt: str = Field(description="default entry of config/prompts.yaml for this dataset")
    protocol: Protocol

    @model_validator(mode="after")
    def _hashed(self) -> DatasetEntry:
        """What comes from an address is known by its hash alone: anything may stand there."""
        if self.source.url is None:
            return self
        file = self.source.url.rsplit("/", 1)[-1]
        wanted = self.sha256.get(file, "")
        if not (len(wanted) == 64 and set(wanted) <= HEX):
            raise ValueError(
                f"a source with 'url' needs 'sha256: {{{file}: ...}}', the 64 digits that `sha256sum` gives for the "
                "archive; get it once, compare it with what its authors publish, and write them here"
            )
        return self
