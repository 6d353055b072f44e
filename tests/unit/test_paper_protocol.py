"""The published protocol on raw Amazon files, against a second, slow implementation of its steps in lists and dicts."""

from __future__ import annotations

import gzip
import html
import json
import math
import random
import re
import shutil
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jinja2
import polars as pl
import pytest

from langptune.config.datasets import DatasetEntry
from langptune.data import contracts, protocols, readers
from langptune.data.limits import TokenLimits
from langptune.data.sessions import stable_hash
from langptune.errors import UserError
from langptune.files import write_lines
from tests.amazon import ODD, write_amazon

CATEGORY = "Movies_and_TV"
COLUMNS = {
    "title": "title",
    "description": "description",
    "categories": "categories",
    "price": "price",
    "average_rating": "average_rating",
}
ITEM_TEXT = "{{ title }}. {{ description }} ({{ average_rating }}) Categories: {{ categories }} Price: {{ price }}"
DATA = [*((reviews, seed) for reviews in (3_000, 8_000) for seed in (0, 1, 2)), (20_000, 3)]
DEFECTS = [
    (),
    ("duplicates",),
    ("average-rating",),
    ("monitor-test",),
    ("duplicates", "average-rating", "monitor-test"),
]
# The name of a step in the library's table of counts -> its name here.
STEPS = {
    "metadata": "titled",
    "active": "active",
    "repeats": "without repeats",
    "core": "core",
    "limits": "limits",
    "second core": "core again",
    "train users": "train",
    "held-out users": "held out",
    "held-out users with enough known items": "held out, warm",
}
# Limits are in words, so that no model is needed, and small enough that each of them drops users.
ITEM_WORDS, PROMPT_WORDS = 400, 900
MUST_LOSE = [
    ("reviews", "titled"),
    ("titled", "active"),
    ("active", "without repeats"),
    ("without repeats", "core"),
    ("core", "limits"),
    ("limits", "core again"),
    ("held out", "held out, warm"),
]


class Row(NamedTuple):
    """A review; ``line`` counts from 1."""

    user: str
    item: str
    time: int
    rating: float
    text: str
    line: int


class Sizes(NamedTuple):
    """The numbers in the protocol."""

    core: int = 5
    history: int = 4
    held_out: float = 0.2
    seed: int = 0


PUBLISHED = Sizes()
SMALL = Sizes(core=3, history=2, held_out=0.4)


class Reading(NamedTuple):
    """Results of the steps: items and sessions in order, and (rows, users, items) after each step by its name."""

    items: list[dict]
    sessions: list[dict]
    funnel: dict[str, tuple[int, int, int]]


def words(text: str) -> int:
    return len(text.split())


def plain(text: str) -> str:
    """A text without the HTML of the synthetic texts."""
    found = html.unescape(re.sub(r" *(<br />)+ *", " ", text))
    return text if found == text else found.strip()


def item_text(**fields: str) -> str:
    """The rendered template; brackets around an empty average are removed."""
    text = jinja2.Environment().from_string(ITEM_TEXT).render(**fields)
    return text if fields.get("average_rating") else text.replace(" () Categories", " Categories")


def prompt_of(history: list[dict]) -> str:
    return "\n".join(
        f"{seen['title']} {seen['description']} {seen['categories']} {seen['price']} {float(seen['rating'])} "
        f"{seen['review']}"
        for seen in history
    )


def slow_reading(
    folder: Path,
    limits: bool = False,
    defects: tuple[str, ...] = (),
    sizes: Sizes = PUBLISHED,
) -> Reading:
    """Sessions as the published steps describe them, one step after the other."""
    rows, first_of = _loaded(folder)
    funnel = {"reviews": _counts(rows)}

    titled = {item for item, fields in first_of.items() if fields["title"] is not None and fields["title"].strip()}
    rows = [row for row in rows if row.item in titled]
    funnel["titled"] = _counts(rows)

    # Not a published step: the library leaves these users out before it looks for repeats.
    own_rows = Counter(row.user for row in rows)
    rows = [row for row in rows if own_rows[row.user] >= sizes.core]
    funnel["active"] = _counts(rows)

    if "duplicates" not in defects:
        earliest: dict[tuple[str, str], Row] = {}
        for row in rows:  # in the order of the file, so that the first of equal times is kept
            before = earliest.get((row.user, row.item))
            if before is None or row.time < before.time:
                earliest[row.user, row.item] = row
        rows = sorted(earliest.values(), key=lambda row: row.line)
        funnel["without repeats"] = _counts(rows)

    rows = _core(rows, sizes.core)
    funnel["core"] = _counts(rows)

    fields_of = {row.item: _fields(first_of[row.item], "average-rating" in defects) for row in rows}
    text_of = {item: item_text(**fields) for item, fields in fields_of.items()}
    of_user = _by_user(rows)
    if limits:
        kept = []
        for own in of_user.values():
            history = [
                {**fields_of[row.item], "rating": row.rating, "review": plain(row.text)} for row in own[: sizes.history]
            ]
            if all(words(text_of[row.item]) <= ITEM_WORDS for row in own) and words(prompt_of(history)) <= PROMPT_WORDS:
                kept += own
        rows = kept
        funnel["limits"] = _counts(rows)

    rows = _core(rows, sizes.core)
    funnel["core again"] = _counts(rows)

    of_user = _by_user(rows)
    order = sorted(of_user, key=lambda user: (of_user[user][0].time, stable_hash("user", user)))
    cut = math.floor((1 - sizes.held_out) * len(order) + 1e-9)  # 0.8 of 5 users is 4, despite rounding errors
    train, held_out = order[:cut], order[cut:]
    catalogue = {row.item for user in train for row in of_user[user]}
    funnel["train"] = _counts([row for user in train for row in of_user[user]])
    funnel["held out"] = _counts([row for user in held_out for row in of_user[user]])

    warm = {user: [row for row in of_user[user] if row.item in catalogue] for user in held_out}
    warm = {user: own for user, own in warm.items() if len(own) >= sizes.core}
    funnel["held out, warm"] = _counts([row for own in warm.values() for row in own])

    session_of = {}
    for user, own in [*((user, of_user[user]) for user in train), *warm.items()]:
        history = own[: sizes.history]
        shown = {row.item for row in history}
        later = [row for row in own[sizes.history :] if row.item not in shown]
        if later:
            session_of[user] = (history, later[0])

    asked = sorted(
        (user for user in warm if user in session_of), key=lambda user: stable_hash(f"split/{sizes.seed}", user)
    )
    half = len(asked) // 2
    split_of = {user: "train" for user in train if user in session_of}
    split_of |= {user: "val" if place < half else "test" for place, user in enumerate(asked)}
    chosen = [(user, split) for user, split in split_of.items()]
    if "monitor-test" in defects:
        chosen = [pair for pair in chosen if pair[1] != "val"]
        chosen += [(user, "val") for user, split in chosen if split == "test"]
    chosen.sort(key=lambda pair: (len(pair[0]), pair[0], pair[1]))

    ids = sorted(catalogue, key=lambda item: (len(item), item))
    number = {item: place for place, item in enumerate(ids)}
    items = [
        {"item": number[item], "item_id": item, "title": fields_of[item]["title"], "text": text_of[item]}
        for item in ids
    ]
    sessions = []
    for place, (user, split) in enumerate(chosen):
        history, target = session_of[user]
        sessions.append(
            {
                "session": place,
                "user_id": user,
                "split": split,
                "history": [number[row.item] for row in history],
                "ratings": [row.rating for row in history],
                "reviews": [plain(row.text) for row in history],
                "seen": [number[row.item] for row in history],
                "target": number[target.item],
                "target_time": target.time,
            }
        )
    return Reading(items, sessions, funnel)


@lru_cache(maxsize=len(DATA))
def _loaded(folder: Path) -> tuple[list[Row], dict[str, dict]]:
    rows = [
        Row(row["user_id"], row["parent_asin"], row["timestamp"], row["rating"], row["text"], line)
        for line, row in enumerate(_objects(folder / "review_categories", f"{CATEGORY}.jsonl"), start=1)
    ]
    first_of: dict[str, dict] = {}
    for fields in _objects(folder / "meta_categories", f"meta_{CATEGORY}.jsonl"):
        first_of.setdefault(fields["parent_asin"], fields)
    return rows, first_of


def _objects(folder: Path, name: str) -> list[dict]:
    packed = folder / f"{name}.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    return [json.loads(line) for line in content.split(b"\n") if line]


def _counts(rows: list[Row]) -> tuple[int, int, int]:
    return len(rows), len({row.user for row in rows}), len({row.item for row in rows})


def _core(rows: list[Row], size: int) -> list[Row]:
    while True:
        users, items = Counter(row.user for row in rows), Counter(row.item for row in rows)
        kept = [row for row in rows if users[row.user] >= size and items[row.item] >= size]
        if len(kept) == len(rows):
            return rows
        rows = kept


def _by_user(rows: list[Row]) -> dict[str, list[Row]]:
    of_user: dict[str, list[Row]] = {}
    for row in rows:
        of_user.setdefault(row.user, []).append(row)
    for user, own in of_user.items():
        own.sort(key=lambda row: (row.time, int.from_bytes(stable_hash("tie", user, row.item), "big"), row.line))
    return of_user


def _fields(raw: dict, average: bool) -> dict[str, str]:
    out = {}
    for field, column in COLUMNS.items():
        value = raw[column]
        if field == "average_rating" and not average:
            value = None
        if isinstance(value, list):
            value = (" " if field == "description" else ", ").join(value)
        value = "" if value is None else plain(str(value))
        out[field] = "" if value in ("—", "null") and field != "title" else value  # 5.0 stays 5.0, and 5 stays 5
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[tuple[int, int], Path]:
    """The files are written once; every second dataset is compressed."""
    out = {}
    for reviews, seed in DATA:
        out[reviews, seed] = tmp_path_factory.mktemp(f"amazon-{reviews}-{seed}")
        write_amazon(out[reviews, seed], reviews=reviews, seed=seed, gz=seed % 2 == 1)
    return out


def entry(
    folder: Path,
    limits: bool = False,
    defects: tuple[str, ...] = (),
    sizes: Sizes = PUBLISHED,
) -> DatasetEntry:
    return DatasetEntry.model_validate(
        {
            "title": "Made-up films",
            "reader": "amazon-2023",
            "source": {"folder": str(folder)},
            "category": CATEGORY,
            "licence": "none",
            "columns": COLUMNS,
            "item_text": ITEM_TEXT,
            "prompt": "movies",
            "protocol": {
                "name": "paper",
                "core": sizes.core,
                "history_length": sizes.history,
                "held_out": sizes.held_out,
                "seed": sizes.seed,
                "limits": {
                    "encoder": "none",
                    "prompt_tokens": PROMPT_WORDS,
                    "decoder": "none",
                    "item_tokens": ITEM_WORDS,
                    "over": "drop",
                }
                if limits
                else None,
                "defects": list(defects),
            },
        }
    )


def counters() -> TokenLimits:
    """Functions that count words instead of tokens."""
    return TokenLimits(
        item_tokens_of=lambda texts: [words(text) for text in texts],
        prompts_of=lambda histories: [prompt_of(history) for history in histories],
        prompt_tokens_of=lambda prompts: [words(prompt) for prompt in prompts],
        item_limit=ITEM_WORDS,
        prompt_limit=PROMPT_WORDS,
    )


def library_reading(folder: Path, scratch: Path, **options) -> protocols.Prepared:
    described = entry(folder, **options)
    raw = readers.read(described, "toy", scratch)
    return protocols.prepare(raw, described, "toy", limits=counters() if options.get("limits") else None)


def same(found: protocols.Prepared, expected: Reading, numbered: bool = True) -> None:
    """Check that everything is equal, and with ``numbered`` also the order of sessions."""
    for step in found.facts["funnel"]:
        if (name := STEPS.get(step["step"])) is not None:
            assert (step["interactions"], step["users"], step["items"]) == expected.funnel[name], step
    steps = [STEPS[step["step"]] for step in found.facts["funnel"] if step["step"] in STEPS]
    # Without limits, there is only one core.
    assert steps == [name for name in expected.funnel if name in steps]
    assert set(expected.funnel) - set(steps) <= {"reviews", "core again"} - (
        {"core again"} if "limits" in steps else set()
    )
    assert found.facts["funnel"][0] == {"step": "reviews", "interactions": expected.funnel["reviews"][0]}
    assert found.items.select("item", "item_id", "title", "text").to_dicts() == expected.items
    contracts.check(found.sessions, "sessions", "sessions")
    rows, wanted = found.sessions.to_dicts(), expected.sessions
    if not numbered:
        rows, wanted = ([{**row, "session": None} for row in part] for part in (rows, wanted))
        rows, wanted = (sorted(part, key=lambda row: (row["user_id"], row["split"])) for part in (rows, wanted))
    assert list(rows[0]) == list(wanted[0])
    assert rows == wanted


@pytest.mark.parametrize("defects", DEFECTS, ids="+".join)
@pytest.mark.parametrize("limits", [False, True], ids=["all", "limits"])
@pytest.mark.parametrize("data", DATA, ids=str)
def test_it_is_the_result_of_the_steps(files, tmp_path, data, limits, defects):
    sizes = Sizes(seed=data[1])
    found = library_reading(files[data], tmp_path, limits=limits, defects=defects, sizes=sizes)
    same(found, slow_reading(files[data], limits, defects, sizes), numbered="monitor-test" not in defects)


def test_an_unseeded_split_moves_held_out_users_only(files, tmp_path):
    data = DATA[-1]
    halves = []
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        sessions = library_reading(files[data], tmp_path / part, defects=("unseeded-split",)).sessions
        halves.append(set(sessions.filter(pl.col("split") == "val")["user_id"]))
        whole = sessions.with_columns(pl.col("split").replace("val", "test")).to_dicts()
        wanted = [{**row, "split": row["split"].replace("val", "test")} for row in slow_reading(files[data]).sessions]
        assert whole == wanted
    assert len(halves[0]) == len(halves[1])
    assert halves[0] != halves[1]  # equal by chance once in 2^31 draws


def test_the_data_ask_something_of_every_step(files):
    """Otherwise the comparison could pass on data in which some step has nothing to do."""
    work = Counter()
    for folder in files.values():
        rows, _ = _loaded(folder)
        plain, repeated = slow_reading(folder, limits=True), slow_reading(folder, defects=("duplicates",))
        for before, after in MUST_LOSE:
            work[after] += plain.funnel[before][0] - plain.funnel[after][0]
        work["repeats in a history"] += sum(len(set(row["history"])) < len(row["history"]) for row in repeated.sessions)
        work["ties within a user"] += len(rows) - len({(row.user, row.time) for row in rows})
        starts = [own[0].time for own in _by_user(rows).values()]
        work["users who begin together"] += len(starts) - len(set(starts))
        assert {row["split"] for row in plain.sessions} == {"train", "val", "test"}
    assert all(work.values()), work


def test_small_blocks_of_a_file_change_nothing(files, tmp_path, monkeypatch):
    """A line that spans two blocks, and a block without a complete line."""
    expected = slow_reading(files[DATA[0]], True)
    for size in (2_000, 100_003):
        (tmp_path / str(size)).mkdir()
        monkeypatch.setattr("langptune.data.jsonl.CHUNK", size)
        same(library_reading(files[DATA[0]], tmp_path / str(size), limits=True), expected)


@pytest.mark.parametrize("seed", range(40))
def test_small_crowded_data(tmp_path, seed):
    """A dozen users, ten items, six timestamps: many repeats, ties, cold items and users who lose rows."""
    rng = random.Random(seed)
    ids = [f"B{'0' * rng.randint(0, 2)}{i}" for i in range(10)]  # ids of several lengths
    users = [f"A{'E' * rng.randint(0, 2)}{i}" for i in range(14)]
    late = set(rng.sample(users, 4))  # they come last, and have separate items
    rows = []
    for _ in range(rng.randint(60, 160)):
        user = rng.choice(users)
        rows.append(
            {
                "rating": float(rng.randint(1, 5)),
                "title": "",
                "text": rng.choice(["", "fine", f"odd \u2028 {len(rows)}", "b\nb"]),
                "asin": "B",
                "parent_asin": rng.choice(ids[6:] if user in late and rng.random() < 0.5 else ids[:8]),
                "user_id": user,
                "timestamp": 1_500_000_000_000 + rng.randint(0, 5) + (6 if user in late else 0),
            }
        )
    fields = [
        {
            "title": None if i == 3 else "   " if i == 4 else rng.choice(["A", "B", "{}"]) + item,
            "average_rating": rng.choice([4.0, 3.7, 5]),
            "description": rng.choice([[], ["one"], ["one", "two"]]),
            "price": rng.choice([None, 5, 5.0, 12.99, "from $9.99", "\u2014"]),
            "categories": rng.choice([[], ["X"], ["X", "Y, Z"]]),
            "parent_asin": item,
        }
        for i, item in enumerate(ids)
        if i != 5
    ]
    fields += [{**fields[0], "title": "again"}, {**fields[3], "title": "now with a title"}]
    write_lines(tmp_path / "review_categories" / f"{CATEGORY}.jsonl", rows)
    write_lines(tmp_path / "meta_categories" / f"meta_{CATEGORY}.jsonl", fields)
    scratch = tmp_path / "scratch"
    for defects in DEFECTS:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        sizes = Sizes(core=rng.choice([2, 3]), history=rng.choice([1, 2]), held_out=rng.choice([0.2, 0.5]), seed=seed)
        expected = slow_reading(tmp_path, defects=defects, sizes=sizes)
        try:
            found = library_reading(tmp_path, scratch, defects=defects, sizes=sizes)
        except UserError as error:
            assert "left" in str(error) or "leaves" in str(error)
            assert len({row["split"] for row in expected.sessions}) < 3
            continue
        same(found, expected, numbered="monitor-test" not in defects)


@pytest.mark.parametrize("title", ["[1984]", '["a", "b"]', "12", '"quoted"', "null", "[REC]", "{}"])
def test_a_title_is_a_title_whatever_it_looks_like(tmp_path, title):
    same(*_everyone_has(tmp_path, {"title": title, "price": title}))


@pytest.mark.parametrize("price", [5, 5.0, 0.0, 12.99, 1e-05, 1299.0, 123456789.0, "5.0", "—"])
def test_numbers_are_printed_as_given(tmp_path, price):
    same(*_everyone_has(tmp_path, {"price": price, "average_rating": 4.0}, defects=("average-rating",)))


@pytest.mark.parametrize("part", ODD, ids=range(len(ODD)))
def test_odd_characters_in_a_list(tmp_path, part):
    same(*_everyone_has(tmp_path, {"description": [part, "a " + part], "categories": [part, "b"], "title": "t" + part}))


@pytest.mark.parametrize(
    ("item", "prompt"), [(ITEM_WORDS, 2), (ITEM_WORDS + 1, 2), (5, PROMPT_WORDS), (5, PROMPT_WORDS + 2)]
)
def test_a_text_of_exactly_its_limit_is_kept(tmp_path, item, prompt):
    around = words(prompt_of([{**dict.fromkeys(COLUMNS, ""), "title": "T", "rating": 5.0, "review": ""}]))
    described = item - words(item_text(title="T"))
    review = "word " * (prompt // 2 - around - described)  # a prompt has two items here
    changes = {"description": [" ".join(["word"] * described)]}
    if item > ITEM_WORDS or prompt > PROMPT_WORDS:
        with pytest.raises(UserError, match="nothing is left after step 'limits'"):
            _everyone_has(tmp_path, changes, review, limits=True)
    else:
        same(*_everyone_has(tmp_path, changes, review, limits=True))


def test_a_bad_line_elsewhere_changes_no_text(tmp_path):
    """A block with an invalid line is parsed in another way, with the same result."""
    fields = {"price": 5.0, "description": ["one \n", 'two "'], "average_rating": 4.0}
    found, _ = _everyone_has(tmp_path, fields, defects=("average-rating",))
    path = tmp_path / "meta_categories" / f"meta_{CATEGORY}.jsonl"
    path.write_bytes(path.read_bytes() + b"{\n")
    described = entry(tmp_path, defects=("average-rating",), sizes=SMALL).model_copy(update={"max_bad": 0.5})
    (tmp_path / "again").mkdir()
    raw = readers.read(described, "toy", tmp_path / "again")
    assert protocols.prepare(raw, described, "toy").items["text"].to_list() == found.items["text"].to_list()


def _everyone_has(folder: Path, changes: dict, text: str = "fine", **options) -> tuple[protocols.Prepared, Reading]:
    """Results of both implementations if ten users have the same four items with the given fields."""
    items = [f"B{i}" for i in range(4)]
    review = {"rating": 5.0, "title": "", "text": text, "asin": "B"}
    rows = [
        {**review, "parent_asin": item, "user_id": f"A{user}", "timestamp": 1_500_000_000_000 + user + i}
        for user in range(10)
        for i, item in enumerate(items)
    ]
    fields = {"title": "T", "average_rating": 4.5, "description": [], "price": None, "categories": []}
    write_lines(folder / "review_categories" / f"{CATEGORY}.jsonl", rows)
    write_lines(
        folder / "meta_categories" / f"meta_{CATEGORY}.jsonl",
        [{**fields, **changes, "parent_asin": item} for item in items],
    )
    (folder / "scratch").mkdir()
    found = library_reading(folder, folder / "scratch", sizes=SMALL, **options)
    return found, slow_reading(folder, sizes=SMALL, **options)


def test_made_up_files_are_fixed_by_their_seed(tmp_path):
    for name, options in {"a": {}, "b": {}, "c": {"seed": 1}, "d": {"gz": True}, "e": {"gz": True}}.items():
        write_amazon(tmp_path / name, reviews=500, **options)
    read = {name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.jsonl*"))] for name in "abcde"}
    assert read["a"] == read["b"] != read["c"]
    assert read["d"] == read["e"]
    assert [gzip.decompress(content) for content in read["d"]] == read["a"]
