"""Answers of servers, each sent by a real server on this machine: parsed, counted, cached, requested again."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import polars as pl
import pytest

from langptune.config.base import validate
from langptune.config.models import ModelSource
from langptune.data import contracts
from langptune.endpoint import answers
from langptune.endpoint.answers import Request
from langptune.endpoint.client import TRIES, Client
from langptune.errors import UserError
from tests.conftest import ROOT
from tests.door import KEY, door

ASK = Request((("user", "What do I like?"),), 50)
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


@pytest.fixture(scope="module")
def server():
    with door() as keeper:
        yield keeper


@pytest.fixture
def asked(server, tmp_path, monkeypatch):
    """A function that asks a server, which sends these answers (the last one repeatedly); returns client and answer."""
    monkeypatch.setenv("DOOR_KEY", KEY)

    def ask(*says, request=ASK, status=200, **changes):
        left = list(says)

        def answer(_):
            response = left.pop(0) if len(left) > 1 else left[0]
            return status, response if isinstance(response, bytes) else json.dumps(response).encode()

        server.says, server.asked = answer, []
        client = Client(source(server.url, **changes), tmp_path / "answers")
        return client, client.ask([request])[0]

    return ask


def source(url: str, **changes) -> ModelSource:
    fields = {"endpoint": url, "model": "m", "key": "DOOR_KEY", "input_price": 1e6, "output_price": 1e6, "retries": 2}
    return ModelSource(**{**fields, **changes})


def body(content="Westerns.", reason="stop", usage=USAGE, **message) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return {"id": "x", "object": "chat.completion", "model": "m-1", "choices": [choice], "usage": usage}


def kept(tmp_path) -> list:
    return list((tmp_path / "answers").rglob("*.json"))


@pytest.mark.parametrize(
    ("response", "fault", "times"),
    [
        (body(None, reasoning_content="Hm, westerns."), "reasoning", TRIES),
        (body(None, reasoning="Hm, westerns."), "reasoning", TRIES),
        (body("<think>Hm, westerns.</think>\n"), "reasoning", TRIES),
        (body("<think>Hm, west", "length"), "reasoning", 1),  # a second request would use up the same limit
        (body([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]), "reasoning", TRIES),
        (body("", "length"), "empty", 1),
        (body(None), "empty", TRIES),
        (body(" \n"), "empty", TRIES),
        (body([]), "empty", TRIES),
        (body({"type": "image_url"}), "empty", TRIES),
        (body("", "content_filter"), "filtered", TRIES),
        (body("Half a sen", "content_filter"), "filtered", TRIES),
        (body(None, refusal="I cannot help with that."), "filtered", TRIES),
        (body([{"type": "refusal", "refusal": "No."}]), "filtered", TRIES),
        (body("x", "SAFETY"), "filtered", TRIES),
        (body("Half a sen", "abort"), "aborted", TRIES),
        (body("Half a sen", "insufficient_system_resource"), "aborted", TRIES),
        (body("Half a sen", "tool_calls"), "aborted", TRIES),
        (body("Half a sen", 5), "aborted", TRIES),
    ],
)
def test_an_unusable_answer_is_paid_and_not_kept(response, fault, times, asked, tmp_path):
    client, answer = asked(response)
    assert (answer.fault, answer.text, answer.finished) == (fault, "", False) and answer.why
    assert client.spent.requests == client.spent.unusable == times and client.spent.usd == pytest.approx(10 * times)
    assert not kept(tmp_path)
    # The next run counts what these requests cost, and asks again.
    again = Client(client.source, client.cache.folder, max_usd=10 * times + 60)
    with pytest.raises(UserError, match=rf"max_usd allows 60\.0000 after {10 * times}\.0000 .*; nothing was sent"):
        again.ask([ASK, Request(ASK.messages, 60)])
    good, answer = asked(body())
    assert answer.text == "Westerns." and good._before == pytest.approx(10 * times) and len(kept(tmp_path)) == 1


def test_one_bad_answer_is_asked_again(asked, tmp_path):
    client, answer = asked(body("", "stop"), body("Westerns."))
    assert answer.text == "Westerns." and not answer.fault and len(kept(tmp_path)) == 1
    assert (client.spent.requests, client.spent.unusable) == (2, 1) and client.spent.usd == pytest.approx(20)


@pytest.mark.parametrize(
    ("response", "text", "finished"),
    [
        (body(), "Westerns.", True),
        (body(reason="eos"), "Westerns.", True),
        (body(reason="eos_token"), "Westerns.", True),
        (body(reason=None), "Westerns.", True),
        (body(reason="end_turn"), "Westerns.", True),
        (body(reason="COMPLETE"), "Westerns.", True),
        (body(reason="length"), "Westerns.", False),
        (body(reason="MAX_TOKENS"), "Westerns.", False),
        (body(reason=None, usage={"prompt_tokens": 7, "completion_tokens": 50}), "Westerns.", False),
        (body([{"type": "text", "text": "West"}, {"type": "text", "text": "erns."}]), "Westerns.", True),
        (body([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Westerns."}]), "Westerns.", True),
        (body(["West", {"type": "output_text", "text": {"value": "erns."}}]), "Westerns.", True),
        (body("<think>Hm.</think>\n\nWesterns."), "Westerns.", True),
        (body("Hm.</think>Westerns."), "Westerns.", True),  # the chat template itself opened the reasoning
        (body("Westerns.", reasoning_content="Hm."), "Westerns.", True),
        (body("West\ud800erns."), "West\ufffderns.", True),
        (body("Westerns.\udfff"), "Westerns.\ufffd", True),
        (body("A \ud83d\ude00"), "A \U0001f600", True),
        (body([{"type": "text", "text": "A \ud83d"}, {"type": "text", "text": "\ude00"}]), "A \U0001f600", True),
        (json.dumps(body("Westerns.")).encode().replace(b"erns", b"\xff"), "West\ufffd.", True),
    ],
)
def test_an_answer_is_read_once_and_kept(response, text, finished, asked, tmp_path):
    client, answer = asked(response)
    assert (answer.text, answer.finished, answer.fault) == (text, finished, "")
    assert client.spent.requests == 1 and client.cache.known(ASK) == answer and len(kept(tmp_path)) == 1


@pytest.mark.parametrize(
    ("usage", "tokens", "counted"),
    [
        (USAGE, (7, 3), True),
        ({"prompt_tokens": 7.0, "completion_tokens": 3}, (7, 3), True),
        (None, (8, 3), False),
        ({}, (8, 3), False),
        ([7, 3], (8, 3), False),
        ({"prompt_tokens": 7}, (7, 3), False),
        ({"completion_tokens": 12}, (8, 12), False),
        ({"prompt_tokens": -7, "completion_tokens": 12}, (8, 12), False),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, (8, 3), False),
        ({"prompt_tokens": "7", "completion_tokens": True}, (8, 3), False),
        ({"prompt_tokens": 7, "completion_tokens": 2**40}, (7, 3), False),
        ({"prompt_tokens": 7, "completion_tokens": 2.5}, (7, 3), False),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (8, 3), False),
    ],
)
def test_usage_counts_as_far_as_it_makes_sense(usage, tokens, counted, asked):
    client, answer = asked(body(usage=usage))
    assert (answer.prompt_tokens, answer.tokens, answer.counted) == (*tokens, counted)
    assert client.spent.usd == pytest.approx(sum(tokens)) and client.cache.known(ASK) == answer


@pytest.mark.parametrize(
    ("error", "times", "message"),
    [
        ({"error": {"code": 429, "message": "Rate limit of upstream"}}, 2, r"too many requests.*429: Rate limit of up"),
        ({"error": {"code": 502, "message": "Bad gateway", "metadata": {"raw": "GPU lost"}}}, 2, r"502: .*: GPU lost"),
        ({"error": {"code": "503", "message": "No provider"}}, 2, r"failed \(503: No provider\) .*run again"),
        ({"error": "model is loading"}, 2, r"failed \(500: model is loading\)"),
        ({"object": "error", "message": "worker gone", "code": 50001}, 2, r"failed \(500: worker gone\)"),
        (
            {"error": {"code": 402, "message": "Insufficient credits"}},
            1,
            r"\(402: Insuff.*\); the account has no credit",
        ),
        ({"error": {"code": 400, "message": "no such quantization"}}, 1, r"refused the request \(400: no such"),
    ],
)
def test_an_error_with_status_200_is_that_error(error, times, message, asked, tmp_path, server):
    with pytest.raises(UserError, match=message) as raised:
        asked(error, retries=1)
    assert len(server.asked) == times and not kept(tmp_path)
    assert ("run again" in str(raised.value)) == (times == 2)
    if times == 2:
        _, answer = asked(error, body(), retries=1)
        assert answer.text == "Westerns."


def test_what_an_error_cost_is_counted(asked):
    client, answer = asked({"error": {"code": 502}, "usage": USAGE}, body())
    assert answer.text == "Westerns." and client.spent.usd == pytest.approx(20)
    broken = body("Half", "error")
    broken["choices"][0]["error"] = {"code": 502, "message": "Provider disconnected"}
    client, answer = asked(broken, request=Request(ASK.messages, 60))
    assert answer.fault == "aborted" and "Provider disconnected" in answer.why and client.spent.usd == pytest.approx(30)


@pytest.mark.parametrize(
    "response", [b"<html>Sign in</html>", [], {"choices": []}, {"choices": [{"text": "x"}]}, b"\xff{"]
)
def test_a_response_that_is_not_of_a_chat_api_is_named(response, asked, tmp_path):
    with pytest.raises(UserError, match=r"answered without a choice .*'endpoint' in models.yaml the base URL"):
        asked(response)
    assert not kept(tmp_path)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (400, {"message": "Unsupported value", "param": "temperature"}, r"set `omit: \[temperature\]` in the model's"),
        (400, {"message": "seed is not supported by this model"}, r"set `omit: \[seed\]`"),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs", "input": "stop"}]}, r"`omit: \[seed\]`"),
        (400, {"message": "Unsupported parameter", "param": "max_tokens"}, r"set `limit_key: max_completion_tokens`"),
        (400, {"message": "This model's maximum context length is 8192"}, r"smaller max_prompt_tokens in models.yaml"),
        (413, {"message": "Payload"}, r"smaller max_prompt_tokens"),
        (405, {"message": "Method Not Allowed"}, r"405: Method.*the same request would be refused again"),
        (403, {"message": "Country not supported"}, r"403: Country not supported\): the key in DOOR_KEY"),
    ],
)
def test_a_refused_request_names_what_to_change(status, error, message, asked, server):
    with pytest.raises(UserError, match=message) as raised:
        asked(error if "detail" in error else {"error": error}, status=status)
    assert len(server.asked) == 1 and "run again" not in str(raised.value)


def test_a_filtered_prompt_ends_no_run(asked):
    azure = {"error": {"code": "content_filter", "message": "The response was filtered", "status": 400}}
    assert asked(azure, status=400)[1].fault == "filtered"
    broker = {"error": {"code": 403, "message": "Input was flagged", "metadata": {"flagged_input": "x", "raw": "y"}}}
    assert asked(broker, status=403)[1].fault == "filtered"


def test_settings_that_a_server_refuses_are_left_out(asked, server, tmp_path):
    request = Request(ASK.messages, 50, 0.7, 3, "\n")
    client, answer = asked(body("A\nbecause"), request=request, omit=["stop", "seed", "temperature"])
    assert set(server.asked[0]) == {"model", "messages", "max_tokens"} and answer.text == "A" and answer.finished
    whole, _ = asked(body(), request=request)
    assert {"seed", "temperature", "stop"} <= set(server.asked[0])
    assert whole.cache.key_of(request) != client.cache.key_of(request) and len(kept(tmp_path)) == 2
    # Without omitted settings, keys and specs stay as before; with omitted settings, they differ.
    assert "omit" not in whole.source.model_dump() and client.source.terms_left_out.omit == client.source.omit
    entry = {"endpoint": "http://h/v1", "model": "m", "input_price": 0, "output_price": 0}
    with pytest.raises(UserError, match="omit"):
        validate(ModelSource, {**entry, "omit": ["top_p"]}, "models.yaml: m: source")
    with pytest.raises(UserError, match="'omit' goes with 'endpoint'"):
        validate(ModelSource, {"folder": "f", "omit": ["seed"]}, "models.yaml: m: source")


def test_a_given_beginning_is_the_last_message_and_its_settings_go_with_it(asked, server):
    prefill = {"continue_final_message": True, "add_generation_prompt": False}
    request = Request((*ASK.messages, ("assistant", "This user enjoys")), 50)
    client, answer = asked(body("quiet films."), request=request, prefill=prefill)
    sent = server.asked[0]
    assert sent["messages"][-1] == {"role": "assistant", "content": "This user enjoys"}
    assert sent["continue_final_message"] is True and sent["add_generation_prompt"] is False
    assert answer.text == "quiet films."
    asked(body(), request=ASK, prefill=prefill)
    assert "continue_final_message" not in server.asked[0], "other requests stay what they were"
    other = asked(body(), request=request, prefill={})[0]
    assert other.cache.key_of(request) != client.cache.key_of(request) and other.cache.key_of(
        ASK
    ) == client.cache.key_of(ASK)
    assert client.source.terms_left_out.prefill == prefill and "prefill" not in asked(body())[0].source.model_dump()
    with pytest.raises(UserError, match="'prefill' goes with 'endpoint'"):
        validate(ModelSource, {"folder": "f", "prefill": {}}, "models.yaml: m: source")


def test_profiles_of_a_server_begin_as_they_were_given(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DOOR_KEY", KEY)
    spec = profiles_spec(tmp_path, server.url, 3)
    spec["prompt_entry"]["starts"] = "This user enjoys"
    spec["encoder"]["source"]["prefill"] = {}
    server.says = lambda asked: (200, json.dumps(body("quiet films.")).encode())
    command = [sys.executable, str(ROOT / "scripts/write_profiles.py"), "--spec", json.dumps(spec)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    profiles = contracts.read(spec["profiles_out"], "profiles")
    assert profiles["profile"].to_list() == ["This user enjoys quiet films."] * 3
    assert all(one["messages"][-1]["role"] == "assistant" for one in server.asked)


def test_an_empty_answer_before_a_stop_text_is_one(asked, tmp_path):
    request = Request(ASK.messages, 50, stop="\n")
    assert asked(body(""), request=request)[1].fault == "" and len(kept(tmp_path)) == 1


GOOD = {"prompt_tokens": 7, "tokens": 3, "counted": True, "model": "m", "text": "Westerns.", "finished": True}


@pytest.mark.parametrize(
    "change",
    [
        {"text": ""},
        {"text": None},
        {"text": "Half a sen", "reason": "abort"},
        {"text": "", "reason": "content_filter"},
        {"text": "<think>Hm"},
        {"tokens": -1},
        {"tokens": float("nan")},
        {"prompt_tokens": None},
        {"counted": "yes"},
    ],
)
def test_a_kept_answer_that_no_longer_reads_is_asked_again(change, asked, server, tmp_path):
    client = Client(source(server.url), tmp_path / "answers")
    path = client.cache.path(ASK)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"answer": {**GOOD, "reason": "stop", **change}}))
    assert client.cache.known(ASK) is None and client.estimate([ASK]).requests == 1
    _, answer = asked(body("Space."))
    assert answer.text == "Space." and len(server.asked) == 1 and client.cache.known(ASK) == answer


@pytest.mark.parametrize("reason", ["eos", "None", "stop"])
def test_a_kept_answer_is_held_to_the_rules_of_today(reason, asked, server, tmp_path):
    """Files of earlier versions mark complete answers as cut, and contain the reasoning."""
    path = Client(source(server.url), tmp_path / "answers").cache.path(ASK)
    path.parent.mkdir(parents=True)
    old = {**GOOD, "text": "<think>Hm.</think>Westerns.", "finished": reason == "stop", "reason": reason}
    path.write_text(json.dumps({"answer": old}))
    client, answer = asked(body("never sent"))
    assert (answer.text, answer.finished, client.spent.cached) == ("Westerns.", True, 1) and not server.asked


def test_a_server_that_never_answers_is_asked_no_further(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DOOR_KEY", KEY)
    server.says, server.asked = lambda _: (200, json.dumps(body("", "length")).encode()), []
    client = Client(source(server.url), tmp_path)
    with pytest.raises(UserError, match=r"\d+ of 2\d answers cannot be used \(2\d empty.*raise max_tokens"):
        client.ask([Request((("user", str(at)),), 5) for at in range(200)])
    assert len(server.asked) < 40 and client.spent.requests == len(server.asked)


@pytest.mark.parametrize(
    ("faults", "of", "few"),
    [
        (0, 1, True),
        (1, 1, False),
        (1, 2, False),
        (1, 3, True),
        (1, 19, True),
        (2, 39, False),
        (2, 40, True),
        (0, 0, True),
    ],
)
def test_how_many_empty_answers_a_job_may_have(faults, of, few, tmp_path):
    client = Client(source("http://h/v1"), tmp_path)
    good = answers.read(json.dumps(body()).encode(), ASK)
    found = [answers.read(json.dumps(body("")).encode(), ASK)] * faults + [good] * (of - faults)
    if few:
        assert len(client.few_faults(found)) == faults
    else:
        with pytest.raises(UserError, match=rf"{faults} of {of} answers cannot be used \({faults} empty; first: an"):
            client.few_faults(found)


def test_the_reader_never_raises():
    odd = [None, 0, -1, 1.5, float("nan"), True, "x", [], {}, [[]], [None], {"text": 3}, {"text": []}, "\ud800"]
    for value in odd:
        for stored in (
            value,
            {"choices": value},
            {"choices": [value]},
            {"choices": [{"message": value}]},
            {"choices": [{"message": {"content": value}}]},
            {"choices": [{"message": {"content": [value]}, "finish_reason": value}], "model": value, "usage": value},
            {"error": value, "usage": {"prompt_tokens": value}},
        ):
            raw = json.dumps(stored).encode()
            answer = answers.read(raw, ASK)
            answer.text.encode(), answer.why.encode(), answer.model.encode(), answer.reason.encode()
            assert 0 <= answer.tokens < 2**31 and 0 < answer.prompt_tokens < 2**31
            assert answers.error_status(raw) in (None, 500) and answers.refused_prompt(raw, ASK) is None
            assert answers.kept(json.dumps({"answer": stored}).encode(), ASK) is None and answers.paid(raw) == (0, 0)


def profiles_spec(folder, url: str, sessions: int) -> dict:
    """A job of profiles, one per session, each session with its own film."""
    titles = [f"Film {at}" for at in range(sessions + 1)]
    ids = list(range(sessions + 1))
    items = {
        "item": ids,
        "item_id": [str(at) for at in ids],
        "title": titles,
        "text": titles,
        "first_seen": [0] * len(ids),
    }
    contracts.write(pl.DataFrame(items, schema=contracts.ITEMS), folder / "items.parquet", "items")
    at = list(range(sessions))
    table = {
        "session": at,
        "user_id": [f"u{one}" for one in at],
        "split": ["test"] * sessions,
        "history": [[one] for one in at],
        "ratings": [[5.0]] * sessions,
        "reviews": [None] * sessions,
        "seen": [[one] for one in at],
        "target": [sessions] * sessions,
        "target_time": [9] * sessions,
    }
    contracts.write(pl.DataFrame(table, schema=contracts.SESSIONS), folder / "sessions.parquet", "sessions")
    contracts.write(pl.DataFrame({"user_id": table["user_id"]}), folder / "users.parquet", "users")
    chosen = pl.DataFrame({"session": at, "split": table["split"]}, schema=contracts.EVALUATION)
    contracts.write(chosen, folder / "evaluation.parquet", "evaluation")
    entry = {"role": "encoder", "title": "t", "licence": "none", "context": 512, "max_prompt_tokens": 256}
    return {
        **{f"{name}_in": str(folder / f"{name}.parquet") for name in ("items", "sessions", "users", "evaluation")},
        "encoder": entry | {"source": source(url, input_price=0, output_price=0).model_dump()},
        "encoder_in": str(folder),
        "prompt": "p",
        "prompt_entry": {"template": "{% for item in history %}{{ item.title }}{% endfor %}. What do I like?"},
        "history_items": 5,
        "max_tokens": 20,
        "threads": 1,
        "journal": str(folder / "journal"),
        "cache": str(folder / "answers"),
        "profiles_out": str(folder / "profiles.parquet"),
    }


def test_few_empty_profiles_are_kept_and_many_refused(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DOOR_KEY", KEY)
    spec = profiles_spec(tmp_path, server.url, 20)

    def run() -> subprocess.CompletedProcess[str]:
        server.asked = []
        command = [sys.executable, str(ROOT / "scripts/write_profiles.py"), "--spec", json.dumps(spec)]
        return subprocess.run(command, text=True, capture_output=True)

    def says(filtered: str):
        def answer(asked):
            bad = re.search(filtered, asked["messages"][0]["content"])
            return 200, json.dumps(body("", "content_filter") if bad else body(f"{KEY[:2]} \ud800")).encode()

        return answer

    server.says = says(r"Film [37]\.")
    done = run()
    assert done.returncode == 2 and "2 of 20 answers cannot be used (2 filtered; first: filtered by the" in done.stderr
    assert "All other answers are kept" in done.stderr and not (tmp_path / "profiles.parquet").exists()
    assert len(server.asked) == 18 + 2 * TRIES
    # Paid answers are not requested again. One profile that remains empty is below the limit.
    server.says = says(r"Film 7\.")
    done = run()
    assert done.returncode == 0 and len(server.asked) == 1 + TRIES, done.stderr
    assert "1 of 20 profiles are empty (filtered; first: filtered by the server)" in done.stderr
    table = contracts.read(tmp_path / "profiles.parquet", "profiles")
    assert table.filter(pl.col("profile") == "").select("session", "finished").rows() == [(7, False)]
    assert table.filter(pl.col("finished")).height == 19 and table["profile"][0] == f"{KEY[:2]} \ufffd"
    notes = json.loads((tmp_path / "profiles.parquet.manifest.json").read_text())["notes"]
    assert notes["empty"] == 1 and notes["reasoning_removed"] == 0 and notes["not_sent"] == []
