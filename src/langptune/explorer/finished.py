"""The finished results of a config, and the tables behind them."""

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
from langptune.language.denials import Splitter
from langptune.profiles import text as history_texts
from langptune.randomness import numbered
from langptune.ranking.queries import splitter_of
from langptune.ranking.scoring import log_popularity

FIELD = 60
"""Characters; an item field is shown beside a title if at least 90% of its values are no longer than this."""

Kind = Literal["profiles", "shuffled", "text", "stored"]


@dataclass(frozen=True)
class Choice:
    """One finished run that can be shown.

    kind: the source of its text; ``stored`` has no text, only stored ranks.
    lacks: the missing files of a run that ranks by texts.
    """

    run: Run
    label: str
    group: str
    kind: Kind
    lacks: tuple[str, ...] = ()

    @property
    def silent(self) -> str:
        """Why no text can be ranked by a ``stored`` run."""
        if self.lacks:
            return f"{self.label}: no {' and no '.join(self.lacks)}; only its stored lists can be shown"
        return f"{self.label} does not rank by texts: it has lists for the test users only"

    @property
    def key(self) -> str:
        """The run's name in a link: ``method/models/seed``."""
        return f"{self.run.method}/{self.run.models}/{self.run.seed}"

    @property
    def live(self) -> bool:
        """Whether the explorer can rank texts as this run does."""
        return self.kind != "stored"


@dataclass(frozen=True)
class Text:
    """The text that a run ranks a session by, and a line about its source."""

    text: str
    source: str


class Data:
    """A dataset's items and its compared test sessions."""

    def __init__(self, items: pl.DataFrame, sessions: pl.DataFrame, evaluation: pl.DataFrame, lists: list[str]):
        """``lists``: item fields that contain several values, joined by commas."""
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
        """The compared test sessions, in order."""
        return list(self._place)

    def session(self, number: int) -> dict[str, Any]:
        """One session's row.

        Raises:
            UserError: it is not among the compared test sessions.
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
        """Sessions whose user id equals or begins with the query, then sessions with such a title in the history."""
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
        """Finds the items of the catalogue by title."""
        return Titles(self.titles, self._years)

    @cached_property
    def splitter(self) -> Splitter:
        """Splits texts into what they like and avoid; tastes are those of the first field with several values."""
        return splitter_of(self.items, next(iter(self._lists), None))

    @cached_property
    def words(self) -> list[str]:
        """The most frequent values of the first field with several values: genres, categories."""
        if not self._lists:
            return []
        words = self.items[self._lists[0]].str.split(", ").explode().drop_nulls()
        counts = words.filter(words.str.len_chars().is_between(2, 30)).value_counts(sort=True)
        return counts.head(20)[self._lists[0]].to_list()


class Finished:
    """The finished results of a config below a repository.

    Tables are read at first use, cached, and read again after their file has changed.
    """

    def __init__(self, workflow: Workflow, root: Path):
        self.workflow = workflow
        self.layout = Layout(workflow)
        self.root = root
        self._tables: OrderedDict[tuple, Any] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, relative: str) -> Path:
        """The absolute path of a results file."""
        return self.root / relative

    def datasets(self) -> list[str]:
        """The datasets with prepared data and at least one run to show."""
        return [name for name in self.workflow.config.datasets if not self.lacking(name) and self.choices(name)[0]]

    def lacking(self, dataset: str) -> list[str]:
        """The missing prepared files of a dataset."""
        names = [self.layout.data_file(dataset, name) for name in ("items", "sessions", "evaluation")]
        return [name for name in names if not self.path(name).is_file()]

    def data(self, dataset: str) -> Data:
        """A dataset's items and sessions.

        Raises:
            UserError: a file cannot be read, or does not match its contract.
        """
        paths = [self.path(self.layout.data_file(dataset, name)) for name in ("items", "sessions", "evaluation")]

        def read() -> Data:
            kinds = zip(paths, ("items", "sessions", "evaluation"), strict=True)
            lists = self.workflow.datasets[dataset].lists
            return Data(*(contracts.read(path, kind) for path, kind in kinds), lists=lists)

        return self._kept(("data", dataset), paths, read)

    def choices(self, dataset: str) -> tuple[list[Choice], list[str]]:
        """The runs that can be shown, and a note on each run that cannot, or only in part."""
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
        """The source of a method's texts; a mean vector is not a text."""
        kinds: dict[str | None, Kind] = {"profiles": "profiles", "shuffled-profiles": "shuffled", None: "stored"}
        return kinds.get(self.workflow.text_of(method), "text")

    def _title(self, name: str) -> str:
        return self.workflow.models[name].title if name in self.workflow.models else name

    def _lacks(self, run: Run) -> list[str]:
        """The missing files of a run that ranks by texts; empty for other runs."""
        if (kind := self._kind(run.method)) == "stored":
            return []
        needs = {"decoder": self.layout.run_decoder(run), "item vectors": self.layout.run_vectors(run)}
        if isinstance(weight := self.layout.run_weight(run), str):
            needs["weight of popularity"] = weight
        if isinstance(denials := self.layout.run_denials(run), str):
            needs["weight of denials"] = denials
        if kind != "text":
            needs["profiles"] = self.layout.run_profiles(run)
        return [what for what, path in needs.items() if not self.path(path).exists()]

    def defaults(self, dataset: str) -> tuple[Choice, Choice]:
        """The runs shown first: untrained profiles, and those of the longest trained encoder, or the closest runs."""
        found = self.choices(dataset)[0]
        plain, trained = [], []
        for choice in found:
            if choice.kind == "profiles" and self.workflow.methods[choice.run.method].writes_profiles:
                phase = self.layout.run_phase(choice.run)
                rank = (len(phase.encoder_recipes) > 0, len(phase.chain), choice)
                (trained if any(rank[:2]) else plain).append(rank)
        left = plain[0][2] if plain else found[0]
        # max() keeps the first of equals, so the lowest seed is shown.
        right = max(trained, key=lambda one: one[:2])[2] if trained else next((c for c in found if c.live), found[-1])
        return left, right

    def stored(self, choice: Choice, session: int) -> dict[str, Any] | None:
        """A session's row of the run's ranks.parquet; None if there is none.

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
        """The text that a run ranks a session by, as in scripts/rank_texts.py.

        Args:
            best: selects one profile per session if a method writes several.

        Raises:
            UserError: a file cannot be read, or the session has no profile.
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
        ending = "ended by itself" if row["finished"] else "cut at the limit"
        return Text(row["profile"], f"{self.writer(choice)}; {row['tokens']} tokens, {ending}")

    def writer(self, choice: Choice) -> str:
        """A phrase that names the author of a run's profiles."""
        encoder = self._title(encoder_of(choice.run.models))
        phase = self.layout.run_phase(choice.run)
        steps = "+".join(phase.encoder_recipes)
        where = f" on {self.workflow.datasets[phase.transfer.dataset].title}" if phase.transfer else ""
        whose = "Another user's profile, by" if choice.kind == "shuffled" else "Written by"
        return f"{whose} {encoder}, " + (f"trained{where} ({steps})" if steps else "untrained")

    def history_text(self, choice: Choice, history: list[int]) -> Text:
        """The text of a history: what a text method ranks by, also used until a profile is written."""
        entry = self.workflow.methods[self.layout.source_of(choice.run.method)]
        texts = self.data(choice.run.dataset).texts
        view = "history" if entry.writes_profiles else entry.view
        shown = 1 if view == "last-item" else min(entry.history_items, len(history))
        source = f"The texts of the {shown} most recent titles, newest first" if shown > 1 else "The text of one title"
        return Text(history_texts.query(view, history, texts, entry.history_items), source)

    def _kept(self, key: tuple, paths: list[Path], read: Callable[[], Any]) -> Any:
        """The result of ``read``, cached until one of the files changes; the 64 last used are kept."""
        try:
            state = tuple(path.stat().st_mtime_ns for path in paths)
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; run the rule that makes it") from None
        with self._lock:
            held = self._tables.get(key)
        if held is None or held[0] != state:
            # Outside the lock, because a read may wait for a decoder, and a decoder for the items.
            held = (state, read())
        with self._lock:
            self._tables[key] = held
            self._tables.move_to_end(key)
            while len(self._tables) > 64:
                self._tables.popitem(last=False)
        return held[1]
