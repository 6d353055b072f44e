"""The views of the explorer: the data that its page shows, computed from a request and finished results.

Nothing about a user is kept between requests. The address of the page contains its whole state: ``dataset``,
``session`` (or ``own``), ``left``, ``right``, ``text``, ``weight``, ``same``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from langptune.config.base import nearest
from langptune.errors import UserError
from langptune.explorer.differences import differences
from langptune.explorer.finished import Choice, Data, Finished
from langptune.explorer.live import Live, Ranking

TOP = 20
"""Length of a list on the page."""
TEXT = 4000
"""Limit on a text that is ranked, in characters; the decoders read at most 512 tokens."""
LINES = 100
"""Limit on the titles of a history that is typed in."""


def _whole(text: str) -> str:
    """Refuse lone surrogates: JSON can contain them, but neither tokenizers nor responses can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text contains half of a surrogate pair, which is not a character") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Name = Annotated[Text, Field(max_length=300)]
Own = Annotated[list[tuple[int, float]], Field(max_length=LINES)]


class _Body(BaseModel):
    """The body of a request; JSON has no tuples, so types are not strict."""

    model_config = ConfigDict(extra="forbid")


class Rerank(_Body):
    """A text to rank with one side's run. ``session`` or ``own`` selects the history.

    weight: of popularity in the score; None: the run's own.
    beside: a second run that ranks the same text, with its own weight.
    """

    dataset: Name
    run: Name
    text: Text
    session: int | None = None
    own: Own = []
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    beside: Name | None = None


class Lines(_Body):
    """Titles as the user typed them."""

    dataset: Name
    lines: list[Text]


class Order(_Body):
    """A request to write a profile for a history that was typed in."""

    dataset: Name
    run: Name
    own: Own


class Explorer:
    """Computes the responses to the page's requests; each returns plain data, or raises a ``UserError``."""

    def __init__(self, finished: Finished, live: Live):
        self.finished, self.live = finished, live

    def dataset(self, name: str | None, notices: list[str]) -> str:
        """A dataset by name; if there is none of that name, the first finished one, and a notice."""
        there = self.finished.datasets()
        if not there:
            raise UserError("nothing is finished here any more; run `make demo` first")
        if name and name not in there:
            notices.append(f"Dataset “{name[:80]}” has no finished results here; {there[0]} is shown.")
        return name if name in there else there[0]

    def choice(self, dataset: str, key: str) -> Choice:
        """A run by its key.

        Raises:
            UserError: there is no such finished run.
        """
        found = self.finished.choices(dataset)[0]
        for choice in found:
            if choice.key == key:
                return choice
        raise UserError(f"run '{key[:120]}' is not among the finished ones{nearest(key, [c.key for c in found])}")

    def view(self, asked: dict[str, str]) -> dict[str, Any]:
        """Everything that the page shows, from the parameters of its address; invalid parameters become notices."""
        notices: list[str] = []
        dataset = self.dataset(asked.get("dataset"), notices)
        data = self.finished.data(dataset)
        choices, missing = self.finished.choices(dataset)
        sides = dict(zip(("left", "right"), self.finished.defaults(dataset), strict=True))
        for side in sides:
            if key := asked.get(side):
                try:
                    sides[side] = self.choice(dataset, key)
                except UserError:
                    notices.append(f"“{key[:120]}” is not finished here; {sides[side].label} is shown.")
        own = self._own(data, asked.get("own", ""), notices) if asked.get("session") == "own" else []
        session = None if own else self._session(data, asked.get("session"), notices)
        text = asked.get("text")
        if text is not None and len(text) > TEXT:
            notices.append(f"The text in the address has {len(text):,} characters; at most {TEXT:,} are ranked.")
            text = None
        if text is not None and not sides["right"].live:
            notices.append(f"{sides['right'].silent}. The text in the address was left out.")
            text = None
        out: dict[str, Any] = {
            "notices": notices,
            "choices": [
                {"key": c.key, "label": c.label, "group": c.group, "live": c.live, "writes": c.kind == "profiles"}
                for c in choices
            ],
            "missing": missing,
            "words": data.words,
            "limit": TEXT,
            "items": len(data.items),
            "sessions": len(data.ids),
            "best_rating": f"{data.best_rating:g}",
        }
        views = {name: self._side(data, choice, session, own) for name, choice in sides.items()}
        shown = views["right"].get("text")
        if shown is None or text == shown:
            text = None
        weight = self._weight(asked.get("weight"), sides["right"], notices) if shown is not None else None
        same = self._same(asked.get("same"), sides["left"], notices) and shown is not None
        if text is not None or weight is not None or same:
            order = Rerank(
                dataset=dataset,
                run=sides["right"].key,
                text=shown if text is None else text,
                session=session,
                own=own,
                weight=weight,
                beside=sides["left"].key if same else None,
            )
            try:
                out["ranked"] = self.rerank(order)
            except UserError as error:  # the sides can be shown all the same
                notices.append(str(error))
                text, weight, same = None, None, False
        texts = [side.get("text") for side in views.values()]
        out["differences"] = None if None in texts else differences(*texts)
        out["same_text"] = None not in texts and texts[0] == texts[1]
        out["sides"] = views
        out["user"] = self._user(data, session, own)
        number = "own" if own else str(session)
        state = {"dataset": dataset, "session": number, "left": sides["left"].key, "right": sides["right"].key}
        changes = {"text": text, "weight": None if weight is None else f"{weight:g}", "same": "1" if same else None}
        out["state"] = state | ({"own": _own_text(own)} if own else {})
        out["state"] |= {key: value for key, value in changes.items() if value is not None}
        return out

    def _weight(self, asked: str | None, choice: Choice, notices: list[str]) -> float | None:
        """The weight of popularity in an address; None: the run's own."""
        if asked is None:
            return None
        own, largest = self.live.weight(choice), self.live.largest_weight(choice)
        try:
            weight = float(asked)
            if not 0 <= weight <= largest:
                raise ValueError
        except ValueError:
            notices.append(
                f"Weight “{asked[:40]}” is no number from 0 to {largest:g}; the run's own, {own:g}, is used."
            )
            return None
        return None if weight == own else weight

    def _same(self, asked: str | None, choice: Choice, notices: list[str]) -> bool:
        """Whether an address asks that the left run ranks the right text."""
        if asked not in (None, "1"):
            notices.append(f"same=“{asked[:40]}” is not 1; each side ranks its own text.")
        elif asked and not choice.live:
            notices.append(f"{choice.silent}.")
        return asked == "1" and choice.live

    def _session(self, data: Data, asked: str | None, notices: list[str]) -> int:
        if asked and asked != "own":
            try:
                number = int(asked)
                data.session(number)
                return number
            except (ValueError, UserError):
                notices.append(f"Session “{asked[:40]}” is not among the compared ones; another is shown.")
        return data.random(0)

    def _own(self, data: Data, text: str, notices: list[str]) -> list[tuple[int, float]]:
        """Parse a typed history from an address: ``item:rating,item:rating``, oldest first."""
        out: dict[int, float] = {}
        bad = 0
        for part in [p for p in text.split(",") if p][: LINES + 1]:
            item, _, rating = part.partition(":")
            try:
                number, value = int(item), float(rating or data.best_rating)
                if not (0 <= number < len(data.items) and 0 <= value <= 100) or len(out) >= LINES:
                    raise ValueError
                out[number] = value
            except ValueError:
                bad += 1
        if bad or not out:
            notices.append("Some titles of the address are not in this catalogue." if out else "No own titles given.")
        return list(out.items())

    def _user(self, data: Data, session: int | None, own: list[tuple[int, float]]) -> dict[str, Any]:
        if session is None:
            history = [data.item(item) | {"rating": f"{rating:g}"} for item, rating in reversed(own)]
            return {"own": True, "history": history, "seen": len(own), "target": None}
        row = data.session(session)
        pairs = list(zip(row["history"], row["ratings"], strict=True))
        history = [data.item(item) | {"rating": f"{rating:g}"} for item, rating in reversed(pairs)]
        return {
            "own": False,
            "session": session,
            "name": row["user_id"],
            "history": history,
            "seen": len(row["seen"]),
            "target": data.item(row["target"]),
        }

    def _whose(self, data: Data, session: int | None, own: list[tuple[int, float]]) -> tuple[list[int], int | None]:
        """The seen items and the target of a session or an own history."""
        if session is None:
            if not own:
                raise UserError("say whose history: a session, or own titles")
            if any(not 0 <= item < len(data.items) for item, _ in own):
                raise UserError(f"own titles: an item lies outside the catalogue of {len(data.items)} items")
            return [item for item, _ in own], None
        row = data.session(session)
        return row["seen"], row["target"]

    def _text(self, choice: Choice, session: int | None, own: list[tuple[int, float]]) -> tuple[str, str, bool]:
        """A side's text, its source, and whether it replaces a profile that is not written yet."""
        if session is not None:
            text = self.finished.text(choice, session, self.live.best)
            return text.text, text.source, False
        if choice.kind == "shuffled":
            raise UserError("Own titles have no other user's profile; choose another method.")
        if choice.kind == "profiles" and (known := self.live.written(choice, own)):
            return *known, False
        text = self.finished.history_text(choice, [item for item, _ in own])
        return text.text, text.source, choice.kind == "profiles"

    def _side(self, data: Data, choice: Choice, session: int | None, own: list[tuple[int, float]]) -> dict[str, Any]:
        """One side: its text, its list, the target's rank. A failure becomes ``error``, one line."""
        out: dict[str, Any] = {"run": choice.key, "label": choice.label, "live": choice.live, "writes": False}
        try:
            seen, target = self._whose(data, session, own)
            out["of"] = len(data.items) - len(set(seen))
            stored = self.finished.stored(choice, session) if session is not None else None
            if not choice.live:
                if stored is None:
                    raise UserError(choice.silent)
                out |= {"rank": stored["rank"], "source": choice.silent}
                out["list"] = self._list(data, stored["top"][:TOP], target)
                return out
            text, source, standing = self._text(choice, session, own)
            out |= {"weight": self.live.weight(choice), "largest_weight": self.live.largest_weight(choice)}
            ranking = self.live.rank(choice, text, seen, target)
            out |= {"text": text, "source": source, "standing": standing, "cut": ranking.cut, "rank": ranking.rank}
            out["read"] = self._read(choice, text)
            out["edits"] = "" if session is None else self.live.edits(choice)
            out["writes"] = session is None and choice.kind == "profiles" and standing
            if stored:
                # The benchmark's own rank. Scores of a single text are rounded slightly differently than in the
                # benchmark's batches, which may swap the target with an item of nearly the same score.
                out |= {"rank": stored["rank"], "here": ranking.rank}
            out["list"] = self._list(data, ranking.order[:TOP].tolist(), target)
        except UserError as error:
            out["error"] = str(error)
        return out

    def _read(self, choice: Choice, text: str, original: str | None = None) -> dict[str, Any] | None:
        """The parts that a run reads a text in; None if it denies nothing, or the run embeds texts whole."""
        parts = self.live.parts(choice, text, original)
        return asdict(parts) if parts is not None and (parts.avoids or parts.contradicted) else None

    def _list(
        self, data: Data, items: list[int], target: int | None, before: Any = None, other: Any = None
    ) -> list[dict[str, Any]]:
        """Rows of a list; ``before`` and ``other``: places of all items before an edit, and by the other run."""
        out = []
        for place, item in enumerate(items, 1):
            row = data.item(item) | {"place": place, "target": item == target}
            if before is not None:
                row["was"] = int(before[item])
            if other is not None:
                row["there"] = int(other[item])
            out.append(row)
        return out

    def rerank(self, asked: Rerank) -> dict[str, Any]:
        """The list of an edited text, or of another weight, and its changes from the run's own text and weight.

        With ``beside``, also the list of a second run for the same text, and the places of both lists' items in the
        other one.

        Raises:
            UserError: the text is too long, the weight too large, the session unknown, or a run does not
                rank by texts.
        """
        if len(asked.text) > TEXT:
            raise UserError(f"The text has {len(asked.text):,} characters; at most {TEXT:,} are ranked.")
        data = self.finished.data(self._known(asked.dataset))
        choice = self.choice(asked.dataset, asked.run)
        beside = None if asked.beside is None else self.choice(asked.dataset, asked.beside)
        for one in (choice, beside):
            if one is not None and not one.live:
                raise UserError(one.silent)
        own, largest = self.live.weight(choice), self.live.largest_weight(choice)
        weight = own if asked.weight is None else asked.weight
        if weight > largest:
            raise UserError(f"weight {weight:g}: at most {largest:g} is ranked with {choice.label}")
        seen, target = self._whose(data, asked.session, asked.own)
        base = self._text(choice, asked.session, asked.own)[0]
        before = self.live.rank(choice, base, seen, target)
        # A link has no profile for own titles, so a text for them is ranked as it is: nothing in the link says of what
        # it is an edit.
        original = None if asked.session is None else base
        after = self.live.rank(choice, asked.text, seen, target, weight, original=original)
        stored = self.finished.stored(choice, asked.session) if asked.session is not None else None
        was, now = before.places(len(data.items)), after.places(len(data.items))
        other = None
        out: dict[str, Any] = {}
        if beside is not None:
            # The two runs are compared on one text, so the other one reads it as an edit of the same text.
            second = self.live.rank(beside, asked.text, seen, target, original=original)
            other = second.places(len(data.items))
            rows = self._list(data, second.order[:TOP].tolist(), target, other=now)
            out["beside"] = {"rank": second.rank, "cut": second.cut, "list": rows, "weight": self.live.weight(beside)}
        return out | {
            "text": asked.text,
            "weight": weight,
            "changed": asked.text != base or weight != own,
            "rank": after.rank,
            "before": stored["rank"] if stored else before.rank,
            "cut": after.cut,
            "read": self._read(choice, asked.text, original),
            "list": self._list(data, after.order[:TOP].tolist(), target, was, other),
            "gone": self._gone(data, before, now),
            "edits": differences(base, asked.text),
        }

    def _gone(self, data: Data, before: Ranking, now: Any) -> list[dict[str, Any]]:
        """The items that an edit moved out of the list, and their new places."""
        out = [item for item in before.order[:TOP].tolist() if now[item] > TOP]
        return [{"title": data.titles[item], "place": int(now[item])} for item in out]

    def _known(self, dataset: str) -> str:
        there = self.finished.datasets()
        if dataset not in there:
            raise UserError(f"dataset '{dataset[:80]}' has no finished results here{nearest(dataset, there)}")
        return dataset

    def users(self, dataset: str, query: str) -> list[dict[str, Any]]:
        """Sessions by user id or by a title in the history."""
        return self.finished.data(self._known(dataset)).find(query[:100])

    def random(self, dataset: str, seed: int) -> int:
        """A session drawn with a seed."""
        if not 0 <= seed < 2**31:
            raise UserError(f"seed: a number from 0 to {2**31 - 1} is needed")
        return self.finished.data(self._known(dataset)).random(seed)

    def match(self, asked: Lines) -> list[dict[str, Any]]:
        """The item that each line of a typed history names.

        Raises:
            UserError: there are too many lines, or a line is too long.
        """
        data = self.finished.data(self._known(asked.dataset))
        lines = [line for line in (line.strip() for line in asked.lines) if line]
        if len(lines) > LINES:
            raise UserError(f"{len(lines)} titles; at most {LINES} are taken.")
        if any(len(line) > 300 for line in lines):
            raise UserError("A line is longer than 300 characters; give one title a line.")
        out = []
        for line in lines:
            found = data.matcher.match(line)
            rating = min(data.best_rating if found.rating is None else found.rating, data.best_rating)
            out.append(
                {
                    "line": line,
                    "rating": rating,
                    "item": None if found.item is None else data.item(found.item),
                    "near": [data.item(item) for item in found.near],
                }
            )
        return out

    def ordered(self, order: Order) -> Choice:
        """Check a request for a profile, and return the run that writes it."""
        data = self.finished.data(self._known(order.dataset))
        choice = self.choice(order.dataset, order.run)
        self._whose(data, None, order.own)
        return choice


def _own_text(own: list[tuple[int, float]]) -> str:
    return ",".join(f"{item}:{rating:g}" for item, rating in own)
