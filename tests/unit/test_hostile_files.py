"""Files that are cut off, binary, deeply nested or of the wrong type: each reader accepts them or reports one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.config.models import DecoderEntry, EncoderEntry
from langptune.data import readers
from langptune.errors import UserError
from langptune.models.materialise import materialise
from tests.conftest import ROOT, entry, write_raw

ROWS = [(f"u{user}", item, item % 5 + 1, 880000000 + item * 10 + user) for user in range(3) for item in range(1, 6)]
ITEMS = [(item, f"Movie {item}, The", 1990 + item, "Drama Comedy") for item in range(1, 6)]
LONGEST = 1000
"""Maximum number of characters of an error line."""


def _atomic(folder: Path) -> dict:
    write_raw(folder, ROWS, ITEMS, [("u0", "artist"), ("u1", "lawyer"), ("u2", "writer")])
    return {}


MOVIELENS = {"reader": "movielens", "columns": {}, "lists": [], "rating_range": [0.5, 5]}


def _movielens_csv(folder: Path) -> dict:
    rows = "".join(f"{user[1:]},{item},{rating},{time}\n" for user, item, rating, time in ROWS)
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    rows = "".join(f'{item},"{title} ({year})",Drama|Comedy\n' for item, title, year, _ in ITEMS)
    (folder / "movies.csv").write_text("movieId,title,genres\n" + rows)
    return MOVIELENS


def _movielens_dat(folder: Path) -> dict:
    rows = "".join(f"{user[1:]}::{item}::{rating}::{time}\n" for user, item, rating, time in ROWS)
    (folder / "ratings.dat").write_text(rows)
    (folder / "movies.dat").write_text("".join(f"{item}::{title} ({year})::Drama\n" for item, title, year, _ in ITEMS))
    (folder / "users.dat").write_text("".join(f"{user}::F::1::10::48067\n" for user in range(3)))
    return MOVIELENS


def _movielens_zip(folder: Path) -> dict:
    _movielens_csv(folder)
    with zipfile.ZipFile(folder / "ml.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("ratings.csv", "movies.csv"):
            archive.write(folder / name, f"ml-25m/{name}")
            (folder / name).unlink()
    return MOVIELENS


def _tables(ending: str) -> Callable[[Path], dict]:
    def write(folder: Path) -> dict:
        for name, columns, rows in (("inter", "uirt", ROWS), ("items", ["i", "name"], [row[:2] for row in ITEMS])):
            frame = pl.DataFrame(rows, schema=list(columns), orient="row")
            text = frame.write_csv(separator="\t" if "tsv" in ending else ",").encode()
            if ending == "parquet":
                frame.write_parquet(folder / f"{name}.parquet")
            else:
                (folder / f"{name}.{ending}").write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
        names = {"interactions": f"inter.{ending}", "items": f"items.{ending}"}
        columns = {"user": "u", "item": "i", "timestamp": "t", "rating": "r"}
        fields = {"reader": "csv", "columns": {"title": "name"}, "lists": [], "item_text": "{{ title }}"}
        return {**fields, "tables": names | columns}

    return write


AMAZON = {"title": "title", "features": "features", "description": "description", "details": "details"}


def _amazon(ending: str) -> Callable[[Path], dict]:
    def write(folder: Path) -> dict:
        reviews = [
            {"user_id": user, "parent_asin": f"B{item}", "timestamp": 1600000000000 + time, "rating": 1.0, "text": "x"}
            for user, item, _, time in ROWS
        ]
        items = [
            {"parent_asin": f"B{item}", "title": title, "average_rating": 4.5, "features": ["a"], "details": {"a": 1}}
            for item, title, *_ in ITEMS
        ]
        for rows, name in ((reviews, "Cat"), (items, "meta_Cat")):
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            (folder / f"{name}.{ending}").write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
        text = "{{ title }} {{ features }} {{ description }} {{ details }}"
        fields = {"reader": "amazon-2023", "category": "Cat", "columns": AMAZON, "lists": [], "max_bad": 0.2}
        return {**fields, "item_text": text}

    return write


FORMATS: dict[str, Callable[[Path], dict]] = {
    "atomic": _atomic,
    "movielens csv": _movielens_csv,
    "movielens dat": _movielens_dat,
    "movielens zip": _movielens_zip,
    **{f"tables {ending}": _tables(ending) for ending in ("csv", "tsv", "csv.gz", "parquet")},
    **{f"amazon {ending}": _amazon(ending) for ending in ("jsonl", "jsonl.gz")},
}
SWAPS = [
    *((b"1", b"x"), (b"1", b"9" * 400), (b"1", b"1e999"), (b"1", b"nan"), (b",", b"," * 50), (b"\t", b"\t\t")),
    *((b"::", b":"), (b"Movie", b"M" * 100_000), (b"Movie", b"\x1b[2J\x07"), (b'"', b""), (b"u1", b""), (b"u1", b" ")),
    *((b"u1", "\u202e\U0001f600\u200b".encode()), (b"\n", b"\r"), (b"\n", b"\n\n\n")),
]
VALUES = ["null", "[]", "{}", "[[[[]]]]", "1e400", "true", '"\\ud800"', "9" * 30, "NaN", "[" * 5000 + "]" * 5000]


def damaged(content: bytes, file: Path, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Names and contents of damaged versions of a file."""
    size = len(content)
    for cut in (0, 1, 2, size // 3, size // 2, size - 9, size - 1):
        yield f"cut at {cut}", content[:cut]
    yield "random bytes", rng.randbytes(size)
    yield "a NUL", content[: size // 2] + b"\0" + content[size // 2 :]
    yield "not UTF-8", content[: size // 2] + b"\xe9\xff" + content[size // 2 :]
    yield "UTF-16", b"\xff\xfe" + content
    yield "deep", b"[" * 200_000 + b"\n"
    yield "lines alone", b"\n\n\n"
    for number in range(5):
        flipped = bytearray(content)
        for _ in range(rng.choice((1, 3, 10))):
            flipped[rng.randrange(size)] = rng.randrange(256)
        yield f"flipped {number}", bytes(flipped)
    for old, new in SWAPS:
        if old in content:
            yield f"{old!r} as {new[:9]!r}", content.replace(old, new)
    if file.name.endswith(".csv.gz"):
        for what, inner in damaged(gzip.decompress(content), file.with_suffix(""), rng):
            yield f"packed: {what}", gzip.compress(inner)
    if file.suffix == ".jsonl":
        for key in ("parent_asin", "timestamp", "text", "title", "details"):
            for value in VALUES:
                lines = [
                    json.dumps({**row, **({key: "@@"} if key in row else {})}).replace('"@@"', value)
                    for row in map(json.loads, content.splitlines())
                ]
                yield f"{key} as {value[:9]}", "\n".join(lines).encode()
    if file.suffix == ".zip":
        for place in range(0, size, max(1, size // 60)):
            flipped = bytearray(content)
            flipped[place] ^= 0xFF
            yield f"byte {place}", bytes(flipped)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("a/ratings.csv/", "")
            archive.writestr("a/movies.csv", "x")
        yield "a folder for a file", packed.getvalue()


def _is_a_line(error: UserError, *named: str) -> None:
    text = str(error)
    assert len(text) <= LONGEST and any(name in text for name in named), text[:2000]


@pytest.mark.parametrize("name", FORMATS)
def test_readers(name, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    dataset = entry(source={"folder": str(folder)}, **FORMATS[name](folder))
    rng = random.Random(0)

    def read() -> None:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        try:
            raw = readers.read(dataset, name, scratch)
            raw.items_of()
            raw.users_with_fields()
            if raw.reviews is not None:
                raw.reviews_of(raw.interactions["row"])
        finally:
            shutil.rmtree(scratch)

    read()
    refused = 0
    for file in sorted(folder.iterdir()):
        good = file.read_bytes()
        for what, content in damaged(good, file, rng):
            file.write_bytes(content)
            try:
                read()
            except UserError as error:
                _is_a_line(error, file.name, folder.name)
                refused += 1
            except Exception as error:
                pytest.fail(f"{file.name}, {what}: {type(error).__name__}: {error}")
        for make in (
            lambda file: None,
            lambda file: file.mkdir(),
            lambda file: os.mkfifo(file),
            lambda file: file.symlink_to(file),
        ):
            file.unlink()
            make(file)
            try:
                read()
            except UserError as error:
                _is_a_line(error, file.name, folder.name)
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            file.unlink(missing_ok=True)
            file.write_bytes(good)
    assert refused > 10


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + at)}: &{chr(98 + at)} [{','.join(['*' + chr(97 + at)] * 9)}]\n" for at in range(9)
)
YAML = {
    "a list": b"[1]",
    "nothing": b"",
    "binary": bytes(range(256)),
    "deep": b"a: " + b"[" * 3000 + b"]" * 3000,
    "deep blocks": b"".join(b" " * at + b"a:\n" for at in range(1500)),
    "a list as key": b"[1,2]: 3",
    "a mapping as key": b"{a: 1}: 3",
    "a merge with a number": b"<<: 1\na: 2",
    "a month 13": b"a: 2026-13-45",
    "an hour 99": b"a: 2001-12-14t21:59:43.10-99:99",
    "no hexadecimal digits": b"a: 0x",
    "no binary digits": b"a: 0b",
    "5000 digits": b"a: " + b"9" * 5000,
    "a point alone": b"a: -.",
    "python": b"a: !!python/object/apply:os.system [x]",
    "no number": b"a: !!int x",
    "no truth": b"a: !!bool x",
    "no time": b"a: !!timestamp x",
    "no base64": "a: !!binary \u00e9".encode(),
    "no such anchor": b"a: *b",
    "a key within itself": b"&a a: *a",
    "not UTF-8": b"a: \xe9",
    "UTF-16": "a: 1".encode("utf-16"),
    "two documents": b"a: 1\n---\nb: 2",
    "a character beyond Unicode": b'a: "\\U7fffffff"',
    "a version to come": b"%YAML 9.9\n---\na: 1",
}


@pytest.mark.parametrize("what", YAML)
def test_yaml(what, tmp_path):
    """Each file is refused in one line, as YAML or as a config."""
    file = tmp_path / "config.yaml"
    file.write_bytes(YAML[what])
    with pytest.raises(UserError) as error:
        load(read_yaml(file), ROOT, str(file))
    _is_a_line(error.value, str(file))


@pytest.mark.parametrize("make", [lambda file: file.mkdir(), lambda file: file.symlink_to(file)])
def test_yaml_that_is_not_a_file(make, tmp_path):
    make(tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize("key", ["datasets", "seeds", "sample", "studies", "overrides"])
def test_a_few_lines_of_yaml_that_stand_for_billions(key, tmp_path):
    """Nine aliases stand for 387 million texts: nothing expands them, not even the error line."""
    file = tmp_path / "config.yaml"
    file.write_text(f"{BOMB}{key}: *j\n")
    value = read_yaml(file)[key]
    with pytest.raises(UserError) as error:
        load({**read_yaml(ROOT / "config/smoke.yaml"), key: value}, ROOT, str(file))
    _is_a_line(error.value, key)


def _gguf(version: int, tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


KEY = struct.pack("<Q", 3) + b"abc"
GGUF = {
    "nothing": b"",
    "its name alone": b"GGUF",
    "half a header": _gguf(3, 0, 0)[:20],
    "random bytes": random.Random(0).randbytes(10_000),
    "another name": b"GGUX" + _gguf(3, 0, 0)[4:],
    "a version to come": _gguf(99, 0, 0),
    "no key and no tensor": _gguf(3, 0, 0),
    "more tensors than bytes": _gguf(3, 2**60, 0),
    "more keys than bytes": _gguf(3, 0, 2**60),
    "a key longer than the file": _gguf(3, 0, 1, struct.pack("<Q", 2**62) + b"abc"),
    "an array longer than the file": _gguf(3, 0, 1, KEY + struct.pack("<IIQ", 9, 9, 2**40) + bytes(1000)),
    "arrays in arrays": _gguf(3, 0, 1, KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000),
}


def _encoder(folder: Path, path: str) -> EncoderEntry:
    entry = dict(read_yaml(ROOT / "config/models.yaml")["smollm2-135m"])
    del entry["sha256"]
    return EncoderEntry.model_validate({**entry, "source": {"folder": str(folder), "path": path}})


@pytest.mark.parametrize("what", GGUF)
def test_gguf(what, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(GGUF[what])
    with pytest.raises(UserError) as error:
        materialise(_encoder(tmp_path, file.name), "mine", tmp_path / "out")
    _is_a_line(error.value, file.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


JSON = [
    b"",
    b"[]",
    b"1",
    b"null",
    b'"x"',
    b"[" * 100_000,
    b'{"hidden_size": "x"}',
    b'{"text_config": 1}',
    b"\xff\xfe{}",
]


@pytest.mark.parametrize("name", ["config.json", "modules.json", "config_sentence_transformers.json"])
@pytest.mark.parametrize("content", [*JSON, b'[{"type": 1}]', b'[{"path": ""}]', b'{"auto_map": 1, "model_type": []}'])
def test_a_models_own_settings(name, content, tmp_path):
    """A setting is accepted if nothing that is read contradicts the entry; otherwise it is refused in one line."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"x")
    (source / "config.json").write_text('{"hidden_size": 8}')
    (source / name).write_bytes(content)
    fields = {"role": "decoder", "title": "t", "source": {"folder": str(source)}, "licence": "none", "pooling": "mean"}
    fields |= {"dimensions": 8, "max_tokens": 16, "parameters": 1}
    try:
        materialise(DecoderEntry.model_validate(fields), "mine", tmp_path / "out")
    except UserError as error:
        _is_a_line(error, "mine")
