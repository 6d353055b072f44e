"""What of a config's results is finished, and the tables behind it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from langptune.config.layout import Layout, decoder_of, encoder_of
from langptune.config.workflow import Run, Workflow
from langptune.data import contracts
from langptune.errors import UserError
from langptune.explorer.titles import Titles
from langptune.profiles import text as history_texts
from langptune.randomness import numbered
from langptune.ranking.scoring import log_popularity

FIELD = 60
"""Characters; item fields whose values are longer than this as a rule are no facts to show beside a title."""

Kind = Literal["profiles", "shuffled", "text", "stored"]


@dataclass(frozen=True)
class Choice:
    """One finished run that can be looked at.

    kind: where its text comes from; ``stored`` has none, only the ranks that it left.
    lacks: what of a run that ranks by texts is gone.
    """

    run: Run
    label: str
    group: str
    kind: Kind
    lacks: tuple[str, ...] = ()

    @property
    def silent(self) -> str:
        """Why no text can be ranked as a ``stored`` run ranks."""
        if self.lacks:
            return f"{self.label}: {' and '.join(self.lacks)} not there, so only its stored lists can be shown"
        return f"{self.label} ranks by no text: its lists are known for the test users alone"

    @property
    def key(self) -> str:
        """Its name in a link: ``method/models/seed``."""
        return f"{self.run.method}/{self.run.models}/{self.run.seed}"

    @property
    def live(self) -> bool:
        """Whether texts can be ranked as it ranks them."""
        return self.kind != "stored"


@dataclass(frozen=True)
class Text:
    """The text that a run ranks a session by, and a line on where it comes from."""

    text: str
    source: str


class Data:
    """A dataset's items and its compared test sessions."""

    def __init__(self, items: pl.DataFrame, sessions: pl.DataFrame, evaluation: pl.DataFrame, lists: list[str]):
        """``lists``: item fields that hold several words, joined by commas."""
        self.items = items
        self.popularity = log_popularity(sessions, len(items))
        self.titles: list[str] = items["title"].to_list()
        self.texts: list[str] = items["text"].to_list()
        self.sessions = evaluation.filter(pl.col("split") == "test").select("session")
        self.sessions = self.sessions.join(sessions.drop("reviews"), on="session", how="inner", maintain_order="left")
        self._place = {session: row for row, session in enumerate(self.sessions["session"].to_list())}
        ratings = sessions["ratings"].list.max().max()
        self.best_rating = float(ratings) if ratings is not None else 5.0
        self._years = items["year"].to_list() if "year" in items.columns else None
        named = [name for name in items.columns if name not in (*contracts.ITEMS, "year")]
        self._fields = [name for name in named if self._brief(name)][:2]
        self._lists = [name for name in lists if name in items.columns]

    def _brief(self, name: str) -> bool:
        if self.items.schema[name] != pl.String:
            return False
        length = self.items[name].str.len_chars().filter(self.items[name] != "").quantile(0.9)
        return length is not None and length <= FIELD

    @property
    def ids(self) -> list[int]:
        """The sessions, in their order."""
        return list(self._place)

    def session(self, number: int) -> dict[str, Any]:
        """One session's row.

        Raises:
            UserError: not among the compared test sessions.
        """
        if number not in self._place:
            raise UserError(f"session {number} is not among the {len(self._place)} compared test sessions")
        return self.sessions.row(self._place[number], named=True)

    def item(self, item: int) -> dict[str, Any]:
        """An item as the page shows it: number, title, year and a few short fields."""
        row = self.items.row(item, named=True)
        year = str(self._years[item] or "") if self._years else ""
        return {
            "item": item,
            "title": self.titles[item],
            "year": year,
            "facts": [str(row[name])[: 2 * FIELD] for name in self._fields if row[name]],
        }

    def random(self, seed: int) -> int:
        """A session drawn with a seed."""
        return int(numbered(seed).choice(self.ids))

    def find(self, query: str, limit: int = 12) -> list[dict[str, Any]]:
        """Sessions whose user has this id, or begins with it, or whose history holds such a title; ids first."""
        word = query.strip().casefold()
        if not word:
            return []
        users = self.sessions["user_id"].to_list()
        ranked = sorted(
            (row for row, user in enumerate(users) if user.casefold().startswith(word)),
            key=lambda row: (users[row].casefold() != word, len(users[row]), row),
        )
        found = [(row, f"user {users[row]}") for row in ranked[:limit]]
        if len(found) < limit and len(word) > 1:
            hits = {item for item, title in enumerate(self.titles) if word in title.casefold()}
            for row, history in enumerate(self.sessions["history"].to_list()):
                at = next((item for item in reversed(history) if item in hits), None)
                if at is not None and row not in ranked:
                    found.append((row, f"saw {self.titles[at]}"))
                if len(found) == limit:
                    break
        ids = self.ids
        return [{"session": ids[row], "user": users[row], "why": why} for row, why in found]

    @cached_property
    def matcher(self) -> Titles:
        """The catalogue by its titles."""
        return Titles(self.titles, self._years)

    @cached_property
    def words(self) -> list[str]:
        """The most frequent values of the fields that hold several: genres, categories."""
        if not self._lists:
            return []
        words = self.items[self._lists[0]].str.split(", ").explode().drop_nulls()
        counts = words.filter(words.str.len_chars().is_between(2, 30)).value_counts(sort=True)
        return counts.head(20)[self._lists[0]].to_list()


class Finished:
    """The finished results of a config below a repository.

    Tables are read when they are first asked for, kept, and read again once their file has changed.
    """

    def __init__(self, workflow: Workflow, root: Path):
        self.workflow = workflow
        self.layout = Layout(workflow)
        self.root = root
        self._tables: OrderedDict[tuple, Any] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, relative: str) -> Path:
        """A file of the results."""
        return self.root / relative

    def datasets(self) -> list[str]:
        """The datasets with prepared data and at least one run to look at."""
        return [name for name in self.workflow.config.datasets if not self.lacking(name) and self.choices(name)[0]]

    def lacking(self, dataset: str) -> list[str]:
        """The prepared files of a dataset that are not there."""
        names = [self.layout.data_file(dataset, name) for name in ("items", "sessions", "evaluation")]
        return [name for name in names if not self.path(name).is_file()]

    def data(self, dataset: str) -> Data:
        """A dataset's items and sessions.

        Raises:
            UserError: a file that cannot be read, or does not hold what it should.
        """
        paths = [self.path(self.layout.data_file(dataset, name)) for name in ("items", "sessions", "evaluation")]

        def read() -> Data:
            kinds = zip(paths, ("items", "sessions", "evaluation"), strict=True)
            lists = self.workflow.datasets[dataset].lists
            return Data(*(contracts.read(path, kind) for path, kind in kinds), lists=lists)

        return self._kept(("data", dataset), paths, read)

    def choices(self, dataset: str) -> tuple[list[Choice], list[str]]:
        """The runs that can be looked at, and a line on each that cannot, or only in part."""
        runs = self.workflow.runs(dataset)
        seeds = {run.method: sum(r.method == run.method and r.models == run.models for r in runs) for run in runs}
        models = {run.method: len({r.models for r in runs if r.method == run.method}) for run in runs}
        found, notes = [], []
        for run in runs:
            entry = self.workflow.methods[run.method]
            label = entry.title
            if models[run.method] > 1:
                names = {encoder_of(run.models): None, decoder_of(run.models): None}
                label += " · " + " + ".join(self._title(name) for name in names)
            if seeds[run.method] > 1:
                label += f" · seed {run.seed}"
            lacks = self._lacks(run)
            ranked = self.path(self.layout.ranks_of(run)).is_file()
            if not lacks and (kind := self._kind(run.method)) != "stored":
                found.append(Choice(run, label, entry.group, kind))
                if not ranked:
                    notes.append(f"{label}: not ranked by the benchmark yet; ranked here only")
            elif ranked:
                found.append(Choice(run, label, entry.group, "stored", tuple(lacks)))
                if lacks:
                    notes.append(found[-1].silent)
            else:
                notes.append(f"{label}: not finished")
        return found, notes

    def _kind(self, method: str) -> Kind:
        """Where a method's texts come from; a mean vector is no text."""
        kinds: dict[str | None, Kind] = {"profiles": "profiles", "shuffled-profiles": "shuffled", None: "stored"}
        return kinds.get(self.workflow.text_of(method), "text")

    def _title(self, name: str) -> str:
        return self.workflow.models[name].title if name in self.workflow.models else name

    def _lacks(self, run: Run) -> list[str]:
        """What of a run that ranks by texts is not there; nothing for other runs."""
        if (kind := self._kind(run.method)) == "stored":
            return []
        needs = {"decoder": self.layout.run_decoder(run), "item vectors": self.layout.run_vectors(run)}
        if isinstance(weight := self.layout.run_weight(run), str):
            needs["weight of popularity"] = weight
        if kind != "text":
            needs["profiles"] = self.layout.run_profiles(run)
        return [what for what, path in needs.items() if not self.path(path).exists()]

    def defaults(self, dataset: str) -> tuple[Choice, Choice]:
        """What is shown first: untrained profiles, and the last ones of a trained encoder, or what comes nearest."""
        found = self.choices(dataset)[0]
        plain, trained = [], []
        for choice in found:
            if choice.kind == "profiles" and self.workflow.methods[choice.run.method].writes_profiles:
                chain = self.layout.run_phase(choice.run).encoder.chain
                steps = self.layout.run_phase(choice.run).chain
                (trained if steps else plain).append((len(chain) > 0, len(steps), choice))
        left = plain[0][2] if plain else found[0]
        # The first of equals: max() keeps it, so that the lowest seed is shown.
        right = max(trained, key=lambda one: one[:2])[2] if trained else next((c for c in found if c.live), found[-1])
        return left, right

    def stored(self, choice: Choice, session: int) -> dict[str, Any] | None:
        """A session's row of the run's ranks.parquet; None where that is not there.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.path(self.layout.ranks_of(choice.run))
        if not path.is_file():
            return None
        table = self._kept(("ranks", path), [path], lambda: contracts.read(path, "ranks"))
        rows = table.filter(pl.col("session") == session)
        return rows.row(0, named=True) if len(rows) else None

    def text(
        self, choice: Choice, session: int, best: Callable[[Choice, pl.DataFrame], pl.DataFrame] | None = None
    ) -> Text:
        """The text that a run ranks a session by, as scripts/rank_texts.py takes it.

        Args:
            best: keeps one profile per session where a method writes several.

        Raises:
            UserError: a file that cannot be read, or a session without a profile.
        """
        data = self.data(choice.run.dataset)
        if choice.kind == "text":
            return self.history_text(choice, data.session(session)["history"])
        path = self.path(self.layout.run_profiles(choice.run))

        def read() -> pl.DataFrame:
            profiles = contracts.read(path, "profiles").join(data.sessions, on="session", how="semi")
            if profiles["sample"].max():
                assert best is not None
                profiles = best(choice, profiles)
            if choice.kind == "shuffled":
                from langptune.profiles.shuffle import deal

                users = dict(data.sessions.select("session", "user_id").iter_rows())
                profiles = deal(profiles, users, choice.run.seed)
            return profiles

        rows = self._kept(("text", choice.key, path), [path], read).filter(pl.col("session") == session)
        if not len(rows):
            raise UserError(f"{path}: session {session} has no profile; rerun the profiles")
        row = rows.row(0, named=True)
        told = "ended by itself" if row["finished"] else "cut at the limit"
        return Text(row["profile"], f"{self.writer(choice)}; {row['tokens']} tokens, {told}")

    def writer(self, choice: Choice) -> str:
        """Who wrote a run's profiles, in words."""
        encoder = self._title(encoder_of(choice.run.models))
        steps = "+".join(name for name, _ in self.layout.run_phase(choice.run).encoder.chain)
        whose = "Another user's profile, by" if choice.kind == "shuffled" else "Written by"
        return f"{whose} {encoder}, " + (f"trained ({steps})" if steps else "untrained")

    def history_text(self, choice: Choice, history: list[int]) -> Text:
        """The text of a history: what a text method ranks by, and what stands in where no profile is written."""
        entry = self.workflow.methods[self.layout.source_of(choice.run.method)]
        texts = self.data(choice.run.dataset).texts
        view = "history" if entry.writes_profiles else entry.view
        shown = 1 if view == "last-item" else min(entry.history_items, len(history))
        source = f"The texts of the {shown} most recent titles, newest first" if shown > 1 else "The text of one title"
        return Text(history_texts.query(view, history, texts, entry.history_items), source)

    def _kept(self, key: tuple, paths: list[Path], read: Callable[[], Any]) -> Any:
        """What ``read`` returns, kept until one of the files changes; the 64 last used."""
        try:
            state = tuple(path.stat().st_mtime_ns for path in paths)
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; run the rule that makes it") from None
        with self._lock:
            held = self._tables.get(key)
        if held is None or held[0] != state:
            # Outside the lock: a read may wait for a decoder, and a decoder for the items.
            held = (state, read())
        with self._lock:
            self._tables[key] = held
            self._tables.move_to_end(key)
            while len(self._tables) > 64:
                self._tables.popitem(last=False)
        return held[1]
