"""Raw files in many forms give the right sessions, or one line that names file, line and value; never other data."""

from __future__ import annotations

import gzip
import io
import itertools
import zipfile
from pathlib import Path

import polars as pl
import pytest

from langptune.data import contracts, protocols, readers, texts
from langptune.data.readers import cells
from langptune.data.templates import compile_template, render
from langptune.errors import UserError
from tests.amazon import write_amazon
from tests.conftest import ROOT, entry, write_raw

ITEMS = "abcde"
SEEN = [(user, item) for user in "uv" for item in ITEMS]
THINGS = "what,name\n" + "".join(f"{item},Thing {item}\n" for item in ITEMS)


def views(times, separator=",") -> str:
    """A file in which users u and v view a, b, c, d, e at these times."""
    rows = [
        ("who", "what", "when"),
        *((user, item, time) for (user, item), time in zip(SEEN, [*times] * 2, strict=True)),
    ]
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def own(folder: Path, name: str = "views.csv", content: str | bytes | None = None, **changes):
    """The dataset entry and the ``Raw`` of tables in ``folder``; the interactions are written if given."""
    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if not any(folder.glob("things.*")):
        (folder / "things.csv").write_text(THINGS)
    tables = {"interactions": name, "items": "things.csv", "user": "who", "item": "what", "timestamp": "when"}
    settings = entry(
        reader="csv",
        source={"folder": str(folder)},
        columns={"title": "name"},
        lists=[],
        tables=tables | changes.pop("tables", {}),
        item_text="{{ title }}",
        **changes,
    )
    return settings, readers.read(settings, "mine")


def atomic(folder: Path, times) -> tuple:
    rows = [(user, item, 4, time) for (user, item), time in zip(SEEN, [*times] * 2, strict=True)]
    write_raw(folder, rows, [(item, f"Thing {item}", 1990, "Drama") for item in ITEMS])
    settings = entry(source={"folder": str(folder)})
    return settings, readers.read(settings, "toy")


def order(found: tuple) -> dict[str, str]:
    """Each user's items in the order of time, from the sessions."""
    settings, raw = found
    done = protocols.prepare(raw, settings, "mine")
    item_of = dict(done.items.select("item", "item_id").iter_rows())
    last = done.sessions.filter(pl.col("split") == "test")
    return {
        row["user_id"]: "".join(item_of[item] for item in [*row["seen"], row["target"]])
        for row in last.iter_rows(named=True)
    }


IN_ORDER = {"u": ITEMS, "v": ITEMS}


def refused(found, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        found()
    assert "\n" not in str(caught.value)
    assert not any(word in str(caught.value) for word in ("truncate_ragged_lines", "infer_schema"))


# Times: fractions, 64 bits, dates

RIGHT = {
    "fractions of a second": [f"1593878903.{i}" for i in range(1, 6)],
    "fractions of unequal length": [
        "1593878903",
        "1593878903.000001",
        "1593878903.1",
        "1593878903.10000001",
        "1593878904",
    ],
    "fractions below zero": ["-0.5", "-0.25", "0", "0.125", "1.0"],
    "64-bit nanoseconds": [1446889273437863946 + i for i in range(5)],
    "the largest 64-bit numbers": [2**63 - 5 + i for i in range(5)],
    "whole numbers as floats": [f"{978300760 + i}.0" for i in range(5)],
    "ISO dates": ["2023-01-12", "2023-02-11", "2023-03-10", "2023-12-01", "2024-01-01"],
    "ISO times": [
        "2023-12-01 10:00",
        "2023-12-01T10:00:01",
        "2023-12-01 10:00:01.5",
        "2023-12-01T10:00:02",
        "2023-12-02",
    ],
    "ISO times with offsets": [
        "2023-12-01T12:00:00+02:00",
        "2023-12-01T10:00:01Z",
        "2023-12-01T05:00:02-0500",
        "2023-12-01T15:30:03+05:30",
        "2023-12-01T10:00:04+00:00",
    ],
    "nanoseconds in ISO times": [f"2015-11-07T10:47:53.43786394{i}Z" for i in range(5)],
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("kind", ["csv", "tsv", "atomic", "parquet"])
def test_times_keep_their_order(tmp_path, name, kind):
    times = RIGHT[name]
    if kind == "atomic":
        found = atomic(tmp_path, times)
    elif kind == "parquet":
        frame = pl.read_csv(io.BytesIO(views(times).encode()), infer_schema=False)
        frame.write_parquet(tmp_path / "views.parquet")
        found = own(tmp_path, "views.parquet")
    else:
        found = own(tmp_path, f"views.{kind}", views(times, "\t" if kind == "tsv" else ","))
    assert order(found) == IN_ORDER
    assert found[1].interactions["timestamp"].n_unique() == 5


def test_times_have_their_unit(tmp_path):
    fine = own(tmp_path / "a", content=views(RIGHT["fractions of a second"]))[1]
    assert fine.interactions["timestamp"][0] == 1593878903100
    assert any(
        "when has fractions: times are counted in 1/1000 of its unit, 10 such rows" in note for note in fine.notes
    )
    assert own(tmp_path / "b", content=views(RIGHT["ISO dates"]))[1].interactions["timestamp"][0] == 1673481600000000
    nine = own(tmp_path / "c", content=views(RIGHT["64-bit nanoseconds"]))[1]
    assert nine.interactions["timestamp"][:5].to_list() == RIGHT["64-bit nanoseconds"]


def test_cut_off_times_of_64_bits_are_exact(tmp_path):
    times = [1446889273437863946 + i for i in range(10)]
    rows = [(f"u{u}", item, 4, times[5 * (u % 2) + i]) for u in range(6) for i, item in enumerate(ITEMS)]
    write_raw(tmp_path, rows, [(item, item, 1990, "Drama") for item in ITEMS])
    protocol = {"name": "temporal", "validation_from": 0.3, "test_from": 0.4}
    settings = entry(source={"folder": str(tmp_path)}, protocol=protocol)
    done = protocols.prepare(readers.read(settings, "toy"), settings, "toy")
    assert set(done.facts["cuts"]) <= set(times)


@pytest.mark.parametrize(
    ("dtype", "times"),
    [
        (pl.Int64, RIGHT["64-bit nanoseconds"]),
        (pl.UInt64, RIGHT["64-bit nanoseconds"]),
        (pl.Float64, [float(time) for time in RIGHT["fractions of a second"]]),
        (pl.Float64, [1593878903.0 + i for i in range(5)]),
        (pl.Datetime("ns"), RIGHT["64-bit nanoseconds"]),
        (pl.Datetime("us", "Europe/Berlin"), [1446889273437863 + i for i in range(5)]),
        (pl.Date, [19000 + i for i in range(5)]),
        (pl.Decimal(20, 4), [f"1593878903.000{i}" for i in range(1, 6)]),
    ],
    ids=str,
)
def test_times_typed_in_parquet(tmp_path, dtype, times):
    values = (
        pl.Series("when", times * 2).cast(dtype) if dtype.is_decimal() else pl.Series("when", times * 2, dtype=dtype)
    )
    frame = pl.DataFrame(SEEN, schema=["who", "what"], orient="row").with_columns(values)
    frame.write_parquet(tmp_path / "views.parquet")
    found = own(tmp_path, "views.parquet")
    assert order(found) == IN_ORDER and found[1].interactions["timestamp"].n_unique() == 5


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            ["01/12/2023", "02/11/2023", "03/10/2023", "04/09/2023", "05/08/2023"],
            r"line 2: when is '01/12/2023', neither",
        ),
        (
            ["01-12-2023", "02-11-2023", "03-10-2023", "04-09-2023", "05-08-2023"],
            r"line 2: when is '01-12-2023', neither",
        ),
        (["2023/12/01"] * 5, r"line 2: when is '2023/12/01', neither"),
        (["Dec 1 2023"] * 5, r"line 2: when is 'Dec 1 2023', neither a whole number nor an ISO date .*; write"),
        (
            ["2023-02-27", "2023-02-28", "2023-02-29", "2023-03-01", "2023-03-02"],
            r"line 4: when is '2023-02-29', a day",
        ),
        (["2023-02-27T24:00:01"] * 5, "line 2: .* a day or hour that does not exist"),
        (["1.59e9"] * 5, r"line 2: when is '1\.59e9', neither"),
        (
            ["1593878903", "2023-12-01", "1593878905", "1", "2"],
            r"line 3: when is '2023-12-01', but '1593878903' in line 2",
        ),
        ([1, 2, 2**63, 4, 5], r"line 4: when is '9223372036854775808', which does not fit|line 4: .*neither"),
        (["1.1234567891", "2", "3", "4", "5"], r"line 2: .*too many digits"),
        (
            ["2023-12-01T10:00:00Z", "2023-12-01T10:00:01", "2023-12-01T10:00:02Z", "2023-12-03", "2023-12-04"],
            "line 3: .*offset",
        ),
        ([1, 2, "", 4, 5], r"line 4: when is '', neither|line 4: 'when' is empty"),
        (["1,5", 2, 3, 4, 5], r"line 2: 4 cells, the header has 3; put quotes"),
    ],
)
def test_other_times_are_refused(tmp_path, times, message):
    refused(lambda: own(tmp_path, content=views(times)), rf"views\.csv: {message}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            pl.Series("when", [float(1446889273437863946 + i) for i in range(5)] * 2),
            r"row 1: when is .* type Float64 holds no",
        ),
        (pl.Series("when", [1593878903.1, float("nan"), 1.0, 2.0, 3.0] * 2), r"row 2: when is nan"),
        (pl.Series("when", [1593878903.0] * 10, dtype=pl.Float32), r"row 1: .*Float32 holds no exact"),
        (pl.Series("when", [1, None, 3, 4, 5] * 2), r"row 2: 'when' is empty"),
        (pl.Series("when", [True] * 10), r"column 'when' has type Boolean"),
        (pl.Series("when", [2**63 + 1] * 10, dtype=pl.UInt64), r"row 1: .* does not fit into 64 bits"),
    ],
)
def test_typed_times_that_are_not_exact_are_refused(tmp_path, values, message):
    frame = pl.DataFrame(SEEN, schema=["who", "what"], orient="row").with_columns(values)
    frame.write_parquet(tmp_path / "views.parquet")
    refused(lambda: own(tmp_path, "views.parquet"), rf"views\.parquet: {message}")


# Paths are never patterns

STRANGE = ["exp[1]", "exp*", "ex?1", "exp{1}", "a=1"]


@pytest.mark.parametrize("name", STRANGE)
def test_no_path_is_a_pattern(tmp_path, name):
    """A folder beside it, whose name the path would match as a pattern, holds other data."""
    backwards, forwards = views([5, 4, 3, 2, 1]), views([1, 2, 3, 4, 5])
    for folder, content in (("exp1", backwards), (name, forwards)):
        own(tmp_path / folder, content=content)
        own(tmp_path / folder, "views.tsv", content.replace(",", "\t"))
        pl.read_csv(io.BytesIO(content.encode())).write_parquet(tmp_path / folder / "views.parquet")
        atomic(tmp_path / folder, [5, 4, 3, 2, 1] if folder == "exp1" else [1, 2, 3, 4, 5])
    for file in ("views.csv", "views.tsv", "views.parquet"):
        found = own(tmp_path / name, file)
        assert order(found) == IN_ORDER
        assert found[1].files[0] == tmp_path / name / file
    settings = entry(source={"folder": str(tmp_path / name)})
    assert order((settings, readers.read(settings, "toy"))) == IN_ORDER

    done = protocols.prepare(found[1], found[0], "mine")
    other = done.sessions.with_columns(user_id=pl.lit("other") + pl.col("user_id"))
    for folder, sessions in ((name, done.sessions), ("exp1", other)):
        contracts.write(sessions, tmp_path / folder / "s.parquet", "sessions")
        sessions.select("user_id").write_csv(tmp_path / folder / "s.csv")
    assert contracts.read(tmp_path / name / "s.parquet", "sessions").equals(done.sessions)
    assert contracts.scan_parquet(tmp_path / name / "s.parquet").collect().equals(done.sessions)
    assert contracts.read_csv(tmp_path / name / "s.csv").equals(done.sessions.select("user_id"))
    (tmp_path / name / "s.parquet").unlink()
    refused(lambda: contracts.read(tmp_path / name / "s.parquet", "sessions"), "no such file")


def test_amazon_in_a_folder_with_brackets(tmp_path):
    found = []
    for folder in ("exp1", "exp[1]"):
        write_amazon(tmp_path / folder, reviews=1000, seed=len(found))
        (tmp_path / folder / "scratch").mkdir()
        settings = entry(
            reader="amazon-2023",
            category="Movies_and_TV",
            source={"folder": str(tmp_path / folder)},
            columns={"title": "title"},
            lists=[],
            move_articles=False,
        )
        raw = readers.read(settings, "m", tmp_path / folder / "scratch")
        found.append((raw.interactions, raw.items_of(), raw.reviews_of(raw.interactions["row"])))
    (tmp_path / "again").mkdir()
    raw = readers.read(settings, "m", tmp_path / "again")
    assert found[1][0].equals(raw.interactions)
    assert found[1][1].equals(raw.items_of()) and len(found[1][2]) == len(raw.interactions)


def test_nothing_reads_tables_beside_the_helpers():
    """polars opens files in three modules, each time with patterns disabled or from bytes."""
    calls = ("pl.read_parquet(", "pl.scan_", "pl.read_csv(", "pl.read_ndjson(", "pd.read_")
    where = {
        str(path.relative_to(ROOT))
        for folder in ("src", "scripts", "workflow")
        for path in (ROOT / folder).rglob("*.py")
        if any(call in path.read_text(encoding="utf-8") for call in calls)
    }
    assert where == {
        "src/langptune/data/contracts.py",
        "src/langptune/data/jsonl.py",
        "src/langptune/data/readers/cells.py",
    }


# Cells

QUOTED = ['"so good', 'it said "no"', '5" disc', '""', "plain", 'ends with "', '"both"']


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_quotes_in_tsv_are_characters(tmp_path, ending):
    words = [QUOTED[i % 7] for i in range(10)]
    rows = [
        ("who", "what", "when", "words"),
        *((*seen, i % 5, word) for i, (seen, word) in enumerate(zip(SEEN, words, strict=True))),
    ]
    content = "".join("\t".join(map(str, row)) + ending for row in rows)
    found = own(tmp_path, "views.tsv", content, tables={"review": "words"})
    assert len(found[1].interactions) == 10
    assert found[1].reviews_of(pl.Series(range(10)))["review"].to_list() == words
    assert order(found) == IN_ORDER


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk", [7, 64, 1 << 24])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_csv_as_programs_write_it(tmp_path, monkeypatch, packed, chunk, ending):
    """Commas, quotes and line breaks in cells, blank lines, a byte order mark, columns in another order."""
    monkeypatch.setattr(cells, "CHUNK", chunk)
    words = ['"so good"', "one, two", "a\nb", "", "a\n\nb,c", 'x"', '"', ",", "\n", "é"]
    rows = ["words,when,extra,what,who"]
    for i, ((user, item), word) in enumerate(zip(SEEN, words, strict=True)):
        doubled = word.replace('"', '""')
        rows.append(f'"{doubled}",{i % 5},,{item},{user}' + ending * (i % 3 == 0))
    content = ("\ufeff" + ending.join(rows)).encode()
    name = "views.csv.gz" if packed else "views.csv"
    found = own(tmp_path, name, gzip.compress(content) if packed else content, tables={"review": "words"})
    assert order(found) == IN_ORDER
    assert found[1].reviews_of(pl.Series(range(10)))["review"].to_list() == words
    assert any("line 5: a quoted cell goes over more than one line: 3 such rows" in note for note in found[1].notes)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("views.csv", "u,a,1,extra", r"line 5: 4 cells, the header has 3; put quotes around a cell that holds a comma"),
        ("views.csv", "u,a", r"line 5: 2 cells, the header has 3; a cell is missing"),
        ("views.csv", 'u,"a",1"', r"line 5: a quote within a cell"),
        ("views.csv", 'u,"a" b,1', r"line 5: a quote within a cell"),
        ("views.csv", 'u,"a,1', r"line 5: a quote opens a cell and none closes it"),
        ("views.csv", "u,a,\0", r"line 5: a NUL byte"),
        ("views.csv", b"u\xe9,a,1", r"line 5: the byte 0xe9 is not UTF-8"),
        ("views.tsv", "u\ta\t1\textra", r"line 5: 4 cells, the header has 3; a tab or a line break inside a cell"),
        ("views.tsv", "u\ta", r"line 5: 2 cells, the header has 3"),
        ("views.tsv", "u a 1", r"line 5: 1 cell, the header has 3"),
    ],
)
def test_a_broken_row_is_named_with_its_line(tmp_path, name, row, message):
    lines = views([1, 2, 3, 4, 5], "\t" if name.endswith("tsv") else ",").encode().splitlines(keepends=True)
    lines.insert(4, (row if isinstance(row, bytes) else row.encode()) + b"\n")
    refused(lambda: own(tmp_path, name, b"".join(lines)), rf"{name}: {message}")


def test_lines_are_those_of_the_file(tmp_path):
    """This includes lines after blank lines and after cells of several lines."""
    content = 'who,what,when,words\n\nu,a,1,"two\nlines"\n\nu,b,2,x\nu,c,never,y\n'
    refused(lambda: own(tmp_path, content=content, tables={"review": "words"}), r"views\.csv: line 7: when is 'never'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"who,what,when\n", "no rows below the header"),
        (b"who,what,when,when\nu,a,1,2\n", "column 'when' occurs twice in the header"),
        (b"who;what;when\nu;a;1\n", "column 'who' is missing"),
        ("who,what,when\nu,a,1\n".encode("utf-16"), "UTF-16; save the file as UTF-8"),
        (gzip.compress(b"who,what,when\nu,a,1\n", mtime=0), r"a gzip file; unpack it, or end its name in \.gz"),
    ],
)
def test_a_file_that_is_not_csv(tmp_path, content, message):
    refused(lambda: own(tmp_path, content=content), rf"views\.csv: .*{message}")


# Which file, which columns


@pytest.mark.parametrize("name", ["views.tsv.gz", "views.csv.gz", "views.TSV", "views.v2.tsv.gz"])
def test_the_ending_before_gz_counts(tmp_path, name):
    content = views([1, 2, 3, 4, 5], "\t" if "tsv" in name.lower() else ",").encode()
    found = own(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert order(found) == IN_ORDER


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("views.txt", b"who,what,when\n", "the name ends in neither"),
        ("views.gz", gzip.compress(b"who,what,when\n", mtime=0), "the name ends in neither"),
        ("views.parquet.gz", gzip.compress(b"PAR1", mtime=0), "the name ends in neither"),
        ("views.csv.gz", b"who,what,when\nu,a,1\n", "the gzip file is damaged"),
        ("views.csv.gz", gzip.compress(views(range(5)).encode(), mtime=0)[:-9], "the gzip file is damaged"),
        ("views.parquet", b"who,what,when\n", "cannot be read"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, content, message):
    refused(lambda: own(tmp_path, name, content), rf"{name}: .*{message}")


def test_only_the_wanted_columns_of_parquet_are_read(tmp_path):
    frame = pl.DataFrame(SEEN, schema=["who", "what"], orient="row").with_columns(when=pl.Series([1, 2, 3, 4, 5] * 2))
    odd = frame.with_columns(
        tags=pl.Series([["x", "y"]] * 10), blob=pl.lit(b"\xff"), place=pl.struct(pl.lit(1).alias("lat"))
    )
    odd.write_parquet(tmp_path / "views.parquet")
    things = pl.DataFrame({"what": [*ITEMS], "name": [f"Thing {i}" for i in ITEMS], "tags": [["x"]] * 5})
    things.write_parquet(tmp_path / "things.parquet")
    found = own(tmp_path, "views.parquet", tables={"items": "things.parquet"})
    assert order(found) == IN_ORDER
    for role, message in (("user", r"List\(String\); save ids"), ("review", r"List\(String\); save it as text")):
        tables = {"items": "things.parquet", role: "tags"}
        refused(lambda tables=tables: own(tmp_path, "views.parquet", tables=tables), f"'tags' has type {message}")


# Ids

BAD_IDS = ["ann ", " ann", "\tann", "ann\u00a0", "a\u200bnn", "ann\x1fbob", "an  n", "a" * 257, "", "   ", "\ufeffann"]


@pytest.mark.parametrize("bad", BAD_IDS, ids=ascii)
@pytest.mark.parametrize("where", ["csv user", "csv item", "items", "parquet", "atomic", "atomic users", "movielens"])
def test_one_rule_for_ids(tmp_path, bad, where):
    if "\t" in bad and where.startswith("atomic"):
        return  # the tab would make another cell here
    expected = r"line 2: '?(who|what|user_id|item_id)'? is "
    if where in ("csv user", "csv item"):
        row = f'"{bad}",a,1\n' if where == "csv user" else f'u,"{bad}",1\n'
        refused(lambda: own(tmp_path, content=f"who,what,when\n{row}"), rf"views\.csv: {expected}")
    elif where == "items":
        (tmp_path / "things.csv").write_text(f'what,name\n"{bad}",Thing\n')
        refused(lambda: own(tmp_path, content=views(range(5))), rf"things\.csv: {expected}")
    elif where == "parquet":
        pl.DataFrame({"who": [bad], "what": ["a"], "when": [1]}).write_parquet(tmp_path / "views.parquet")
        refused(lambda: own(tmp_path, "views.parquet"), rf"views\.parquet: {expected.replace('line 2', 'row 1')}")
    elif where == "movielens":
        text = f'userId,movieId,rating,timestamp\n"{bad}",1,4,5\n'
        refused(lambda: movielens(tmp_path, {**CSV, "ratings.csv": text}), rf"ratings\.csv: {expected}")
    else:
        rows, items = [("u", i, 4, 5) for i in ITEMS], [(i, i, 1990, "Drama") for i in ITEMS]
        users = [(bad, "x")] if where == "atomic users" else []
        write_raw(tmp_path, rows if users else [(bad, "a", 4, 5)], items, users)
        refused(lambda: readers.read(entry(source={"folder": str(tmp_path)}), "toy"), rf"toy\.(user|inter): {expected}")


@pytest.mark.parametrize("good", ["ann", "Ann Lee", "a" * 256, "用户1", "0", "a-b_c@d.e", "🎬"])
def test_sound_ids_are_kept_as_they_are(tmp_path, good):
    content = views([1, 2, 3, 4, 5]).replace("u,", f"{good},")
    assert order(own(tmp_path, content=content)) == {good: ITEMS, "v": ITEMS}


def test_ids_of_amazon_keep_the_same_rule(tmp_path):
    import json

    write_amazon(tmp_path, reviews=2000, seed=1)
    file = tmp_path / "review_categories/Movies_and_TV.jsonl"
    lines = file.read_text().split("\n")
    for line, (key, bad) in enumerate(itertools.product(("user_id", "parent_asin"), ("A1 ", "A\u200b1", ""))):
        lines[line] = json.dumps({**json.loads(lines[line]), key: bad})
    file.write_text("\n".join(lines))
    settings = entry(
        reader="amazon-2023",
        category="Movies_and_TV",
        source={"folder": str(tmp_path)},
        columns={"title": "title"},
        max_bad=0.01,
    )
    (tmp_path / "scratch").mkdir()
    raw = readers.read(settings, "m", tmp_path / "scratch")
    for key, line in (("user_id", 1), ("parent_asin", 4)):
        assert any(
            f"line {line}: {key} is too long, or has blanks" in note and "2 such rows" in note for note in raw.notes
        )
        assert any(f"line {line + 2}: {key} is missing" in note for note in raw.notes)
    assert not raw.interactions["user_id"].str.contains(r"\s|\u200b").any()


def test_ids_of_other_types(tmp_path):
    frame = pl.DataFrame({"who": [1.0, 2.0], "what": ["a", "a"], "when": [1, 2]})
    frame.write_parquet(tmp_path / "views.parquet")
    refused(
        lambda: own(tmp_path, "views.parquet"), r"column 'who' has type Float64; save ids as text or as whole numbers"
    )
    write_raw(
        tmp_path / "x", [("u", i, 4, 5) for i in ITEMS], [(i, i, 1990, "D") for i in ITEMS], [("u", "x"), ("u", "y")]
    )
    refused(
        lambda: readers.read(entry(source={"folder": str(tmp_path / "x")}), "toy"),
        r"toy\.user: line 3: user 'u' occurs",
    )


# MovieLens

CSV = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.5,978300760\n2,20,0.5,978302109\n",
    "movies.csv": 'movieId,title,genres\n10,"American President, The (1995)",Comedy|War\n20,Heat (1995),Action\n',
}
DAT = {
    "ratings.dat": "1::10::5::978300760\n2::20::4::978301968\n",
    "movies.dat": "10::Misérables, Les (1995)::Drama|Musical\n20::Heat (1995)::Action\n",
}


def movielens(folder: Path, files: dict[str, str], packed: str | None = None, **extra: str):
    """MovieLens files in a folder, or in an archive with this name."""
    folder.mkdir(parents=True, exist_ok=True)
    if packed:
        with zipfile.ZipFile(folder / f"{packed}.zip", "w") as archive:
            for name, text in files.items():
                archive.writestr(f"{packed}/{name}", text)
    else:
        for name, text in files.items():
            (folder / name).write_text(text)
    settings = entry(reader="movielens", source={"folder": str(folder)}, rating_range=[0.5, 5.0])
    return readers.read(settings, "ml")


@pytest.mark.parametrize("packed", [None, "ml-25m"])
@pytest.mark.parametrize(
    "files",
    [
        {**CSV, "movies.csv": ",movieId,title,genres\n0,10,Heat (1995),Action\n1,20,Up (2009),Drama\n"},
        {**CSV, "movies.csv": "genres,title,movieId\nAction,Heat (1995),10\nDrama,Up (2009),20\n"},
        {**CSV, "ratings.csv": "movieId,userId,rating,timestamp\n10,1,4.5,978300760\n20,2,0.5,978302109\n"},
        {**CSV, "ratings.csv": "timestamp,rating,userId,movieId,x\n978300760,4.5,1,10,\n978302109,0.5,2,20,\n"},
        {**CSV, "movies.csv~": "movieId,title,genres\n10,Wrong (1990),War\n20,Wrong (1990),War\n"},
        {**CSV, "#movies.csv#": "x", "movies.csv.bak": "x", "ratings (copy).csv": "x"},
        {**CSV, "ratings.parquet": "x", "movies.json": "{}"},
        {**CSV, "users.csv": "x", "movies.dat": "x", "ratings.csv.gz": "x"},
    ],
    ids=str,
)
def test_movielens_goes_by_names(tmp_path, files, packed):
    raw = movielens(tmp_path, files, packed)
    assert raw.interactions.select("user_id", "item_id", "rating", "timestamp").rows() == [
        ("1", "10", 4.5, 978300760),
        ("2", "20", 0.5, 978302109),
    ]
    titles = raw.items_of()["title"].to_list()
    assert titles in (["Heat", "Up"], ["The American President", "Heat"])
    assert raw.users is None


def test_files_beside_an_archive_are_ignored(tmp_path):
    for name in ("ratings.parquet", "movies.json", "ratings.csv.zip.part"):
        (tmp_path / name).write_text("x")
    with zipfile.ZipFile(tmp_path / "backup.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    assert len(movielens(tmp_path, DAT, "ml-1m").interactions) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**CSV, "movies.csv": "id,title,genres\n10,Heat,Action\n"}, r"movies\.csv: column 'movieId' is missing"),
        ({"ratings.csv": CSV["ratings.csv"]}, r"expected a MovieLens archive .*found ratings\.csv"),
        ({}, "expected a MovieLens archive .*found nothing"),
        ({"rating.txt": "x", "films.csv": "x"}, r"found films\.csv, rating\.txt"),
        ({**CSV, **DAT}, r"ratings\.dat and .*ratings\.csv are there; keep one"),
        ({**DAT, "movies.dat": "10::Heat (1995)\n20::Up::Drama\n"}, r"movies\.dat: line 1: 2 cells, expected 3"),
        (
            {**DAT, "ratings.dat": "1::10::5::1\n1::20::5::2::x\n"},
            r"ratings\.dat: line 2: 5 cells, expected 4; a :: or",
        ),
        ({**CSV, "movies.csv": "movieId,title,genres\n10,Heat, the film,A\n"}, r"movies\.csv: line 2: 4 cells"),
    ],
)
def test_movielens_files_that_do_not_fit(tmp_path, files, message):
    refused(lambda: movielens(tmp_path, files), message)


def test_two_archives_are_one_too_many(tmp_path):
    movielens(tmp_path, DAT, "ml-1m")
    refused(lambda: movielens(tmp_path, CSV, "ml-25m"), r"ml-1m\.zip/.*ratings\.dat and .*25m\.zip/.*ratings\.csv are")
    movielens(tmp_path / "x", CSV)
    refused(lambda: movielens(tmp_path / "x", DAT, "ml-1m"), "keep one of them")


def test_movielens_20m_as_other_sites_serve_it(tmp_path):
    ratings = '"userId","movieId","rating","timestamp"\n1,2,3.5,"2005-04-02 23:53:47"\n1,29,3.5,"2005-04-02 23:31:16"\n'
    movies = '"movieId","title","genres"\n2,"Jumanji (1995)","Adventure|Fantasy"\n29,"Heat (1995)","Action"\n'
    others = dict.fromkeys(("tag.csv", "link.csv", "genome_scores.csv"), "x")
    raw = movielens(tmp_path, {"rating.csv": ratings, "movie.csv": movies, **others})
    assert raw.interactions["timestamp"].to_list() == [1112486027000000, 1112484676000000]
    assert raw.items_of()["title"].to_list() == ["Jumanji", "Heat"]


# Texts


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("loved it!<br /><br />The end", "loved it! The end"),
        ("&#34;best&#34; &quot;of&quot; &#x27;it&#x27;", '"best" "of" \'it\''),
        ("<p>One</p><p>Two <b>bold</b></p>", "One Two bold"),
        ('<a href="http://x.org/?a=1&amp;b=2">here</a>', "here"),
        ("&amp;quot;twice&amp;quot;", '"twice"'),
        ("&lt;p&gt;packed&lt;/p&gt;", "packed"),
        ("<!-- note -->text", "text"),
        ("caf&eacute;&nbsp;bar &hellip;", "café bar …"),
        ("<UL><LI>a<LI>b</UL>", "a b"),
        # Text that only looks like markup
        ("I <3 this & that", None),
        ("a < b and c > d", None),
        ("if a <b and c> d", None),
        ("<|im_end|> [CLS] </s>", None),
        ("<script>alert(1)</script>", None),
        ("R&D; AT&T; Smith &Sons; &notit;", None),
        ("x &amp y", None),
        ("  spaces   stay \n", None),
    ],
)
def test_texts_are_cleaned_once_for_all(text, plain):
    found = texts.without_html(pl.Series("text", [text, None, "other"]))
    assert found.to_list() == [text if plain is None else plain, None, "other"]
    assert texts.without_html(found).equals(found)


def item_texts(folder: Path, titles: list[str], price: str = "5") -> tuple[list[dict], dict[str, int]]:
    """Items and drops of tables whose items have these titles."""
    rows = [{"what": item, "name": title, "price": price} for item, title in zip(ITEMS, titles, strict=True)]
    pl.DataFrame(rows).write_csv(folder / "things.csv")
    settings, _ = own(folder, content=views([1, 2, 3, 4, 5]))
    settings = settings.model_copy(
        update={"columns": {"title": "name", "price": "price"}, "item_text": "{{ title }} ({{ price }})"}
    )
    done = protocols.prepare(readers.read(settings, "mine"), settings, "mine")
    return done.items.to_dicts(), done.facts["drops"]


def test_html_and_missing_values_do_not_reach_item_texts(tmp_path):
    titles = ["Tom &amp; Jerry", "Alien<br />3", "Babylon 5 ()", "None", "Death Note (2006-2007)"]
    items, drops = item_texts(tmp_path, titles, "None")
    assert [item["text"] for item in items] == ["Tom & Jerry", "Alien 3", "Babylon 5", "None", "Death Note (2006-2007)"]
    assert drops["(kept) items with HTML entities or tags, cleaned"] == 2
    assert drops["(kept) titles with empty brackets at the end, cleaned"] == 1
    assert drops["(kept) items with a field like 'None' for no value, emptied"] == 5


def test_titles_with_and_without_years(tmp_path):
    titles = {
        "Babylon 5 ()": ("Babylon 5", ""),
        "Babylon 5": ("Babylon 5", ""),
        "Death Note (2006-2007)": ("Death Note", "2006-2007"),
        "Death Note (2006–2007)": ("Death Note", "2006-2007"),
        "Big Bang Theory, The (2007-)": ("The Big Bang Theory", "2007-"),
        "Fargo (2014– )": ("Fargo", "2014-"),
        "(500) Days of Summer (2009) ": ("(500) Days of Summer", "2009"),
        "(2006-2007)": ("(2006-2007)", ""),
        "2001: A Space Odyssey (1968)": ("2001: A Space Odyssey", "1968"),
        "Tom &amp; Jerry &#40;1992&#41;": ("Tom & Jerry", "1992"),
        "Blade Runner (Final Cut) (1982)": ("Blade Runner (Final Cut)", "1982"),
    }
    movies = "".join(f'{i},"{title}",Drama\n' for i, title in enumerate(titles))
    ratings = "".join(f"{u},{i},4,{i}\n" for u in (1, 2) for i in range(len(titles)))
    raw = movielens(
        tmp_path,
        {"movies.csv": f"movieId,title,genres\n{movies}", "ratings.csv": f"userId,movieId,rating,timestamp\n{ratings}"},
    )
    items = raw.items_of().sort(pl.col("item_id").cast(pl.Int64))
    assert items.select("title", "year").rows() == list(titles.values())
    settings = entry(reader="movielens", source={"folder": str(tmp_path)})
    done = protocols.prepare(raw, settings, "ml")
    assert "()" not in "".join(done.items["text"])
    assert done.items["text"][0] == "Babylon 5. Genres: Drama"
    assert done.facts["drops"]["(kept) items without a year"] == 3
    assert done.facts["drops"]["(kept) items with HTML entities or tags, cleaned"] == 1


def test_lists_are_split_after_cleaning(tmp_path):
    (tmp_path / "things.csv").write_text(
        "what,name,kind\n" + "".join(f"{i},T,Sci-Fi &amp; Fantasy; War\n" for i in ITEMS)
    )
    settings, _ = own(tmp_path, content=views(range(5)))
    settings = settings.model_copy(update={"columns": {"title": "name", "genres": "kind"}, "lists": ["genres"]})
    assert readers.read(settings, "mine").items_of()["genres"][0] == "Sci-Fi & Fantasy, War"


def test_reviews_and_users_are_cleaned_and_counted(tmp_path):
    rows = "".join(f'{user},{item},{i % 5},"so &quot;good&quot;<br/>yes"\n' for i, (user, item) in enumerate(SEEN))
    rows = rows.replace('"so &quot;good&quot;<br/>yes"', "plain", 1)
    settings, raw = own(tmp_path, content="who,what,when,words\n" + rows, tables={"review": "words"})
    done = protocols.prepare(raw, settings, "mine")
    assert set(done.sessions["reviews"].explode()) == {"plain", 'so "good" yes'}
    assert done.facts["drops"]["(kept) reviews in histories with HTML entities or tags, cleaned"] == 7
    users = [("u", "executive &amp; manager"), ("v", "none")]
    folder = write_raw(
        tmp_path / "x", [(u, i, 4, k) for k, (u, i) in enumerate(SEEN)], [(i, i, 1990, "Drama") for i in ITEMS], users
    )
    settings = entry(source={"folder": str(folder)})
    done = protocols.prepare(readers.read(settings, "toy"), settings, "toy")
    assert done.users["occupation"].to_list() == ["executive & manager", "none"]


@pytest.mark.parametrize(
    ("source", "values", "text"),
    [
        ("{{ title }} ({{ year }}). G", {"title": "Babylon 5", "year": ""}, "Babylon 5. G"),
        ("{{ title }} [{{ year }}]", {"title": "X ()", "year": ""}, "X ()"),
        ("{{ title }} ({{ year }})", {"title": "X", "year": "1999"}, "X (1999)"),
        ("{{ title }}{% if year %}, {{ year }}{% endif %}", {"title": "X", "year": ""}, "X"),
        ("{{ year or 'unknown' }} {{ title|upper }}", {"title": "x", "year": ""}, "unknown X"),
        ("({{ title }} {{ year }})", {"title": "x", "year": ""}, "(x )"),
        ("{{ title }} ({{ year }})", {"title": "X", "year": None}, "X"),
    ],
)
def test_brackets_around_nothing_are_left_out(source, values, text):
    assert render(compile_template(source, "t"), "t", **values) == text
