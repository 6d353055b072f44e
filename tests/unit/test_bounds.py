"""Archives, downloads and answers that would fill memory or never end are refused in one line, at little cost.

Readers run in a separate process, whose memory the system limits: an allocation of more than half a gigabyte beyond
the imports fails there. Servers are real ones on this machine.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager, suppress

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from langptune import allowed
from langptune.config.base import read_yaml, validate
from langptune.config.datasets import DatasetEntry
from langptune.data import bounded, fetch, jsonl
from langptune.data.reader_output import Problems
from langptune.data.readers import amazon, cells, movielens
from langptune.endpoint.answers import Request
from langptune.endpoint.client import TRIES, Client
from langptune.errors import UserError
from tests.conftest import ROOT
from tests.unit.test_answers import body, source

MB = 1 << 20
ENTRY = {
    **{"title": "t", "reader": "movielens", "licence": "none", "item_text": "{{ title }}", "prompt": "movies"},
    "protocol": {"name": "leave-one-out"},
}
CHILD = """
import resource, sys
from pathlib import Path
import polars as pl
from langptune.config.datasets import DatasetEntry
from langptune.data import jsonl
from langptune.data.reader_output import Problems
from langptune.data.readers import cells, movielens
from langptune.errors import UserError

pl.DataFrame({"a": ["1"]}).write_csv(), pl.read_csv(b"a,b\\n1,2\\n")
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (512 << 20),) * 2)
path = Path(sys.argv[1])
try:
    READ
except UserError as error:
    print(error)
"""


def read_in_child(code: str, path) -> str:
    """The output of a reader in a process with little memory; a traceback fails the test."""
    env = {**os.environ, "POLARS_MAX_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD.replace("READ", code), str(path)], text=True, capture_output=True, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def fill(stream, block: bytes, megabytes: int) -> None:
    block = block * (MB // len(block))
    for _ in range(megabytes):
        stream.write(block)


# --- archives and tables ---------------------------------------------------------------------------------------


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("ml/movies.dat", "1::A (1990)::Drama\n")
        with archive.open("ml/ratings.dat", "w") as stream:
            fill(stream, b"1::1::5::1234567\n", 400)
    assert (tmp_path / "ml.zip").stat().st_size < 4 * MB
    output = read_in_child(
        f"movielens.read_movielens(path, DatasetEntry(**{ENTRY!r}, source={{'folder': 'x'}}), None)", tmp_path
    )
    assert "ratings.dat" in output and "unpack to more than" in output and output.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a.csv.gz", "cells.read_file(path, ['a'])"),
        ("a.jsonl.gz", "list(jsonl.records(path, {'a': pl.String}, Problems(path, 0.1)))"),
    ],
)
def test_a_gzip_file_of_one_long_line_is_refused(name, code, tmp_path):
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as stream:
        fill(stream, b"a", 400)
    assert (tmp_path / name).stat().st_size < 4 * MB
    output = read_in_child(code, tmp_path / name)
    assert name in output and ("unpack to more than" in output or "line 1 is longer than 16,777,216 bytes" in output)


def test_many_short_lines_of_a_gzip_file_are_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "FREE", 10_000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": "x"}\n' * 10_000))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: \d+ bytes unpack to more than 10,000"):
        list(jsonl.records(path, {"a": pl.String}, Problems(path, 0.1)))
    path.write_bytes(gzip.compress(b'{"a": "x"}\n' * 900))
    assert len(pl.concat(jsonl.records(path, {"a": pl.String}, Problems(path, 0.1)))) == 900


def test_a_row_without_end_and_a_file_of_blank_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,"' + b"x\n" * (20 * MB))
    assert "line 2 is longer than" in read_in_child("cells.read_file(path, ['a'])", path)
    path.write_bytes(b"a,b\n" + b"\n" * (30 * MB) + b"1,2\n\r\n3,4\r\n\n")
    assert read_in_child("print(cells.read_file(path, ['a', 'b']).frame.rows())", path) == "[('1', '2'), ('3', '4')]\n"


def test_a_table_of_very_many_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"c{at}" for at in range(200_000)) + "\n")
    with pytest.raises(UserError, match="200000 columns, more than 10000; is the separator right"):
        cells.read_file(path, ["c1"])
    path.write_text("a" * 200_000 + ",b\n1,2\n")
    with pytest.raises(UserError, match=r"a\.csv: the header cannot be read \(field larger than"):
        cells.read_file(path, ["b"])


def test_a_parquet_file_of_equal_cells(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"a": pl.repeat(7, 10_000_000, dtype=pl.Int64, eager=True)}).write_parquet(path)
    assert path.stat().st_size < MB
    with pytest.raises(UserError, match=r"a\.parquet: [\d,]+ bytes unpack to more than 67,108,864"):
        cells.read_file(path, ["a"])
    cells_of_a_megabyte = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["a" * MB]))
    pq.write_table(pa.table({"a": cells_of_a_megabyte}), path)
    assert path.stat().st_size < MB
    with pytest.raises(UserError, match=r"a\.parquet: [\d,]+ bytes unpack to more than 67,108,864"):
        cells.read_file(path, ["a"])


def test_metadata_with_brackets_in_brackets_is_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"parent_asin":"B1","title":"x","deep":' + "[" * 990 + "]" * 990 + "}\n")
    read = jsonl.records(path, {"parent_asin": pl.String, "title": pl.String}, Problems(path, 1.0), whole=True)
    items = pl.concat(read).rename({"parent_asin": "item_id"})
    with pytest.raises(UserError, match="line 1: brackets are nested too deeply; remove the line"):
        amazon._finish(items, {"title": "title"})


def entry(**changes) -> DatasetEntry:
    return validate(DatasetEntry, {**ENTRY, "source": {"folder": "x"}, **changes}, "datasets.yaml: x")


def archive_of(tmp_path, method=zipfile.ZIP_DEFLATED, **names: str):
    path = tmp_path / "ml.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in names.items():
            archive.writestr(name.replace("__", ".").replace("_", "/"), content)
    return path


def test_archives_that_are_packed_or_damaged_otherwise(tmp_path):
    content = {"ml_movies__dat": "1::A (1990)::Drama\n" * 200, "ml_ratings__dat": "1::1::5::1\n" * 200}
    archive_of(tmp_path, zipfile.ZIP_BZIP2, **content)
    with pytest.raises(UserError, match=r"ratings\.dat: packed by a method other than deflate"):
        movielens.read_movielens(tmp_path, entry(), None)
    whole = archive_of(tmp_path, **content).read_bytes()
    # Flipped bytes in the packed content, and names that are not UTF-8, each give one line.
    for at in [*range(0, len(whole), 7)]:
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        (tmp_path / "ml.zip").write_bytes(broken)
        try:
            movielens.read_movielens(tmp_path, entry(), None)
        except UserError as error:
            assert "\n" not in str(error)


def test_many_folders_in_an_archive_are_looked_at_once(tmp_path):
    def seconds(folders: int) -> float:
        with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
            for at in range(folders):
                archive.writestr(f"{at}/x", "")
        least = 1e9
        for _ in range(3):
            start = time.thread_time()
            with pytest.raises(UserError, match="expected a MovieLens archive"):
                movielens.read_movielens(tmp_path, entry(), None)
            least = min(least, time.thread_time() - start)
        return least

    seconds(10)
    assert seconds(2000) < 8 * seconds(500)


# --- downloads -------------------------------------------------------------------------------------------------


class Site(http.server.BaseHTTPRequestHandler):
    """A site whose responses the function ``says`` of its server writes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(dict(self.headers))
        size = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(size)
        self.close_connection = True
        with suppress(OSError):  # the client closed the connection, as it should
            self.server.says(self)

    do_POST = do_GET

    def log_message(self, *_):
        pass

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")  # otherwise a client might reuse the connection while it closes
        self.end_headers()


@contextmanager
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    server.asked, server.says = [], lambda handler: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


WHOLE = b"PK" + bytes(range(256)) * 40


@pytest.fixture
def download(tmp_path):
    with site() as server:

        def get(says, have: bytes = b"", digest: str = hashlib.sha256(WHOLE).hexdigest()):
            server.says, server.asked = says, []
            settings = entry(source={"url": f"{server.url}/ml.zip"}, sha256={"ml.zip": digest})
            part = tmp_path / ".raw.part"
            part.mkdir(exist_ok=True)
            if have:
                (part / "ml.zip.incomplete").write_bytes(have)
            return fetch.fetch(settings, "x", tmp_path / "raw", lambda _: None)

        get.part = tmp_path / ".raw.part"
        yield get


def send(content: bytes, status: int = 200, **headers):
    def says(handler):
        handler.head(status, **{"Content_Length": len(content), **headers})
        handler.wfile.write(content)

    return says


def test_a_download_goes_on_where_it_stopped(download, tmp_path):
    rest = send(WHOLE[100:], 206, Content_Range=f"bytes 100-{len(WHOLE) - 1}/{len(WHOLE)}")
    download(rest, have=WHOLE[:100])
    assert (tmp_path / "raw/ml.zip").read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("bytes 0-{last}/{size}", r"bytes from 100 on were asked for, the server sends 0 to"),
        ("bytes 100-200/{size}", r"asked for, the server sends 100 to 200 of"),
        ("pages 100-{last}/{size}", r"asked for, the server sends None"),
    ],
)
def test_another_range_than_was_asked_for_is_refused(header, message, download):
    header = header.format(last=len(WHOLE) - 1, size=len(WHOLE))
    with pytest.raises(UserError, match=message):
        download(send(WHOLE, 206, Content_Range=header), have=WHOLE[:100])
    assert (download.part / "ml.zip.incomplete").read_bytes() == WHOLE[:100]


def test_a_page_in_place_of_the_archive_is_not_kept(download, tmp_path):
    with pytest.raises(UserError, match=r"/ml\.zip: SHA-256 is \w+\.\.\., expected .*, and was removed"):
        download(send(b"<html>Sign in</html>"))
    assert not (tmp_path / "raw").exists() and not list(download.part.iterdir())
    download(send(WHOLE))
    assert (tmp_path / "raw/ml.zip").read_bytes() == WHOLE


def test_a_longer_file_than_any_is_not_taken(download, monkeypatch):
    monkeypatch.setattr(fetch, "LARGEST", 50_000)
    with pytest.raises(UserError, match=r"2,000,000,000 bytes are more than the 50,000 of any dataset"):
        download(lambda handler: handler.head(200, Content_Length=2_000_000_000))

    def endless(handler):
        handler.head(200, Connection="close")
        while True:
            handler.wfile.write(b"x" * 10_000)

    with pytest.raises(UserError, match=r"more than 50,000 bytes came"):
        download(endless)
    assert (download.part / "ml.zip.incomplete").stat().st_size <= 50_000


def test_a_download_that_hardly_comes_or_comes_packed_ends(download, monkeypatch):
    monkeypatch.setattr(fetch, "STALLED", 0.2)

    def trickle(handler):
        handler.head(200, Content_Length=10_000)
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)

    with pytest.raises(UserError, match=r"less than 1000 bytes a second come"):
        download(trickle)
    with pytest.raises(UserError, match=r"sent as gzip, which was not asked for"):
        download(send(gzip.compress(b"x" * MB), Content_Encoding="gzip"))


def test_an_address_needs_a_hash_and_a_name():
    url = "https://files.grouplens.org/datasets/movielens/ml-10m.zip"
    with pytest.raises(
        UserError, match=r"'url' needs 'sha256: \{ml-10m\.zip: \.\.\.\}', the 64 digits that `sha256sum`"
    ):
        entry(source={"url": url})
    with pytest.raises(UserError, match=r"needs 'sha256"):
        entry(source={"url": url}, sha256={"ml-10m.zip": "0" * 63})
    for bad in ("https://x/..", "https://x/", "file:///etc/passwd", "https://x/a.zip?b=1", "https://x/a b.zip"):
        with pytest.raises(UserError, match=r"must be http\(s\) and end in the archive's file name"):
            entry(source={"url": bad}, sha256={"a.zip": "0" * 64})
    for name, shipped in read_yaml(ROOT / "config/datasets.yaml").items():
        assert "url" not in shipped["source"] or all(len(one) == 64 for one in shipped["sha256"].values()), name


@pytest.mark.parametrize("name", ["../../home/x/.bashrc", "/etc/passwd", "a/../../b"])
def test_files_of_the_hub_stay_in_their_folder(name):
    hub = {"hub": "a/b", "revision": "0" * 40, "files": ["a.jsonl"]}
    for change in ({"files": [name]}, {"path": name}):
        with pytest.raises(UserError, match=r"leaves the repository: give names below it"):
            entry(source={**hub, **change})


# --- answers of an endpoint ------------------------------------------------------------------------------------

ASK = Request((("user", "What do I like?"),), 4)


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("DOOR_KEY", "sk-of-this-test-0123456789")
    with site() as server:
        monkeypatch.setenv(allowed.VARIABLE, f"{server.url}/v1=DOOR_KEY")

        def client(says, max_usd=None, **changes):
            server.says = says
            settings = {"timeout": 30, "retries": 0, "parallel": 1, **changes}
            return Client(source(f"{server.url}/v1", **settings), tmp_path / "answers", max_usd=max_usd)

        client.server = server
        yield client


def say(body, status=200, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return send(content, status, **{"Content_Type": "application/json", **headers})


def drip(what: str):
    """A response that is sent byte by byte: ``head`` from its first byte on, ``body`` from the body's first byte on."""

    def says(handler):
        content = json.dumps(body()).encode()
        if what == "head":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            content = b"X-Padding: " + b"x" * 1000
        else:
            handler.head(200, Content_Length=len(content))
        for at in range(len(content)):
            handler.wfile.write(content[at : at + 1])
            handler.wfile.flush()
            time.sleep(0.25)

    return says


@pytest.mark.parametrize("what", ["head", "body"])
def test_an_answer_that_trickles_ends_at_its_time_limit(what, endpoint):
    client = endpoint(drip(what), timeout=1)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer within 1 s; raise 'timeout'"):
        client.ask([ASK])
    # The whole answer would take minutes, although each byte arrives well within the limit.
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_beyond_its_limit_on_tokens_is_not_kept(packed, endpoint, tmp_path):
    content = json.dumps(body("a" * (20 * MB))).encode()
    headers = {"Content_Encoding": "gzip"} if packed else {}
    client = endpoint(say(gzip.compress(content) if packed else content, **headers))
    (answer,) = client.ask([ASK])
    assert answer.fault == "overlong" and not answer.text and len(endpoint.server.asked) == 1
    assert not list((tmp_path / "answers").rglob("*.json"))
    # The answer is charged at its maximum length, and the next run counts this.
    assert client.spent.usd == pytest.approx(ASK.tokens + 4)
    again = endpoint(say(body()), max_usd=2 * (ASK.tokens + 4) - 1)
    with pytest.raises(UserError, match="nothing was sent"):
        again.ask([ASK])
    assert len(endpoint.server.asked) == 1


def test_a_text_that_its_tokens_cannot_be_is_not_kept(endpoint):
    client = endpoint(say(body("a" * 5000)))
    (answer,) = client.ask([ASK])
    assert (answer.fault, answer.why) == ("overlong", "5,000 characters for 4 tokens")
    with pytest.raises(UserError, match="the server does not keep to max_tokens"):
        client.few_faults([answer])
    (answer,) = endpoint(say(body("a" * 1000))).ask([ASK])
    assert answer.text == "a" * 1000


def test_redirects_and_codecs_are_bounded_too(endpoint):
    def forever(handler):
        handler.head(302, Location=f"{endpoint.server.url}/other", Connection="close")
        while True:
            handler.wfile.write(b"x" * 100_000)

    try:
        (answer,) = endpoint(forever).ask([ASK])
        assert answer.fault == "overlong"
    except UserError:
        pass  # refused as a redirect without being read
    bomb = json.dumps({"error": {"message": "Half a gigabyte"}}).encode()
    with pytest.raises(UserError, match=r"refused the request \(400: Half a gigabyte\)"):
        endpoint(say(bomb, 400, Content_Type="application/json; charset=zlib")).ask([ASK])


NESTED = b'{"choices":[{"message":{"content":' + b"[" * 700 + b"]" * 700 + b'},"finish_reason":"stop"}],"usage":{}}'
ODD = [
    body(usage={"prompt_tokens": -1_000_000, "completion_tokens": -1_000_000}),
    json.dumps(body(usage={"prompt_tokens": float("nan"), "completion_tokens": float("nan")})).encode(),
    body(usage={}),
    body(usage=None),
    body(usage={"prompt_tokens": 1e308, "completion_tokens": "3"}),
    body("West\ud800erns."),
    body([{"type": "text", "text": "West\udfff"}]),
    {**body(), "model": "m\ud800"},
]
USELESS = [
    body("\x00" * 9000),
    body("", usage={}),
    body(None, usage={"prompt_tokens": float("inf"), "completion_tokens": -5}, reasoning="Hm\ud800"),
    NESTED,
    body("x", reason="\ud800"),
]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_answer_is_paid_for_once_in_three_runs(odd, endpoint):
    for run in range(3):
        client = endpoint(say(odd), max_usd=40.0)
        (answer,) = client.ask([ASK])
        assert answer.text and answer.prompt_tokens > 0 <= answer.tokens and client.spent.requests == (run == 0)
        assert client._before + client.spent.usd > 0, "what was paid counts"
    assert len(endpoint.server.asked) == 1


@pytest.mark.parametrize("useless", USELESS)
def test_the_cap_holds_over_runs_that_get_nothing_to_use(useless, endpoint):
    most, runs = 25.0, []
    for _ in range(3):
        client = endpoint(say(useless), max_usd=most)
        try:
            (answer,) = client.ask([ASK])
            assert answer.fault and not answer.text
        except UserError as error:
            assert "max_usd" in str(error)
        runs.append(len(endpoint.server.asked))
    # Each answer may cost 12 USD: the third run counts what the others paid, and sends nothing.
    assert runs[0] <= TRIES and runs[2] == runs[1] <= TRIES
    assert client._before <= most + 12


def test_kept_answers_that_someone_changed_are_asked_for_again(endpoint, tmp_path):
    endpoint(say(body())).ask([ASK])
    (kept,) = (tmp_path / "answers").rglob("*.json")
    content = json.loads(kept.read_text())
    changes = [{"tokens": -1_000_000}, {"prompt_tokens": float("nan")}, {"text": "a" * 9000}, {"tokens": None}]
    for asked, change in enumerate(changes, start=2):
        kept.write_text(json.dumps({**content, "answer": {**content["answer"], **change}}))
        client = endpoint(say(body()))
        assert client.ask([ASK])[0].text == "Westerns." and client.spent.requests == 1
        assert len(endpoint.server.asked) == asked
    with kept.open("ab") as file:
        file.truncate(1 << 30)  # the archive is followed by a gigabyte of zeros
    assert endpoint(say(body())).cache.known(ASK) is None
