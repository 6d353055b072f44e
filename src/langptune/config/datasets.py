"""Registry entries of ``config/datasets.yaml``: the source of a dataset and the protocol that splits it."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from langptune.config.base import Strict, sound_name

HEX = set("0123456789abcdef")


class DataSource(Strict):
    """Where the raw files are: exactly one of an installed package, a folder, a hub repository and a URL."""

    package: str | None = Field(None, description="installed Python package that contains the files")
    folder: str | None = Field(None, description="folder with the files, absolute or relative to the repository")
    hub: str | None = Field(None, description="dataset id on the Hugging Face hub")
    revision: str | None = Field(None, description="full commit hash on the hub; a branch name is refused")
    url: str | None = Field(
        None, description="URL of one archive, which is downloaded once; `sha256` must contain its hash"
    )
    path: str = Field("", description="subfolder of the package, folder, hub repository or archive")
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
            if name.startswith("/") or ".." in name.split("/"):  # links to the downloaded files have these names
                raise ValueError(f"'{name[:100]}' leaves the repository: give names below it, without '..'")
        if self.url and not (re.match(r"^https?://[^/]", self.url) and sound_name(self.url.rsplit("/", 1)[-1])):
            raise ValueError(
                f"url '{self.url[:100]}' must be http(s) and end in the archive's file name (letters, digits, . _ -)"
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
    """Sizes that the raw files must have. They are checked when the dataset is prepared."""

    interactions: int = Field(description="number of interactions")
    users: int = Field(description="number of users")
    items: int = Field(description="number of items")


Core = Annotated[int, Field(ge=1)] | None
CORE = Field(
    None,
    description="k: users and items with fewer than k interactions are dropped until nothing changes; null: all "
    "are kept",
)


class LeaveOneOut(Strict):
    """Per user, in order of time: the last item is the test target, the one before it the validation target.

    The earlier items give the train sessions: each of them but the first is the target of one session, with the
    interactions before it as history. Interactions at the same time are ordered by a fixed hash of (user, item), which
    depends neither on the order of rows in the file nor on item ids (docs/protocol.md).
    """

    name: Literal["leave-one-out"] = Field(description="selects this protocol")
    history_length: Annotated[int, Field(ge=1)] | None = Field(
        50, description="longest history of a session: its most recent items; null: all items"
    )
    min_interactions: Annotated[int, Field(ge=3)] = Field(
        3, description="users with fewer interactions are dropped, and counted"
    )
    core: Core = CORE


class Temporal(Strict):
    """One global cut-off in time per split: predictions use no data later than the cut-off.

    ``validation_from`` and ``test_from`` are quantiles of all interaction times. The target of a train session is
    before the validation cut-off. The target of a validation (test) session is one of a user's unseen items at or after
    the validation (test) cut-off, by default the first; its history is this user's interactions before the target. Only
    the user's own history may reach beyond the cut-off, and only where a later target is chosen. With ``core``, the
    catalogue and the users are those of the k-core of the interactions before the validation cut-off; a test user needs
    at least k interactions before the test cut-off.
    """

    name: Literal["temporal"] = Field(description="selects this protocol")
    history_length: Annotated[int, Field(ge=1)] | None = Field(
        50, description="longest history of a session: its most recent items; null: all items"
    )
    validation_from: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.8, description="quantile of the interaction times at which validation begins"
    )
    test_from: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="quantile of the interaction times at which test begins; above `validation_from`"
    )
    core: Core = CORE
    target: Literal["first", "last", "random", "successive"] = Field(
        "first",
        description="which of a user's items from a cut-off on is the target: the first, the last (before the next "
        "cut-off), one drawn by a fixed hash of the user, or each of them in a session of its own",
    )
    windows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="maximum number of train sessions per user, the most recent ones; null: all"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Temporal:
        if self.validation_from >= self.test_from:
            raise ValueError("validation_from must be smaller than test_from")
        return self


class Limits(Strict):
    """Lengths, in tokens, that the texts of a dataset must not exceed."""

    decoder: str = Field(description="entry of config/models.yaml whose tokenizer counts an item's text")
    item_tokens: Annotated[int, Field(ge=1)] = Field(512, description="longest text of an item")
    encoder: str = Field(description="entry of config/models.yaml whose tokenizer counts a prompt")
    prompt_tokens: Annotated[int, Field(ge=1)] = Field(1024, description="longest prompt")
    over: Literal["drop", "truncate"] = Field(
        "drop",
        description="drop: users with an item or a prompt over its limit are dropped, as published; truncate: they "
        "are kept, and the text is cut where it is used. Both are counted",
    )


class Paper(Strict):
    """The published protocol (PAPER, section Data): user-disjoint; a user's first items are the history.

    The iterative k-core is applied before and after users over the limits are dropped. Users are ordered by the time of
    their first interaction: the first part is the train users, the rest is held out, without items that are unknown to
    training. Each user has one session: the first ``history_length`` items are the history, and the first later item
    that is not among them is the target. Held-out sessions are divided evenly into validation and test. ``defects``
    reproduces defects of the public code (docs/protocol.md).
    """

    name: Literal["paper"] = Field(description="selects this protocol")
    core: Annotated[int, Field(ge=1)] = Field(
        5, description="k: users and items with fewer than k interactions are dropped until nothing changes"
    )
    history_length: Annotated[int, Field(ge=1)] = Field(4, description="items of a session's history")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of held-out users")
    limits: Limits | None = Field(None, description="limits of text lengths; null: no text is counted")
    seed: int = Field(0, description="seed of the split of held-out sessions into validation and test")
    defects: list[Literal["duplicates", "average-rating", "unseeded-split", "monitor-test"]] = Field(
        [],
        description="duplicates: a repeated review counts again; average-rating: item texts contain the rating "
        "averaged over all time; unseeded-split: each run draws a new split into validation and test; monitor-test: "
        "the validation sessions are the test sessions",
    )


Protocol = Annotated[LeaveOneOut | Temporal | Paper, Field(discriminator="name")]


class Tables(Strict):
    """Files and columns of your own interactions and items, as CSV, TSV or Parquet (reader ``csv``)."""

    interactions: str = Field(description="file name of the interactions")
    items: str = Field(description="file name of the items")
    user: str = Field(description="column of the user id, in the interactions")
    item: str = Field(description="column of the item id, in both files")
    timestamp: str = Field(description="column of the time: numbers in any unit (fractions are kept), or ISO dates")
    rating: str | None = Field(None, description="column of the rating; null: no ratings, 1 is used")
    review: str | None = Field(None, description="column of the review's text; null: no reviews")


class PublishedCounts(Strict):
    """Published counts after one step; null: not published."""

    interactions: int | None = Field(None, description="number of interactions")
    users: int | None = Field(None, description="number of users")
    items: int | None = Field(None, description="number of items")


class DatasetEntry(Strict):
    """One dataset with one protocol. The same raw files with another protocol are another entry."""

    title: str = Field(description="name in tables and plots")
    reader: str = Field(description="a reader of langptune.data.readers")
    source: DataSource = Field(description="where the raw files are")
    sha256: dict[str, str] = Field({}, description="file name -> expected SHA-256; checked before use")
    expect: Counts | None = Field(None, description="sizes of the raw files; null: not checked")
    licence: str = Field(description="licence of the dataset")
    url: str = Field("", description="page that describes the dataset")
    rating_range: tuple[float, float] = Field(
        (1.0, 5.0), description="lowest and highest rating; rows with other ratings are malformed", strict=False
    )
    users: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="keep only this many users, the first in a fixed order by hash, for small trials; null: all",
    )
    columns: dict[str, str] = Field(
        {}, description="item field of langptune -> column of the raw item file; most readers require `title`"
    )
    category: str = Field("", description="amazon-2023: the category, as in the file names")
    tables: Tables | None = Field(None, description="csv: file and column names")
    max_bad: Annotated[float, Field(ge=0, le=1, strict=False)] = Field(
        0.001,
        description="share of malformed rows above which reading stops with an error; below it, these rows are left "
        "out and counted",
    )
    published: dict[str, PublishedCounts] = Field(
        {}, description="step of the protocol's funnel -> published counts, shown beside ours"
    )
    lists: list[str] = Field([], description="item fields with several values, which are joined by commas")
    move_articles: bool = Field(False, description="move a trailing article to the front ('Usual Suspects, The')")
    item_text: str = Field(description="Jinja template of the text of an item that the decoder embeds")
    prompt: str = Field(description="default entry of config/prompts.yaml for this dataset")
    protocol: Protocol = Field(description="how interactions become train, validation and test sessions")

    @model_validator(mode="after")
    def _hashed(self) -> DatasetEntry:
        """A source with a URL needs a hash: the content behind a URL may change."""
        if self.source.url is None:
            return self
        file = self.source.url.rsplit("/", 1)[-1]
        wanted = self.sha256.get(file, "")
        if not (len(wanted) == 64 and set(wanted) <= HEX):
            raise ValueError(
                f"a source with 'url' needs 'sha256: {{{file}: ...}}', the 64 digits that `sha256sum` gives for the "
                "archive; get it once, compare it with the authors' published hash, and write it here"
            )
        return self
