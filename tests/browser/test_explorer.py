"""The explorer on finished results: pages in Chromium, and numbers against the benchmark's files."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
from pathlib import Path

import polars as pl
import pytest
import yaml

from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.explorer.differences import differences
from langptune.explorer.finished import Finished
from langptune.explorer.titles import Titles, key
from tests.browser.explored import DATASET, Address, opened, real, run_key, script
from tests.conftest import ROOT

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</textarea><b>out</b>",
    "{{7*7}} ${7*7} {% raw %}",
    "W" * 180,
    "\u202egnp.exe & &amp; <!--",
]


def copy_of(smoke_run: Path, target: Path) -> Finished:
    """A copy of the results that tests may change; files are hard links until they are replaced."""
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
    path.unlink()  # keeps the file that it is a hard link to
    table.write_parquet(path)


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
                # A text alone rounds differently than in a batch: items with nearly equal scores may swap places.
                assert abs(side["here"] - row["rank"]) <= 2, choice
                apart += side["here"] != row["rank"]
                assert {item["item"] for item in side["list"]} <= set(row["top"][:25])
    assert compared >= 28 and apart <= 2


@real
def test_a_text_with_denials_is_shown_and_ranked_in_two_parts(smoke_run, explorer, one_thread):
    """The same results, ranked by a method with `denials`: its untrained phase is the same one."""
    from langptune.explorer.live import Live
    from langptune.explorer.views import Explorer, Rerank

    config = read_yaml(smoke_run / "config/smoke.yaml") | {"registries": str(smoke_run / "config")}
    config["overrides"]["langptune-0"] |= {"denials": 0.5}
    there = Finished(load(config, smoke_run), smoke_run)
    parted = Explorer(there, Live(there, 2**31))
    asked = {"dataset": DATASET, "run": run_key("langptune-0"), "session": there.data(DATASET).ids[0]}

    def ranked(explorer: Explorer, text: str) -> dict:
        return explorer.rerank(Rerank(**asked, text=text))

    denied = "They love comedy and war. They dislike horror."
    whole, found = (ranked(one, denied) for one in (explorer, parted))
    assert whole["read"] is None
    assert found["read"] == {"likes": "They love comedy and war.", "avoids": "horror", "contradicted": ()}
    assert [item["item"] for item in found["list"]] != [item["item"] for item in whole["list"]]
    plain = "They love comedy and war."
    same, alone = ranked(parted, plain), ranked(explorer, plain)
    assert same["read"] is None and [one["item"] for one in same["list"]] == [one["item"] for one in alone["list"]]
    both = ranked(parted, "They love horror. They love war. They dislike horror.")["read"]
    assert both == {"likes": "They love war.", "avoids": "horror", "contradicted": ("Horror",)}


@real
def test_an_edit_is_read_by_both_decoders_and_a_text_for_own_titles_by_one(explorer, finished, one_thread):
    """`langptune` of config/smoke.yaml has `edit_reading`; its formula is tested in tests/unit/test_edit_reading.py."""
    from langptune.explorer.live import Live
    from langptune.explorer.views import Explorer, Rerank

    data, choice = finished.data(DATASET), explorer.choice(DATASET, run_key("langptune"))
    session = data.ids[0]
    own, row, text = finished.text(choice, session).text, data.session(session), "Loves musicals."

    def items(found: dict) -> list[int]:
        return [item["item"] for item in found["list"]]

    plain = explorer.live.rank(choice, text, row["seen"]).order[:20].tolist()
    edited = explorer.live.rank(choice, text, row["seen"], original=own).order[:20].tolist()
    assert plain != edited
    assert items(explorer.rerank(Rerank(dataset=DATASET, run=choice.key, text=text, session=session))) == edited
    # A link with own titles ranks alike on a server that has written their profile, and on one that has not.
    titles = [(item, 5.0) for item in row["history"]]
    asked = Rerank(dataset=DATASET, run=choice.key, text=text, own=titles)
    plain = explorer.live.rank(choice, text, row["history"]).order[:20].tolist()
    assert items(explorer.rerank(asked)) == plain
    other = Explorer(finished, Live(finished, 2**31))
    other.live.write(choice, titles, lambda *_: None, threading.Event())
    assert other.live.written(choice, titles) is not None and items(other.rerank(asked)) == plain
    # Denials count in edits alone here, so one of the profile itself is no change.
    assert explorer.live.parts(choice, "They dislike horror.") is None
    assert explorer.live.parts(choice, "They dislike horror. They love war.", "They love war.").avoids == "horror"
    denying = "They dislike horror. They love war."
    assert explorer.live.parts(choice, f"They dislike comedy. {denying}", denying).avoids == "comedy"


@real
def test_a_typed_history_gets_the_profile_that_the_workflow_wrote(explorer, finished, one_thread):
    from langptune.explorer.live import Cancelled

    data, stages = finished.data(DATASET), []
    choice = explorer.choice(DATASET, run_key("langptune-0"))

    def typed(session: int) -> list[tuple[int, float]]:
        row = data.session(session)
        return list(zip(row["history"], row["ratings"], strict=True))

    # In bfloat16 a batch of several prompts is rounded differently from one prompt alone, so that a near-tie between
    # two tokens may be decided differently (docs/numerics.md). How many texts this changes depends on the kind of CPU.
    asked = data.ids[:6]
    texts = {}
    for session in asked:
        text, source = explorer.live.write(choice, typed(session), lambda *at: stages.append(at), threading.Event())
        texts[session] = text
        assert "untrained" in source and explorer._text(choice, None, typed(session))[0] == text
    same = [session for session in asked if texts[session] == finished.text(choice, session).text]
    assert 2 * len(same) >= len(asked) > 2, texts
    own = typed(asked[0])
    assert stages[0] == ("loading", 0, 8) and stages[-1][0] == "writing"
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
    with explorer.live._writing:  # the writer has released the lock
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
        with explorer.live._writing:  # the writer has released the lock
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
    assert any("no decoder; only its stored lists" in note for note in notes)
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

    # A text that changes the target's rank.
    texts = ["Likes science fiction of the 1980s, with robots and war.", "Loves musicals.", "Loves film noir."]
    own = finished.text(choice, session).text
    rankings = {text: explorer.live.rank(choice, text, row["seen"], row["target"], original=own) for text in texts}
    assert rankings[texts[0]].order.tolist() != explorer.live.rank(choice, texts[0], row["seen"]).order.tolist()
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
def test_the_weight_of_popularity_is_a_slider(address, page, explorer, finished):
    data, choice = finished.data(DATASET), explorer.choice(DATASET, run_key("langptune"))
    session = next(one for one in data.ids if finished.text(choice, one).text)
    text, row = finished.text(choice, session).text, data.session(session)
    own, largest = explorer.live.weight(choice), explorer.live.largest_weight(choice)
    assert 0 <= own < largest
    opened(page, address, session=str(session))
    slider = page.get_by_role("slider", name="Weight of popularity")
    assert float(slider.get_attribute("max")) == largest and float(slider.input_value()) == own
    expect(page.locator("#weight-shown")).to_contain_text("the run’s own")
    expect(page.locator("#undo")).to_be_disabled()
    slider.focus()
    page.keyboard.press("End")
    ranked = explorer.live.rank(choice, text, row["seen"], row["target"], largest)
    expect(page.locator("#moved")).to_contain_text(f"Target at {ranked.rank} of", timeout=20_000)
    assert titles(page, "right") == [named(data, item) for item in ranked.order[:20].tolist()]
    assert page.locator(".list.right .move").count() == 20 and page.locator("#changed").is_hidden()
    assert slider.get_attribute("aria-valuetext") == f"{largest:g}; the run’s own is {own:g}"
    assert f"weight={largest:g}" in page.url and "text=" not in page.url
    expect(page.locator(".list.right h3")).to_contain_text(f", weight {largest:g}")
    # It holds for an edited text, too, and a link has both.
    page.locator("#text").fill("Loves film noir.")
    ranked = explorer.live.rank(choice, "Loves film noir.", row["seen"], row["target"], largest, original=text)
    expect(page.locator("#changed")).to_contain_text("film noir", timeout=20_000)
    link = page.url
    opened(page, link)
    assert number(page, "right") == ranked.rank and float(slider.input_value()) == largest
    slider.focus()
    page.keyboard.press("Home")
    ranked = explorer.live.rank(choice, "Loves film noir.", row["seen"], row["target"], 0.0, original=text)
    expect(page.locator("#weight-shown")).to_contain_text("0 (text alone)")
    expect(page.locator("#moved")).to_contain_text(f"Target at {ranked.rank} of", timeout=20_000)
    page.locator("#undo").click()
    expect(page.locator(".list.right .move")).to_have_count(0)
    assert "weight=" not in page.url and float(slider.input_value()) == own
    # Another run has its own weight.
    opened(page, link)
    page.locator("#right").select_option(run_key("langptune-0"))
    expect(page.locator(".side.right > .facts")).to_contain_text("untrained", timeout=20_000)
    assert "weight=" not in page.url
    assert float(slider.input_value()) == explorer.live.weight(explorer.choice(DATASET, run_key("langptune-0")))


@real
def test_two_runs_rank_one_text(address, page, explorer, finished):
    data = finished.data(DATASET)
    left, right = (explorer.choice(DATASET, run_key(name)) for name in ("langptune-0", "langptune"))
    session = next(one for one in data.ids if finished.text(right, one).text)
    row, base = data.session(session), finished.text(right, session).text
    opened(page, address, session=str(session))
    plain = titles(page, "left")

    def check(text: str) -> None:
        rankings = [explorer.live.rank(run, text, row["seen"], row["target"], original=base) for run in (left, right)]
        expect(page.locator("#moved")).to_contain_text(f"On the left at {rankings[0].rank}.", timeout=20_000)
        for side, (own, other) in {"left": rankings, "right": rankings[::-1]}.items():
            top = own.order[:20].tolist()
            assert number(page, side) == own.rank and titles(page, side) == [named(data, item) for item in top]
            there = other.places(len(data.items))
            for place, (item, move) in enumerate(zip(top, page.locator(f".list.{side} .move").all(), strict=True), 1):
                by = there[item] - place
                sign = f"▲ {by:,}" if by > 0 else f"▼ {-by:,}" if by < 0 else "="
                words = (
                    f"{abs(by)} places {'above' if by > 0 else 'below'} its place on the" if by else "the same place"
                )
                assert move.locator("[aria-hidden]").text_content() == sign and words in move.text_content()

    page.get_by_role("checkbox", name="Rank this text with the left run, too").check()
    check(base)
    assert "same=1" in page.url and "text=" not in page.url
    page.locator("#text").fill("Likes science fiction of the 1980s, with robots and war.")
    expect(page.locator(".list.right h3")).to_contain_text("in your words", timeout=20_000)
    check("Likes science fiction of the 1980s, with robots and war.")
    link, before = page.url, titles(page, "left")
    opened(page, link)
    assert page.locator("#beside").is_checked() and titles(page, "left") == before
    page.locator("#beside").uncheck()
    expect(page.locator(".list.left .move")).to_have_count(0, timeout=20_000)
    assert titles(page, "left") == plain and "same=" not in page.url
    # A run that does not rank by texts cannot take part. A control's run can, and the same run at another weight.
    opened(
        page,
        link.replace(f"left={run_key('langptune-0')}".replace("/", "%2F").replace("+", "%2B"), "left=pop%2Fpop%2F0"),
    )
    expect(page.locator("#notices")).to_contain_text("does not rank by texts")
    assert page.locator("#beside").is_disabled() and "same=" not in page.url
    key = run_key("langptune")
    opened(page, address, session=str(session), left=key, right=key, same="1", weight="0")
    rank = explorer.live.rank(right, base, row["seen"], row["target"], 0.0).rank
    assert number(page, "right") == rank


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
    # langptune-0 has another encoder and has not written a profile yet.
    expect(page.locator(".side.left > .facts")).to_contain_text("their own texts are ranked")


@real
def test_links_that_cannot_be_honoured(address, page, finished):
    opened(page, address, dataset="ml", session="999999", left="nothing/x/0", text="x" * 5000)
    notices = page.locator("#notices").inner_text()
    for line in ("“ml”", "“999999”", "“nothing/x/0”", "5,000 characters; at most 4,000"):
        assert line in notices
    for wrong in ("x", "nan", "1e9"):
        opened(page, address, weight=wrong, same="yes")
        notices = page.locator("#notices").inner_text()
        assert f"Weight “{wrong}” is no number from 0 to" in notices and "same=“yes” is not 1" in notices
        assert "weight=" not in page.url and "same=" not in page.url
    opened(page, address)
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
    opened(page, address, right="history/minilm-l6/0", weight="0.123", same="1")
    expect(page.locator(".list .move")).to_have_count(40)
    page.locator("#more summary").click()
    page.locator("#own-open").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    boxes = [page.locator(f".side.{side}").bounding_box() for side in ("left", "right")]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"], "the sides must be one below the other"
    small = page.evaluate(
        "[...document.querySelectorAll('button, select, input, summary')].filter(n => n.offsetParent"
        " && n.type !== 'checkbox' && n.getBoundingClientRect().height < 24).map(n => n.id || n.textContent)"
    )
    assert small == []
