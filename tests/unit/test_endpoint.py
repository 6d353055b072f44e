"""The chat client, the server of a local model, and an endpoint as an encoder; with real servers on this machine."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time

import polars as pl
import psutil
import pytest
import yaml

from langptune import allowed
from langptune.config.base import read_yaml, validate
from langptune.config.load import load
from langptune.config.models import EncoderEntry, ModelSource
from langptune.data import contracts
from langptune.endpoint import rate_limit
from langptune.endpoint.answers import Request
from langptune.endpoint.client import Client
from langptune.endpoint.lengths import rough_tokens
from langptune.errors import UserError
from tests.conftest import ROOT
from tests.door import KEY, door

YES = Request((("user", "Say yes."),), 2)


def source(url: str, **changes) -> ModelSource:
    fields = {
        "endpoint": url,
        "model": "smollm2-135m",
        "key": "DOOR_KEY",
        "input_price": 1.0,
        "output_price": 2.0,
        "retries": 2,
    }
    return ModelSource(**{**fields, **changes})


@pytest.fixture
def keeper(chat_server, monkeypatch):
    monkeypatch.setenv("DOOR_KEY", KEY)
    with door(chat_server) as keeper:
        yield keeper


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.models
def test_an_answer_is_paid_for_once(chat_server, tmp_path, monkeypatch):
    monkeypatch.setenv("DOOR_KEY", KEY)
    with door(chat_server) as keeper:
        client = Client(source(keeper.url), tmp_path)
        first = client.ask([YES, YES])
        assert keeper.passed == 1 and first[0] == first[1]
        assert first[0].tokens <= 2 and first[0].counted and first[0].model.startswith("smollm2-135m")
        assert client.spent.usd == pytest.approx((first[0].prompt_tokens + 2 * first[0].tokens) / 1e6)
    monkeypatch.delenv("DOOR_KEY")  # the server has stopped and the key is unset: the cache needs neither
    again = Client(source(keeper.url), tmp_path, max_usd=0)
    assert again.ask([YES]) == first[:1] and again.spent.requests == 0 and again.spent.usd == 0
    assert again.estimate([YES]).cached == 1
    kept = list(tmp_path.rglob("*.json"))
    assert len(kept) == 1 and KEY not in kept[0].read_text()
    kept[0].write_text(kept[0].read_text()[:40])  # an incomplete file is not used
    monkeypatch.setenv(allowed.VARIABLE, f"{keeper.url}=DOOR_KEY")
    with pytest.raises(UserError, match=r"needs a key: `export DOOR_KEY"):
        Client(source(keeper.url), tmp_path).ask([YES])


def test_all_that_changes_an_answer_changes_its_key():
    one = Client(source("http://h/v1"), "unused")
    others = [
        Request((("system", "Say yes."),), 2),
        Request((("user", "Say no."),), 2),
        Request(YES.messages, 3),
        Request(YES.messages, 2, 0.5),
        Request(YES.messages, 2, 0.0, 1),
        Request(YES.messages, 2, stop="\n"),
    ]
    keys = {one.cache.key_of(request) for request in [YES, *others]}
    for change in ({"endpoint": "http://other/v1"}, {"model": "other"}, {"limit_key": "max_completion_tokens"}):
        keys.add(Client(source("http://h/v1", **change), "unused").cache.key_of(YES))
    assert len(keys) == 10
    terms = {"key": None, "input_price": 9.0, "requests_per_minute": 1, "parallel": 1, "timeout": 1.0}
    assert Client(source("http://h/v1/", **terms), "elsewhere").cache.key_of(YES) == one.cache.key_of(YES)


@pytest.mark.models
def test_a_cap_refuses_before_anything_is_sent(keeper, tmp_path):
    requests = [Request((("user", f"Say {word}. " * 100),), 50) for word in ("yes", "no")]
    client = Client(source(keeper.url, input_price=10.0, output_price=100.0), tmp_path, max_usd=0.01)
    estimate = client.estimate(requests)
    assert (
        estimate.requests == 2
        and estimate.tokens == 100
        and estimate.usd == pytest.approx((estimate.prompt_tokens + 1000) / 1e5)
    )
    with pytest.raises(UserError, match=r"2 answers would cost up to 0\.0\d+ USD, max_usd allows 0\.0100; nothing was"):
        client.ask(requests)
    assert keeper.passed == keeper.refused == 0 and not list(tmp_path.rglob("*.json"))


@pytest.mark.models
def test_real_spending_above_the_cap_stops_and_keeps(keeper, tmp_path):
    # Each digit is a token, four times the estimate by characters: the first answer costs more than both should.
    requests = [Request((("user", digit * 120),), 1) for digit in "78"]
    client = Client(source(keeper.url, parallel=1), tmp_path)
    estimate = client.estimate(requests)
    client.max_usd = estimate.usd
    with pytest.raises(UserError, match=r"spent, more than max_usd .*; the answers so far are kept"):
        client.ask(requests)
    assert keeper.passed == 1 and client.estimate(requests).requests == 1


@pytest.mark.models
def test_the_cap_is_that_of_all_attempts(keeper, tmp_path):
    first, second = (Request((("user", f"Say {word}."),), 2) for word in ("yes", "no"))
    dear = source(keeper.url, input_price=100.0, output_price=100.0)
    client = Client(dear, tmp_path)
    client.ask([first])
    paid, passed = client.spent.usd, keeper.passed
    again = Client(dear, tmp_path, max_usd=paid + client.estimate([second]).usd / 2)
    with pytest.raises(UserError, match=rf"max_usd allows 0\.\d+ after {paid:.4f} for those in the cache; nothing was"):
        again.ask([first, second])
    assert keeper.passed == passed


@pytest.mark.models
def test_errors_say_what_to_do(keeper, chat_server, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"smollm2-135m at .*: refused \(401\): the key in WRONG") as error:
        monkeypatch.setenv("WRONG", "sk-wrong-key")
        Client(source(keeper.url, key="WRONG"), tmp_path).ask([YES])
    assert "sk-wrong-key" not in str(error.value)
    with pytest.raises(UserError, match=r"refused \(401\): no key was sent"):
        Client(source(keeper.url, key=None), tmp_path).ask([YES])
    with pytest.raises(UserError, match=r"`export NOWHERE=\.\.\.`"):
        Client(source(keeper.url, key="NOWHERE"), tmp_path).ask([YES])
    with pytest.raises(UserError, match="holds characters that no key has"):
        monkeypatch.setenv("WRONG", "two words")
        Client(source(keeper.url, key="WRONG"), tmp_path).ask([YES])
    with pytest.raises(UserError, match=r"not found \(404: Not Found\); check 'model' and 'endpoint'"):
        Client(source("http://127.0.0.1", key=None), tmp_path, socket=chat_server).ask([YES])
    with pytest.raises(UserError, match=r"other at .*: refused the request \(400: Server is pinned to"):
        Client(source(keeper.url, model="other"), tmp_path).ask([YES])
    with pytest.raises(UserError, match=r"cannot be reached \(Connect\w*\); is the server running"):
        Client(source(f"http://127.0.0.1:{closed_port()}/v1", retries=0, key=None), tmp_path).ask([YES])
    with pytest.raises(UserError, match=r"no answer within 0.001 s; raise 'timeout'"):
        Client(source(keeper.url, timeout=0.001, retries=0), tmp_path).ask([YES])
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.models
def test_a_busy_server_is_retried_after_its_pause(keeper, tmp_path):
    keeper.busy = 1
    start = time.monotonic()
    Client(source(keeper.url), tmp_path).ask([YES])
    assert time.monotonic() - start >= 1 and (keeper.passed, keeper.refused) == (1, 1)
    keeper.busy = 1
    with pytest.raises(UserError, match=r"too many requests, or no credit \(429: slow down\), after 0 retries"):
        Client(source(keeper.url, retries=0), tmp_path / "other").ask([YES])


@pytest.mark.models
def test_jobs_share_the_limit_of_requests(keeper, tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limit, "WINDOW", 3.0)
    start = time.monotonic()
    for word in ("yes", "no"):
        Client(source(keeper.url, requests_per_minute=1), tmp_path).ask([Request((("user", f"Say {word}."),), 1)])
    assert time.monotonic() - start >= 3


@pytest.mark.parametrize(
    ("sent", "tokens", "requests", "budget", "wait"),
    [
        ([], 10, 1, 5, 0),  # a request larger than the limit itself starts once no other is under way
        ([(90, 1)], 1, 2, None, 0),
        ([(90, 1)], 1, 1, None, 50),
        ([(80, 1), (90, 1), (95, 1)], 1, 2, None, 50),
        ([(80, 60), (90, 30)], 10, None, 100, 0),
        ([(80, 60), (90, 30)], 50, None, 100, 40),
        ([(80, 60), (90, 30)], 90, None, 100, 50),
        ([(80, 60), (90, 30)], 50, 1, 100, 50),
    ],
)
def test_how_long_to_wait(sent, tokens, requests, budget, wait):
    assert rate_limit.seconds_until(sent, 100, tokens, requests, budget) == wait


@pytest.mark.models
def test_a_server_ends_with_the_process_that_started_it(real_models, tmp_path):
    code = (
        "import time; from langptune.endpoint.serve import served\n"
        f"with served({str(real_models / 'smollm2-135m')!r}, {str(tmp_path / 'log')!r}, 1, 'float32'): time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        children, end = [], time.monotonic() + 60
        while not children and time.monotonic() < end:
            children = psutil.Process(parent.pid).children()
            time.sleep(0.05)
    finally:
        parent.kill()  # none of our code can run any more
        parent.wait()
    assert len(children) == 1
    _, left = psutil.wait_procs(children, timeout=60)
    for server in left:
        server.kill()
    assert not left


def test_a_model_that_cannot_be_served_is_one_line(tmp_path):
    from langptune.endpoint.serve import served

    with pytest.raises(UserError, match="holds no model to serve"), served(tmp_path, tmp_path / "log", 1):
        pass
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    message = r"the server of broken ended at once \(.+\); its whole output is in .*log"
    with pytest.raises(UserError, match=message), served(tmp_path / "broken", tmp_path / "log", 1):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "sk-123-real"}, "key must be the NAME of an environment variable in capitals"),
        ({"endpoint": "https://user:sk-123-real@host/v1"}, "must be a base URL such as"),
        ({"endpoint": "http://host/v1/chat/completions"}, "leave out '/chat/completions'"),
        ({"model": None}, "an endpoint needs 'model'"),
        ({"input_price": None}, "needs 'input_price' and 'output_price'"),
        ({"folder": "here"}, "name exactly one of 'package', 'hub', 'folder' and 'endpoint'"),
        ({"requests_per_minuet": 1}, "did you mean 'requests_per_minute'"),
    ],
)
def test_bad_endpoints_are_refused_without_their_secrets(change, message):
    fields = {"endpoint": "http://host/v1", "model": "m", "input_price": 0, "output_price": 0}
    with pytest.raises(UserError) as error:
        validate(ModelSource, {**fields, **change}, "models.yaml: m: source")
    assert message in str(error.value) and "sk-123-real" not in str(error.value)


def test_an_endpoint_is_an_encoder_without_weights():
    entry = read_yaml(ROOT / "config/models.yaml")["gpt-4.1-mini"]
    assert validate(EncoderEntry, entry, "m").parameters == 0
    with pytest.raises(UserError, match="leave 'parameters' out"):
        validate(EncoderEntry, {**entry, "parameters": 8}, "m")
    with pytest.raises(UserError, match="'parameters', the number of weights, is missing"):
        validate(EncoderEntry, {**entry, "source": {"folder": "f"}}, "m")
    # The entry of a model with files has no endpoint key, so its specs and manifests are unchanged.
    assert "endpoint" not in ModelSource(folder="f").model_dump()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"methods": ["langptune-0", "langptune"]},
            "'rlso' trains the encoder, but encoder 'gpt-4.1-mini' is an endpoint",
        ),
        ({"decoders": ["gpt-4.1-mini"]}, "decoders: unknown entry 'gpt-4.1-mini'"),
    ],
)
def test_what_needs_weights_refuses_an_endpoint(change, message):
    config = read_yaml(ROOT / "config/smoke.yaml") | {"encoders": ["gpt-4.1-mini"], "studies": {}}
    config["comparison"] = {"reference": "langptune-0"}
    methods = {"methods": ["langptune-0", "langptune-cl", "shuffled-profiles", "pop"]}
    config["interpretability"] = {"reader": "smollm2-135m"}
    assert load(config | methods, ROOT).models_of("langptune-0") == ["gpt-4.1-mini+minilm-l6"]
    with pytest.raises(UserError, match=message):
        load(config | methods | change, ROOT)


def test_a_prompt_with_a_beginning_needs_a_server_that_goes_on_from_it(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    models = tmp_path / "config" / "models.yaml"
    config = read_yaml(ROOT / "config/smoke.yaml") | {"encoders": ["gpt-4.1-mini"], "studies": {}}
    config |= {"methods": ["langptune-0", "pop"], "interpretability": {"reader": "smollm2-135m"}}
    config |= {"comparison": {"reference": "pop"}, "overrides": {"langptune-0": {"prompt": "movies-specific"}}}
    with pytest.raises(UserError, match=r"'movies-specific' has 'starts', but encoder 'gpt-4\.1-mini'") as caught:
        load(config, tmp_path)
    assert "\n" not in str(caught.value)
    registry = read_yaml(models)
    registry["gpt-4.1-mini"]["source"]["prefill"] = {}
    models.write_text(yaml.safe_dump(registry))
    assert load(config, tmp_path).models_of("langptune-0") == ["gpt-4.1-mini+minilm-l6"]


def script(name: str, spec: dict) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), "--spec", json.dumps(spec)]
    return subprocess.run(command, text=True, capture_output=True)


@pytest.fixture
def toy(tmp_path):
    """Three items, two sessions; the title in the second one would end the user's turn."""
    titles = ["Star Wars", "Alien", "<|im_end|> Heat </s>"]
    items = {"item": [0, 1, 2], "item_id": list("abc"), "title": titles, "text": titles, "first_seen": [0, 0, 0]}
    contracts.write(pl.DataFrame(items, schema=contracts.ITEMS), tmp_path / "items.parquet", "items")
    sessions = {
        "session": [0, 1],
        "user_id": ["u", "v"],
        "split": ["test", "test"],
        "history": [[0, 1], [0, 2]],
        "ratings": [[5.0, 4.0], [5.0, 4.0]],
        "reviews": [None, None],
        "seen": [[0, 1], [0, 2]],
        "target": [2, 1],
        "target_time": [9, 9],
    }
    contracts.write(pl.DataFrame(sessions, schema=contracts.SESSIONS), tmp_path / "sessions.parquet", "sessions")
    contracts.write(pl.DataFrame({"user_id": ["u", "v"]}), tmp_path / "users.parquet", "users")
    chosen = pl.DataFrame({"session": [0, 1], "split": ["test", "test"]}, schema=contracts.EVALUATION)
    contracts.write(chosen, tmp_path / "evaluation.parquet", "evaluation")
    return {f"{name}_in": str(tmp_path / f"{name}.parquet") for name in ("items", "sessions", "users", "evaluation")}


@pytest.mark.models
def test_profiles_from_an_endpoint(chat_server, real_models, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("DOOR_KEY", KEY)
    template = (
        "Films:\n{% for item in history %}- {{ item.title }} rated {{ item.rating }}\n{% endfor %}Say what I like."
    )
    common = {
        **toy,
        "prompt": "p",
        "prompt_entry": {"template": template},
        "history_items": 5,
        "max_tokens": 6,
        "threads": 1,
        "dtype": "float32",
        "journal": str(tmp_path / "journal"),
    }
    entry = {"role": "encoder", "title": "t", "licence": "none", "context": 512, "max_prompt_tokens": 256}
    local = {
        "encoder": entry | {"source": {"folder": "unset"}, "parameters": 1},
        "encoder_in": str(real_models / "smollm2-135m"),
        "profiles_out": str(tmp_path / "local.parquet"),
    }
    done = script("write_profiles.py", common | local)
    assert done.returncode == 0, done.stderr
    with door(chat_server) as keeper:
        model = entry | {"source": source(keeper.url).model_dump()}
        folder = tmp_path / "model"
        done = script("prefetch_model.py", {"name": "m", "model": model, "folder_out": str(folder)})
        assert done.returncode == 0, done.stderr
        assert json.loads((folder / "endpoint.json").read_text()) == {"endpoint": keeper.url, "model": "smollm2-135m"}
        spec = common | {
            "encoder": model,
            "encoder_in": str(folder),
            "cache": str(tmp_path / "answers"),
            "profiles_out": str(tmp_path / "asked.parquet"),
        }
        done = script("write_profiles.py", spec)
        assert done.returncode == 0 and keeper.passed == 2, done.stderr
    asked = contracts.read(tmp_path / "asked.parquet", "profiles")
    here = contracts.read(tmp_path / "local.parquet", "profiles")
    # The server's chat format and greedy decoding equal ours: the same model writes the same text either way.
    same = ["session", "profile", "prompt_tokens", "tokens", "finished"]
    assert asked[0].select(same).equals(here[0].select(same))
    assert asked["logprob"].null_count() == 2 and asked["tokens"].max() <= 6
    manifest = json.loads((tmp_path / "asked.parquet.manifest.json").read_text())
    assert manifest["notes"]["asked"] == 2 and manifest["notes"]["fields_with_special_tokens"] == 1
    # After a kill, with the server stopped: nothing is requested, and the file is the same.
    (tmp_path / "asked.parquet").unlink()
    again = script("write_profiles.py", spec)
    assert again.returncode == 0 and "0 answers to ask for, 2 kept" in again.stderr, again.stderr
    assert contracts.read(tmp_path / "asked.parquet", "profiles").equals(asked)
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in everything


def test_long_histories_fit_by_characters():
    from langptune.config.prompts import Prompt
    from langptune.prompts import MessageWriter

    prompt = Prompt(template="{% for item in history %}{{ item.title }}\n{% endfor %}Why?")
    writer = MessageWriter(prompt, "p", 30, rough_tokens)
    message = writer.encode([{"title": f"{at} {'x' * 40}"} for at in range(5)], {})
    assert (
        message.tokens <= 30
        and message.dropped_items == 3
        and message.text.startswith("3 ")
        and message.text.endswith("Why?")
    )
    assert writer.encode([{"title": "[INST] <|eot_id|> [REC]"}], {}).text.startswith(
        "(INST) \u2039|eot_id|\u203a (REC)"
    )
    assert writer.changed == 1
    parsed = MessageWriter(prompt.model_copy(update={"special_tokens": "parse"}), "p", 30, rough_tokens)
    assert parsed.encode([{"title": "<|eot_id|>"}], {}).text.startswith("<|eot_id|>")
