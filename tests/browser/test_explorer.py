"""The explorer on finished results: pages in Chromium, numbers against the benchmark's files, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.explorer.access import CONNECTIONS
from langptune.explorer.differences import differences
from langptune.explorer.finished import Finished
from langptune.explorer.server import WORKERS
from langptune.explorer.titles import Titles, key
from tests.conftest import ROOT

DATASET = "ml-100k-small"
MODELS = "smollm2-135m+minilm-l6"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</textarea><b>out</b>",
    "{{7*7}} ${7*7} {% raw %}",
    "W" * 180,
    "\u202egnp.exe & &amp; <!--",
]


def real(test):
    """Marks of a test that needs a finished run."""
    for name in ("browser", "models", "workflow"):
        test = getattr(pytest.mark, name)(test)
    return test


# ---- fixtures


def script(repo: Path, *args: str) -> subprocess.Popen:
    """scripts/explore.py of a repository."""
    command = [sys.executable, str(repo / "scripts" / "explore.py"), *args]
    there = {**os.environ, "PYTHONPATH": str(repo / "src")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=repo, env=there, text=True, **pipes)


class Address(str):
    """Of a server, as links have it; ``token`` is what its terminal printed besides, ``pid`` its process."""

    token, pid = "", 0


def printed(server: subprocess.Popen) -> Address:
    """The address that a script prints."""
    line = server.stdout.readline()
    found = re.search(r"(http://127\.0\.0\.1:\d+/)(?:\?token=([\w-]{43}))? ", line)
    assert found, line + server.stderr.read()
    out = Address(found[1])
    out.token, out.pid = found[2] or "", server.pid
    return out


def ended(server: subprocess.Popen) -> None:
    server.send_signal(signal.SIGINT)  # Ctrl-C
    output = server.communicate(timeout=120)[1]
    assert server.returncode == 0 and not output, output


@pytest.fixture(scope="module")
def address(smoke_run):
    """The script itself, serving the finished run."""
    server = script(smoke_run, "--config", str(smoke_run / "config/smoke.yaml"), "--port", "0")
    out = printed(server)
    assert out.token
    # The first answer waits for torch and two decoders: no browser's time limit is about that.
    assert ask(out, "GET", "/api/view")[0] == 200
    yield out
    ended(server)


def copy_of(smoke_run: Path, target: Path) -> Finished:
    """The same results once more, to be changed; files are shared until they are replaced."""
    config = read_yaml(smoke_run / "config/smoke.yaml") | {"registries": str(smoke_run / "config")}
    source = smoke_run / config["results"] / DATASET
    shutil.copytree(source, target / config["results"] / DATASET, copy_function=os.link)
    (target / config["models_dir"]).symlink_to((smoke_run / config["models_dir"]).resolve())
    return Finished(load(config, target), target)


@pytest.fixture(scope="module")
def finished(smoke_run) -> Finished:
    """The finished run, read in this process."""
    config = read_yaml(smoke_run / "config/smoke.yaml") | {"registries": str(smoke_run / "config")}
    return Finished(load(config, smoke_run), smoke_run)


@pytest.fixture(scope="module")
def explorer(finished):
    """The code behind the pages, without a server."""
    from langptune.explorer.live import Live
    from langptune.explorer.views import Explorer

    return Explorer(finished, Live(finished, 2**31))


@pytest.fixture(scope="module")
def hostile(smoke_run, tmp_path_factory):
    """A server on results whose titles and profiles are attacks."""
    from langptune.explorer.access import new_token, server
    from langptune.explorer.live import Live
    from langptune.explorer.server import HOST, app
    from langptune.explorer.views import Explorer

    there = copy_of(smoke_run, tmp_path_factory.mktemp("hostile"))
    path = there.path(there.layout.data_file(DATASET, "items"))
    items = pl.read_parquet(path)
    bad = [HOSTILE[item % len(HOSTILE)] + f" {item}" for item in range(len(items))]
    rewrite(items.with_columns(title=pl.Series(bad), genres=pl.Series(bad).str.slice(0, 50)), path)
    for path in there.path("results/smoke").rglob("profiles/test.parquet"):
        profiles = pl.read_parquet(path)
        words = [" ".join(HOSTILE) if row % 2 else HOSTILE[row % len(HOSTILE)] for row in range(len(profiles))]
        rewrite(profiles.with_columns(profile=pl.Series(words)), path)
    sock = socket.create_server((HOST, 0))
    url = Address(f"http://{HOST}:{sock.getsockname()[1]}/")
    url.token = new_token()
    serving = server(app(Explorer(there, Live(there, 2**31)), url.token))
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    yield url, there
    serving.should_exit = True
    thread.join(10)


def rewrite(table: pl.DataFrame, path: Path) -> None:
    path.unlink()  # what it is linked to stays as it is
    table.write_parquet(path)


def run_key(method: str, seed: int = 0, models: str = MODELS) -> str:
    return f"{method}/{models}/{seed}"


def opened(page, url: str, **state: str):
    """The page, once its lists are there."""
    from urllib.parse import urlencode

    asked = ({"token": url.token} if isinstance(url, Address) else {}) | state
    page.goto(f"{url}?{urlencode(asked)}" if asked else url)
    page.locator(".list.right li").first.wait_for(timeout=60_000)
    return page


def titles(page, side: str) -> list[str]:
    names = page.locator(f".list.{side} li .name").all()
    return [name.evaluate("node => node.firstChild.data") for name in names]


def named(data, item: int) -> str:
    row = data.item(item)
    return row["title"] + (f" ({row['year']})" if row["year"] else "")


def number(page, side: str) -> int:
    return int(page.locator(f".list.{side} .number").inner_text().replace(",", ""))


def expect(*args):
    from playwright.sync_api import expect

    return expect(*args)


def ask(address: str, method: str, path: str, body: str | None = None, **headers: str):
    """Status, headers and body of one request, with headers that a browser would not let a page set."""
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=600)
    known = getattr(address, "token", "")
    sent = {"cookie": f"langptune-explorer-{port}={known}"} if known else {}
    connection.request(method, path, body, sent | {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    out = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return out


# ---- words and titles


def test_differences_keep_both_texts():
    parts = differences("Likes dark, slow films.", "Likes bright, slow films and war.")
    assert ("-", "dark", "") in parts and ("+", "", "bright") in parts and ("+", "", "and war") in parts
    assert "".join(before for _, before, _ in parts) == "Likes dark, slow films."
    assert "".join(after for _, _, after in parts) == "Likes bright, slow films and war."
    assert [kind for kind, *_ in differences("one two three four five", "the same as nothing five")] == ["-", "+"]
    assert differences("", "") == []


def test_titles_are_found_as_people_type_them():
    catalogue = Titles(
        ["The Shawshank Redemption", "Blade Runner", "Les Misérables", "Les Misérables", "Fargo"],
        ["1994", "1982", "1995", "1998", "1996"],
    )
    assert key("Shawshank Redemption, The (1994)") == "shawshank redemption"
    for line in ("shawshank redemption, the", "The Shawshank Redemption (1994)", "  SHAWSHANK REDEMPTION | 4.5 "):
        assert catalogue.match(line).item == 0, line
    assert catalogue.match("fargo | 4.5").rating == 4.5
    assert catalogue.match("les miserables (1998)").item == 3
    twice = catalogue.match("Les Miserables")
    assert twice.item is None and twice.near == [2, 3]
    for line in ("Blade Runer", "Blade Runner: The Final Cut"):
        near = catalogue.match(line)
        assert near.item is None and near.near == [1], line
    other_year = catalogue.match("Fargo (1950)")
    assert other_year.item is None and other_year.near == [4]
    assert catalogue.match("qqqq").near == [] and catalogue.match("").item is None


# ---- the script


def test_nothing_finished_is_one_line(tmp_path):
    config = read_yaml(ROOT / "config/smoke.yaml") | {"results": str(tmp_path / "none")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for extra, message in (
        ([], "run `make demo"),
        (["--dataset", "ml-100k-smal"], "did you mean 'ml-100k-small'?"),
    ):
        done = script(ROOT, "--config", str(tmp_path / "config.yaml"), *extra)
        out, err = done.communicate(timeout=60)
        assert done.returncode == 2 and not out
        assert err.startswith("error: ") and message in err and err.count("\n") == 1, err


@real
def test_a_taken_port_is_one_line(smoke_run, address):
    port = address.rstrip("/").rsplit(":", 1)[1]
    done = script(smoke_run, "--config", str(smoke_run / "config/smoke.yaml"), "--port", port)
    assert "Address already in use" in done.communicate(timeout=60)[1] and done.returncode == 2


# ---- numbers


@real
def test_ranks_and_lists_are_those_of_the_benchmark(explorer, finished, one_thread):
    data = finished.data(DATASET)
    assert data.ids
    apart = compared = 0
    choices = finished.choices(DATASET)[0]
    assert {choice.kind for choice in choices} == {"profiles", "shuffled", "text", "stored"}
    for choice in [choice for choice in choices if choice.run.seed == 0 or not choice.live]:
        stored = pl.read_parquet(finished.path(finished.layout.ranks_of(choice.run)))
        for session in data.ids[::3]:
            row = stored.filter(pl.col("session") == session).row(0, named=True)
            side = explorer._side(data, choice, session, [])
            assert side["rank"] == row["rank"] and "error" not in side
            assert not {item["item"] for item in side["list"]} & set(data.session(session)["seen"])
            assert [item["place"] for item in side["list"] if item["target"]] == [
                place for place, item in enumerate(row["top"][:20], 1) if item == row["target"]
            ]
            if choice.live:
                compared += 1
                # One text alone is rounded otherwise than in a batch: neighbours of nearly one score may change places.
                assert abs(side["here"] - row["rank"]) <= 2, choice
                apart += side["here"] != row["rank"]
                assert {item["item"] for item in side["list"]} <= set(row["top"][:25])
    assert compared >= 28 and apart <= 2


@real
def test_a_typed_history_gets_the_profile_that_the_workflow_wrote(explorer, finished, one_thread):
    from langptune.explorer.live import Cancelled

    data, stages = finished.data(DATASET), []
    choice = explorer.choice(DATASET, run_key("langptune-0"))
    row = data.session(data.ids[0])
    own = list(zip(row["history"], row["ratings"], strict=True))
    text, source = explorer.live.write(choice, own, lambda *progress: stages.append(progress), threading.Event())
    assert text == finished.text(choice, data.ids[0]).text and "untrained" in source
    assert stages[0] == ("loading", 0, 8) and stages[-1][0] == "writing"
    assert explorer._text(data, choice, None, own)[0] == text
    gone, steps = threading.Event(), []

    def leave(stage: str, done: int, of: int) -> None:
        steps.append(done)
        if (stage, done) == ("writing", 2):
            gone.set()

    with pytest.raises(Cancelled):
        explorer.live.write(choice, own[:-1], leave, gone)
    assert max(steps) == 2
    assert explorer.live.written(choice, own[:-1]) is None


@real
def test_a_client_that_disconnects_ends_the_writing(explorer, finished):
    from langptune.explorer.server import _writing

    choice, own = explorer.choice(DATASET, run_key("langptune-0")), [(0, 5.0)]

    async def leave() -> str:
        lines = _writing(explorer.live, choice, own)
        first = await anext(lines)
        await lines.aclose()
        return first

    assert json.loads(asyncio.run(leave()))["stage"] == "loading"
    with explorer.live._writing:  # the writer has let go
        assert explorer.live.written(choice, own) is None


@real
def test_profiles_are_written_by_few_threads(explorer, finished):
    from langptune.explorer.live import WRITERS
    from langptune.explorer.server import _writing

    choice = explorer.choice(DATASET, run_key("langptune-0"))

    async def first() -> dict:
        lines = _writing(explorer.live, choice, [(0, 5.0)])
        line = json.loads(await anext(lines))
        await lines.aclose()
        return line

    for _ in range(WRITERS):
        assert explorer.live.writers.acquire(timeout=30)
    assert "too many profiles" in asyncio.run(first())["error"]
    for _ in range(WRITERS):
        explorer.live.writers.release()
    for _ in range(WRITERS + 1):
        assert asyncio.run(first())["stage"] in ("loading", "waiting", "writing")
        with explorer.live._writing:  # the writer has let go
            pass


@real
def test_missing_runs_are_left_out_and_named(smoke_run, tmp_path, explorer):
    from langptune.explorer.views import Explorer

    there = copy_of(smoke_run, tmp_path)
    by_key = {choice.key: choice for choice in there.choices(DATASET)[0]}
    shutil.rmtree(there.path(there.layout.run_decoder(by_key[run_key("langptune-cl", 1)].run)))
    there.path(there.layout.ranks_of(by_key["ease/EASE/0"].run)).unlink()
    broken = there.path(there.layout.run_profiles(by_key[run_key("langptune-0")].run))
    broken.unlink()
    broken.write_bytes(b"PAR1")
    found, notes = there.choices(DATASET)
    kinds = {choice.key: choice.kind for choice in found}
    assert "ease/EASE/0" not in kinds and kinds[run_key("langptune-cl", 1)] == "stored"
    assert any(note.startswith("EASE") and "not finished" in note for note in notes)
    assert any("decoder not there, so only its stored lists" in note for note in notes)
    session = there.data(DATASET).ids[0]
    side = Explorer(there, explorer.live)._side(there.data(DATASET), by_key[run_key("langptune-0")], session, [])
    assert str(broken) in side["error"] and "list" not in side
    shutil.rmtree(there.path(f"results/smoke/{DATASET}/data"))
    assert there.datasets() == []


# ---- in the browser


@real
def test_read_edit_share(address, page, explorer, finished):
    opened(page, address)
    data = finished.data(DATASET)
    session = data.random(0)
    assert f"session={session}" in page.url
    for side, method in (("left", "langptune-0"), ("right", "langptune")):
        choice = explorer.choice(DATASET, run_key(method))
        assert page.locator(f"#{side}").input_value() == choice.key
        stored = finished.stored(choice, session)
        assert number(page, side) == stored["rank"]
        assert titles(page, side) == [named(data, item) for item in stored["top"][:20]]
        assert page.locator(f".side.{side} .text").inner_text().strip() == finished.text(choice, session).text
    assert page.locator("#text").input_value() == finished.text(choice, session).text
    row = data.session(session)
    expect(page.locator("#target")).to_contain_text(named(data, row["target"]))

    # One that moves the target.
    texts = ["Likes science fiction of the 1980s, with robots and war.", "Loves musicals.", "Loves film noir."]
    rankings = {text: explorer.live.rank(choice, text, row["seen"], row["target"]) for text in texts}
    text = next(text for text in texts if rankings[text].rank != stored["rank"])
    ranked = rankings[text]
    page.locator("#text").fill(text)
    expect(page.locator("#moved")).to_contain_text(f"Target at {ranked.rank} of", timeout=20_000)
    wanted = [named(data, item) for item in ranked.order[:20].tolist()]
    assert number(page, "right") == ranked.rank and titles(page, "right") == wanted
    assert f"was {stored['rank']:,}" in page.locator(".list.right .rank").inner_text()
    assert page.locator(".list.right .move").count() == 20
    assert page.locator("#changed ins").count() and page.locator("#changed del").count()
    assert "text=" in page.url
    page.locator("#wish button").first.click()
    expect(page.locator("#text")).to_have_value(f"{text} Likes {data.words[0]}.")
    expect(page.locator("#changed")).to_contain_text(f"Likes {data.words[0]}", timeout=20_000)
    link, moved = page.url, titles(page, "right")

    opened(page, link)
    assert titles(page, "right") == moved and page.locator("#text").input_value().startswith(text)
    page.locator("#undo").click()
    expect(page.locator(".list.right .move")).to_have_count(0)
    assert number(page, "right") == stored["rank"] and "text=" not in page.url


@real
def test_two_methods_side_by_side(address, page, explorer, finished):
    data = finished.data(DATASET)
    runs = [explorer.choice(DATASET, run_key(name)) for name in ("shuffled-profiles", "langptune-0")]

    def shared(session: int) -> bool:
        kinds = {kind for kind, *_ in differences(*(finished.text(run, session).text for run in runs))}
        return kinds == {"=", "-", "+"}

    session = next(session for session in data.ids if shared(session))
    opened(page, address, session=str(session), left="oracle/oracle/0", right="history/minilm-l6/0")
    assert number(page, "left") == 1
    expect(page.locator(".list.left li.target")).to_have_count(1)
    expect(page.locator(".list.left li").first).to_contain_text("target")
    page.locator("#left").select_option(run_key("shuffled-profiles"))
    expect(page.locator(".side.left > .facts")).to_contain_text("Another user's profile", timeout=20_000)
    assert number(page, "left") == finished.stored(runs[0], session)["rank"]
    expect(page.locator("#same")).to_contain_text("hardly a word in common")
    page.locator("#right").select_option(run_key("langptune-0"))
    expect(page.locator(".side.right > .facts")).to_contain_text("untrained", timeout=20_000)
    assert page.locator(".side.left del").count() and page.locator(".side.right ins").count()
    page.locator("#mark").uncheck()
    expect(page.locator(".side del, .side ins")).to_have_count(0)
    page.locator("#swap").click()
    expect(page.locator("#left")).to_have_value(run_key("langptune-0"))
    assert page.locator("#right").input_value() == run_key("shuffled-profiles")


@real
def test_by_keyboard_alone(address, page, finished):
    opened(page, address)
    data = finished.data(DATASET)
    row = data.session(data.ids[3])

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == name:
                break
        assert page.evaluate("document.activeElement.id") == name
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to("find")
    page.keyboard.type(row["user_id"])
    page.locator("#found button").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#user-title")).to_have_text(f"User {row['user_id']}", timeout=20_000)
    tab_to("text")
    page.keyboard.press("End")
    page.keyboard.type(" Likes westerns.")
    expect(page.locator(".list.right .move")).to_have_count(20, timeout=20_000)
    expect(page.locator("#moved")).to_contain_text("Ranked.")
    tab_to("undo")
    page.keyboard.press("Enter")
    expect(page.locator(".list.right .move")).to_have_count(0)


@real
def test_own_titles(address, page, finished):
    opened(page, address)
    page.locator("#own-open").click()
    page.locator("#own-lines").fill("Toy Story (1995) | 4\nBlade Runer\nNo Such Film Whatsoever Qx\nAlien")
    page.locator("#own-match").click()
    expect(page.locator("#own-found li")).to_have_count(4)
    expect(page.locator("#own-found li").nth(2)).to_contain_text("“No Such Film Whatsoever Qx” is not in the catalogue")
    page.locator("#own-found").get_by_role("button", name="Blade Runner (1982)").click()
    page.locator("#own-use").click()
    expect(page.locator("#user-title")).to_have_text("Your own titles", timeout=20_000)
    assert page.locator("#history li").all_inner_texts()[0].startswith("Alien (1979)")
    assert page.locator("#history li .stars").all_inner_texts()[-1].endswith("★ 4")
    before = titles(page, "right")
    assert len(before) == 20 and not {"Alien (1979)", "Toy Story (1995)"} & set(before)
    expect(page.locator(".side.right > .facts")).to_contain_text("their own texts are ranked")
    page.locator(".side.right .write button").click()
    expect(page.locator(".side.right > .facts")).to_contain_text("Written by", timeout=300_000)
    assert page.locator(".side.right .text").inner_text() and titles(page, "right") != before
    # By langptune-0, whose encoder is another one, nothing is written yet.
    expect(page.locator(".side.left > .facts")).to_contain_text("their own texts are ranked")


@real
def test_links_that_cannot_be_honoured(address, page, finished):
    opened(page, address, dataset="ml", session="999999", left="nothing/x/0", text="x" * 5000)
    notices = page.locator("#notices").inner_text()
    for line in ("“ml”", "“999999”", "“nothing/x/0”", "5,000 characters; at most 4,000"):
        assert line in notices
    assert page.locator("#text").input_value() == page.locator(".side.right .text").text_content()
    page.locator("#text").fill("y" * 4001)
    expect(page.locator("#problem")).to_contain_text("4,001 characters")


@real
def test_hostile_texts_stay_texts(hostile, page):
    url, there = hostile
    ran = []
    page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    data = there.data(DATASET)
    page.set_viewport_size({"width": 360, "height": 780})
    for session in data.ids[:2]:
        opened(page, url, session=str(session), left="history/minilm-l6/0")
        page.locator("#mark").uncheck()
        choices = {choice.key: choice for choice in there.choices(DATASET)[0]}
        profile = there.text(choices[run_key("langptune")], session).text
        assert any(bad in profile for bad in HOSTILE)
        assert page.locator("#text").input_value() == page.locator(".side.right .text").text_content() == profile
        top = there.stored(choices["history/minilm-l6/0"], session)["top"]
        assert titles(page, "left") == [named(data, item) for item in top[:20]]
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator("main script, main img, main b:not(#target b)").count() == 0
    page.locator("#text").fill(" ".join(HOSTILE[:4]))
    expect(page.locator(".list.right .move")).to_have_count(20, timeout=20_000)
    expect(page.locator("#changed")).to_contain_text("<script>alert(1)</script>")
    page.locator("#own-open").click()
    page.locator("#own-lines").fill(HOSTILE[1])
    page.locator("#own-match").click()
    expect(page.locator("#own-found li")).to_contain_text(HOSTILE[1])
    page.locator("#find").fill("<script>")
    page.locator("#found button").first.wait_for()
    assert "saw <script>" in page.locator("#found").inner_text()
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1 and not ran


@real
def test_fits_a_phone(address, page):
    page.set_viewport_size({"width": 360, "height": 780})
    opened(page, address, right="history/minilm-l6/0")
    page.locator("#more summary").click()
    page.locator("#own-open").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    boxes = [page.locator(f".side.{side}").bounding_box() for side in ("left", "right")]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"], "sides stand one below the other"
    small = page.evaluate(
        "[...document.querySelectorAll('button, select, input, summary')].filter(n => n.offsetParent"
        " && n.type !== 'checkbox' && n.getBoundingClientRect().height < 24).map(n => n.id || n.textContent)"
    )
    assert small == []


@real
def test_refuses_what_does_not_come_from_its_page(address):
    body = json.dumps({"dataset": DATASET, "run": run_key("langptune"), "session": 0, "text": "x"})
    kind = {"content_type": "application/json"}
    status, headers, page = ask(address, "GET", f"/?token={address.token}")
    assert status == 200 and "script-src 'self'" in headers["content-security-policy"] and "unsafe" not in str(headers)
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|https?://", page)
    assert ask(address, "GET", "/", Host="rebound.example")[0] == 400
    assert ask(address, "POST", "/api/rank", body, Origin="http://other.example", **kind)[0] == 403
    assert ask(address, "GET", "/api/view", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert ask(address, "POST", "/api/rank", "x" * 200_000, **kind)[0] == 413
    assert ask(address, "GET", "/static/../server.py")[0] == 404
    assert ask(address, "GET", "/docs")[0] == 404
    for path, asked, message in (
        ("/api/rank", {"dataset": DATASET, "run": "x", "text": "y", "session": 0}, "run 'x' is not among the finished"),
        ("/api/rank", {"dataset": DATASET, "run": run_key("langptune"), "text": "y"}, "say whose history"),
        ("/api/rank", {"dataset": DATASET, "run": run_key("langptune"), "text": "y" * 4001}, "at most 4,000"),
        ("/api/rank", {"dataset": DATASET, "run": "pop/pop/0", "text": "y", "session": 0}, "ranks by no text"),
        ("/api/match", {"dataset": DATASET, "lines": ["a"] * 101}, "at most 100"),
        ("/api/write", {"dataset": DATASET, "run": run_key("langptune"), "own": [[99999, 5]]}, "outside the catalogue"),
        ("/api/rank", {"dataset": DATASET, "wrong": 1}, "Field required"),
    ):
        status, _, answer = ask(address, "POST", path, json.dumps(asked), **kind)
        assert status in (400, 422) and message in json.loads(answer)["error"], answer


# ---- other accounts, other sites, and too much at once


SECRETS = (DATASET, "ml-100k", "langptune", "history", "Profile explorer")
"""Words of which an answer to a stranger holds none."""


def as_nobody(work):
    """What a function returns in a process of another account of this machine."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another account")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            result = work()
        except BaseException as error:
            result = {"error": repr(error)}
        with os.fdopen(write, "w") as stream:
            stream.write(json.dumps(result))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        result = json.loads(stream.read())
    os.waitpid(child, 0)
    if isinstance(result, dict):
        raise PermissionError(result["error"])
    return result


def stranger(address: str, wrong: str = "") -> list[list]:
    """Status and body of responses to requests without the token."""
    port = address.rstrip("/").rsplit(":", 1)[1]
    body = json.dumps({"dataset": DATASET, "run": run_key("langptune"), "session": 0, "text": "x"})
    out = []
    for method, path, content in (
        ("GET", "/", None),
        ("GET", f"/?token={wrong}", None),
        ("GET", "/?token=%C3%A9&token=", None),
        ("GET", "/api/view", None),
        ("GET", f"/api/view?token={wrong}", None),
        ("GET", f"/api/users?dataset={DATASET}&q=1", None),
        ("GET", "/static/explore.js", None),
        ("GET", "/favicon.ico", None),
        ("GET", "/nowhere", None),
        ("POST", "/api/rank", body),
        ("POST", "/api/write", body),
        ("POST", f"/?token={wrong}", body),
        ("PUT", "/api/rank", "x"),
    ):
        for cookie in ("", f"langptune-explorer-{port}={wrong}", f"langptune-explorer-{port}=", "\xe9;;=; a"):
            status, headers, answer = ask(str(address), method, path, content, cookie=cookie)
            out.append([status, answer, "set-cookie" in headers])
    return out


@real
def test_another_account_of_this_machine_gets_nothing(address):
    asked = as_nobody(lambda: stranger(address, "A" * 43))
    assert {status for status, _, _ in asked} == {403} and not any(cookie for _, _, cookie in asked)
    for _, body, _ in asked:
        assert not [word for word in SECRETS if word in body], body
    seen = as_nobody(lambda: Path(f"/proc/{address.pid}/cmdline").read_text())
    assert "explore.py" in seen and address.token not in seen
    with pytest.raises(PermissionError, match="Permission denied"):
        as_nobody(lambda: Path(f"/proc/{address.pid}/environ").read_text())


@real
def test_the_token_becomes_a_cookie(address, browser):
    context = browser.new_context()
    page = context.new_page()
    assert page.goto(str(address)).status == 403
    assert "the whole address that its terminal printed" in page.content()
    assert page.goto(f"{address}?token={'A' * 43}").status == 403 and not context.cookies()
    opened(page, address, left="history/minilm-l6/0")
    assert "token" not in page.url and "left=history" in page.url
    (cookie,) = context.cookies()
    assert (cookie["value"], cookie["httpOnly"], cookie["sameSite"]) == (address.token, True, "Strict")
    assert page.evaluate("document.cookie") == ""
    page.reload()
    page.locator(".list.right li").first.wait_for(timeout=60_000)
    other = context.new_page()  # another tab, from a bookmark
    other.goto(str(address))
    other.locator(".list.right li").first.wait_for(timeout=60_000)
    assert address.token not in other.content()
    context.clear_cookies()
    assert page.goto(str(address)).status == 403
    context.close()


@real
def test_the_browser_is_given_no_token_on_its_command_line(smoke_run, tmp_path, monkeypatch):
    tool = tmp_path / "browser"
    record = tmp_path / "record"
    tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {record}.args; stat -c %a "${{1#file://}}" > {record}.mode\n')
    tool.write_text(tool.read_text() + f'cat "${{1#file://}}" > {record}.page\n')
    tool.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{tool} %s")
    server = script(smoke_run, "--config", str(smoke_run / "config/smoke.yaml"), "--port", "0", "--open")
    address = printed(server)
    assert ask(address, "GET", "/")[0] == 200
    args = Path(f"{record}.args").read_text()
    assert args.startswith("file:///") and address.token not in args
    assert Path(f"{record}.mode").read_text() == "600\n" and address.token in Path(f"{record}.page").read_text()
    ended(server)
    assert not Path(args.strip().removeprefix("file://")).exists()


@real
def test_without_a_token_on_request(smoke_run):
    server = script(smoke_run, "--config", str(smoke_run / "config/smoke.yaml"), "--port", "0", "--no-token")
    address = printed(server)
    assert "every account of this machine" in server.stderr.readline() and address.token == ""
    assert ask(address, "GET", "/")[0] == 200
    ended(server)


@real
def test_frames_and_links_of_other_sites(address):
    navigation = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Site": "cross-site"}
    with_token = f"/?token={address.token}"
    assert ask(address, "GET", with_token, Sec_Fetch_Dest="document", **navigation)[0] == 200
    for path, headers in (
        (with_token, navigation | {"Sec_Fetch_Dest": "iframe"}),
        ("/", navigation | {"Sec_Fetch_Dest": "iframe", "Sec_Fetch_Site": "same-origin"}),
        ("/api/view", navigation | {"Sec_Fetch_Dest": "document"}),
        (
            "/static/explore.js",
            {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "script"},
        ),
        ("/", {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"}),
        ("/", {"Origin": "null"}),
        ("/", {"Origin": "http://127.0.0.1:1"}),
    ):
        status, sent, body = ask(address, "GET", path, **headers)
        assert status == 403 and "other sites" in body and "set-cookie" not in sent, (path, headers)


@real
def test_a_page_of_another_server_reaches_nothing(address, browser, tmp_path):
    """In Chromium, with the cookie: for the browser, another port of 127.0.0.1 is the same site."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    body = json.dumps({"dataset": DATASET, "run": run_key("langptune"), "session": 0, "text": "x"})
    (tmp_path / "index.html").write_text(f"""<!doctype html>
        <iframe hidden src="{address}"></iframe><iframe hidden src="{address}api/view"></iframe>
        <script src="{address}api/view"></script><script src="{address}static/explore.js"></script>
        <img src="{address}api/random?dataset={DATASET}&seed=1"><object data="{address}"></object>
        <form method=post enctype="text/plain" target=out action="{address}api/rank"><input name='{body}'></form>
        <iframe hidden name=out></iframe>
        <script>document.forms[0].submit()</script>
        <script>fetch("{address}api/view", {{credentials: "include", mode: "no-cors"}})</script>
    """)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        context = browser.new_context()
        page = context.new_page()
        opened(page, address)
        answers = []
        page.on("response", lambda answer: answers.append((answer.url, answer.status)))
        for host in ("127.0.0.1", "localhost"):
            page.goto(f"http://{host}:{other.server_port}/", wait_until="networkidle")
        ours = [(url, status) for url, status in answers if url.startswith(str(address))]
        # Of scripts and images that are refused, Chromium tells no status.
        assert {url.removeprefix(address) for url, _ in ours} >= {"", "api/view", "api/rank"}
        assert {status for _, status in ours} == {403}, ours
        context.close()
        other.shutdown()


@real
def test_half_a_surrogate_pair_is_a_400(address):
    kind, run = {"content_type": "application/json"}, run_key("langptune")
    for path, asked in (
        ("/api/rank", {"dataset": DATASET, "run": run, "session": 0, "text": "\ud800"}),
        ("/api/rank", {"dataset": "\udfff", "run": run, "session": 0, "text": "x"}),
        ("/api/rank", {"dataset": DATASET, "run": "\ud800", "session": 0, "text": "x"}),
        ("/api/rank", {"dataset": DATASET, "run": run, "session": 0, "text": "x", "\ud800": 1}),
        ("/api/match", {"dataset": DATASET, "lines": ["Alien", "\ud83d"]}),
        ("/api/write", {"dataset": DATASET, "run": "\ud800", "own": [[0, 5]]}),
    ):
        status, _, body = ask(address, "POST", path, json.dumps(asked), **kind)
        assert status == 400 and json.loads(body)["error"], (path, asked, body)
    for path in ("/api/view?dataset=%ED%A0%80", f"/api/users?dataset={DATASET}&q=%ED%A0%80", "/%ED%A0%80"):
        assert ask(address, "GET", path)[0] in (200, 404)


def connected(address: str, receive: int | None = None) -> socket.socket:
    sock = socket.socket()
    if receive is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    sock.connect(("127.0.0.1", int(address.rstrip("/").rsplit(":", 1)[1])))
    return sock


def closed(sock: socket.socket) -> bool:
    """Whether the server has closed a connection."""
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


@real
def test_slow_clients_are_cut_off(address):
    """Each sends, or takes, a little at a time, for as long as it is let."""
    cookie = f"cookie: langptune-explorer-{address.rstrip('/').rsplit(':', 1)[1]}={address.token}\r\n"
    head = f"host: 127.0.0.1\r\n{cookie}"
    post = f"POST /api/rank HTTP/1.1\r\n{head}content-type: application/json\r\ncontent-length: 90000\r\n\r\n"
    starts = {
        "nothing": "",
        "a head": "GET / HTTP/1.1\r\nx: ",
        "a body": post,
        "a second": f"GET / HTTP/1.1\r\n{head}\r\n",
    }
    clients = {name: connected(address) for name in starts}
    for name, start in starts.items():
        clients[name].sendall(start.encode())
    # Takes nothing of what it asks for: many files of which the socket holds a few.
    clients["takes nothing"] = connected(address, receive=4096)
    clients["takes nothing"].settimeout(1)
    with contextlib.suppress(TimeoutError):
        clients["takes nothing"].sendall(f"GET /static/explore.js HTTP/1.1\r\n{head}\r\n".encode() * 400)
    clients["a second"].settimeout(30)
    while b"</html>" not in clients["a second"].recv(65536):
        pass
    left = {*clients}
    for _ in range(600):
        for name in sorted(left):
            try:
                if name == "takes nothing":
                    gone = peer_gone(clients[name])
                else:
                    clients[name].sendall(b"G" if name != "nothing" else b"")
                    gone = closed(clients[name])
            except ConnectionError:
                gone = True
            left -= {name} if gone else set()
        if not left:
            break
        time.sleep(0.1)
    assert not left
    assert ask(address, "GET", "/")[0] == 200


def peer_gone(sock: socket.socket) -> bool:
    """Whether the other end has reset a connection with unread data."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] != 1  # TCP_ESTABLISHED


@real
def test_many_connections_and_requests_leave_the_owner_served(address):
    before = threads(address.pid)
    idle = [connected(address) for _ in range(400)]
    assert ask(address, "GET", "/api/view")[0] == 200
    open_files = len(list(Path(f"/proc/{address.pid}/fd").iterdir()))
    assert sum(not closed(sock) for sock in idle) <= CONNECTIONS and open_files < CONNECTIONS + 100
    statuses = []

    def view() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            statuses.append(ask(address, "GET", "/api/view")[0])

    askers = [threading.Thread(target=view) for _ in range(150)]
    for asker in askers:
        asker.start()
    most = 0
    while any(asker.is_alive() for asker in askers):
        most = max(most, threads(address.pid))
        time.sleep(0.05)
    assert most <= before + WORKERS + 2, (before, most)
    assert set(statuses) == {200} and len(statuses) >= CONNECTIONS // 2
    for sock in idle:
        sock.close()


@real
def test_two_explorers_at_once(smoke_run):
    """On one port, one serves, and the other says so in a line; where none was asked for, both serve."""
    config = ["--config", str(smoke_run / "config/smoke.yaml")]
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        both = [script(smoke_run, *config, "--port", port) for _ in range(2)]
        lines = [server.stdout.readline() for server in both]
        assert sorted(bool(line) for line in lines) == [False, True]
        loser, winner = sorted(both, key=lambda one: bool(lines[both.index(one)]))
        output = loser.communicate(timeout=60)[1]
        assert loser.returncode == 2 and output.count("\n") == 1 and "Address already in use" in output
        ended(winner)
    both = [script(smoke_run, *config) for _ in range(2)]
    addresses = [printed(server) for server in both]
    assert len({*addresses}) == 2
    assert ask(addresses[0], "GET", "/")[0] == 200
    ended(both[0])
    again = script(smoke_run, *config, "--port", addresses[0].rstrip("/").rsplit(":", 1)[1])
    assert printed(again) == addresses[0], "a port is free as soon as its explorer has ended"
    for server in (again, both[1]):
        ended(server)
