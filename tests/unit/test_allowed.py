"""Which key may be sent to which server, and what else a request contains; with real servers on this machine."""

from __future__ import annotations

import json
import os
import shutil
import threading
from contextlib import contextmanager

import pytest
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request as Received
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from langptune import allowed
from langptune.config.models import ModelSource
from langptune.endpoint.answers import Request
from langptune.endpoint.client import Client
from langptune.errors import UserError
from tests.conftest import ROOT, snakemake

ASK = Request((("user", "Who am I?"),), 8)
SAID = {
    "model": "m",
    "choices": [{"message": {"role": "assistant", "content": "You."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


def source(url: str, key: str | None = "OPENAI_API_KEY", **changes) -> ModelSource:
    return ModelSource(endpoint=url, model="m", key=key, input_price=0, output_price=0, retries=0, **changes)


def check(url: str, key: str | None = "OPENAI_API_KEY") -> None:
    allowed.check(url, key, "models.yaml: m")


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    """Hide the settings of the user who runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.delenv(allowed.VARIABLE, raising=False)
    (tmp_path / "settings" / "langptune").mkdir(parents=True)
    return tmp_path / "settings" / "langptune" / "endpoints.yaml"


@contextmanager
def listener(answer=None):
    """A server that keeps the headers and bodies of the requests it receives."""
    got: list[tuple[dict[str, str], bytes]] = []

    async def take(request: Received) -> Response:
        got.append((dict(request.headers), await request.body()))
        return JSONResponse(SAID) if answer is None else answer(request)

    app = Starlette(routes=[Route("/{path:path}", take, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", got
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.openai.com/v1", "AWS_SECRET_ACCESS_KEY"),
        ("https://evil.example/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com.evil.example/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com:8443/v1", "OPENAI_API_KEY"),
        ("https://xapi.openai.com/v1", "OPENAI_API_KEY"),
        ("https://evil.example/api.openai.com", "OPENAI_API_KEY"),
        ("http://127.0.0.1:8000/v1", "OPENAI_API_KEY"),  # any account may listen at this address
        ("http://localhost/v1", "OPENAI_API_KEY"),
    ],
)
def test_a_config_alone_sends_no_key(url, key):
    with pytest.raises(UserError, match="you have not allowed this pair, and a config cannot") as error:
        check(url, key)
    line = str(error.value)
    assert "\n" not in line and f"`{url}: {key}` into" in line and f"`export LANGPTUNE_ENDPOINTS={url}={key}`" in line


@pytest.mark.parametrize("url", ["http://api.openai.com/v1", "http://10.0.0.1/v1", "http://127.0.0.1.evil.example/v1"])
def test_no_key_goes_unencrypted_over_a_network(url, monkeypatch):
    monkeypatch.setenv(allowed.VARIABLE, f"{url}=OPENAI_API_KEY")
    with pytest.raises(UserError, match="would be sent unencrypted; use https://"):
        check(url)


@pytest.mark.parametrize(
    "url",
    [
        r"https://api.openai.com\.evil.example/v1",
        "https://api.openai.com%2eevil.example/v1",
        "https://api.openai.com;.evil.example/v1",
        "https://api.openai.com/v1/../../elsewhere",
        "https://api.openai.com/%2e%2e/elsewhere",
        "https://\uff41pi.openai.com/v1",
        "https://api.openai.com:port/v1",
    ],
)
def test_an_address_that_can_be_read_in_two_ways_gets_no_key(url):
    with pytest.raises(UserError) as error:
        check(url)
    assert "write it in plain letters" in str(error.value) or "not allowed this pair" in str(error.value)


@pytest.mark.parametrize("end", ["\n", "\r", "\t"])
def test_addresses_and_names_match_exactly(end):
    for changes in ({"url": f"https://api.openai.com/v1{end}"}, {"url": "https://h/v1", "key": f"OPENAI_API_KEY{end}"}):
        with pytest.raises(UserError, match="must be"):
            source(**changes)


def test_what_the_user_allows(own_settings, monkeypatch):
    check("https://api.openai.com/v1")
    check("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY")
    check("http://anywhere.example/v1", None)  # without a key there is nothing to allow
    own_settings.write_text(
        "https://gateway.example/openai: GATEWAY_KEY\nhttp://localhost:8000: [LOCAL_KEY, OTHER_KEY]\n"
    )
    own_settings.chmod(0o644)
    for url, key in [
        ("https://gateway.example/openai/v1", "GATEWAY_KEY"),
        ("https://GATEWAY.example:443/openai", "GATEWAY_KEY"),
        ("http://localhost:8000/v1", "OTHER_KEY"),
    ]:
        check(url, key)
    for url, key in [
        ("https://gateway.example/openai-evil", "GATEWAY_KEY"),
        ("https://gateway.example/v1", "GATEWAY_KEY"),
    ]:
        with pytest.raises(UserError, match="not allowed this pair"):
            check(url, key)
    assert allowed.names() >= {"GATEWAY_KEY", "LOCAL_KEY", "OTHER_KEY", "OPENAI_API_KEY"}
    monkeypatch.setenv(allowed.VARIABLE, "https://a.example=A_KEY\nhttps://b.example/v1=B_KEY")
    check("https://a.example/v1", "A_KEY")
    check("https://b.example/v1", "B_KEY")


@pytest.mark.parametrize(
    "text", ["https://h/v1: sk-123", "h: KEY", "https://u:p@h/v1: KEY", "https://h: 3", "[1, 2]", "a: b: c"]
)
def test_an_invalid_list_of_endpoints_is_refused(own_settings, text):
    own_settings.write_text(text)
    with pytest.raises(UserError, match=r"endpoints\.yaml") as error:
        check("https://api.openai.com/v1")
    assert "\n" not in str(error.value)


def test_a_list_that_others_may_write_is_refused(own_settings):
    own_settings.write_text("https://evil.example: OPENAI_API_KEY\n")
    for mode in (0o664, 0o646):
        own_settings.chmod(mode)
        with pytest.raises(UserError, match="others may write it and could redirect your keys"):
            check("https://evil.example/v1")
    own_settings.chmod(0o600)
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another account")
    os.chown(own_settings, 65534, 65534)
    with pytest.raises(UserError, match="others may write it"):
        check("https://evil.example/v1")


def test_nothing_is_sent_to_where_the_key_may_not_go(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    with listener() as (url, got):
        with pytest.raises(UserError, match="not allowed this pair"):
            Client(source(url, "AWS_SECRET_ACCESS_KEY"), tmp_path / "answers").ask([ASK])
        assert not got
        monkeypatch.setenv(allowed.VARIABLE, f"{url}=AWS_SECRET_ACCESS_KEY")
        Client(source(url, "AWS_SECRET_ACCESS_KEY"), tmp_path / "answers").ask([ASK])
        assert got[0][0]["authorization"] == "Bearer s3cret"


def test_a_server_gets_the_request_and_nothing_else(tmp_path, monkeypatch):
    """The openai package adds values from the environment to requests to any server."""
    own = {
        "OPENAI_API_KEY": "s3cret-key",
        "OPENAI_ADMIN_KEY": "s3cret-admin",
        "OPENAI_ORG_ID": "s3cret-organisation",
        "OPENAI_PROJECT_ID": "s3cret-project",
        "OPENAI_WEBHOOK_SECRET": "s3cret-webhook",
        "OPENAI_CUSTOM_HEADERS": "X-Gateway: s3cret-header\nAuthorization: Bearer s3cret-authorization",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/s3cret",
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with listener() as (url, got):
        (answer,) = Client(source(url, None), tmp_path).ask([ASK])
    assert answer.text == "You." and len(got) == 1
    assert "s3cret" not in json.dumps(got[0][0]) and b"s3cret" not in got[0][1]
    assert all(os.environ[name] == value for name, value in own.items()), "what is hidden comes back"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_prompt_follows_a_redirect(tmp_path, monkeypatch, status):
    monkeypatch.setenv("HOST_KEY", "s3cret")
    with listener() as (other, stolen), listener(lambda _: RedirectResponse(f"{other}/v1", status)) as (url, got):
        monkeypatch.setenv(allowed.VARIABLE, f"{url}=HOST_KEY")
        with pytest.raises(
            UserError, match=rf"sends requests on to '127.0.0.1' \({status}\), which is not followed"
        ) as error:
            Client(source(url, "HOST_KEY"), tmp_path).ask([ASK])
        assert len(got) == 1 and not stolen and "s3cret" not in str(error.value)


def test_a_redirect_writes_nothing_odd_on_the_terminal(tmp_path):
    odd = {"Location": "http://\x1b[31mevil\x9b.example/"}
    with listener(lambda _: Response(status_code=307, headers=odd)) as (url, _), pytest.raises(UserError) as error:
        Client(source(url, None), tmp_path).ask([ASK])
    assert str(error.value).isprintable()


@pytest.mark.workflow
def test_a_run_ends_before_its_first_job_where_a_key_may_not_go(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    file = tmp_path / "config" / "models.yaml"
    registry = yaml.safe_load(file.read_text())
    registry["gpt-4.1-mini"]["source"]["endpoint"] = "https://evil.example/v1"
    file.write_text(yaml.safe_dump(registry))
    smoke = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    smoke |= {"encoders": ["gpt-4.1-mini"], "methods": ["langptune-0", "pop"], "studies": {}}
    smoke |= {"comparison": {"reference": "pop"}, "interpretability": {"reader": "smollm2-135m"}}
    smoke |= {"registries": str(tmp_path / "config")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(smoke))
    done = snakemake("--configfile", str(tmp_path / "config.yaml"), "-n")
    assert done.returncode and "models.yaml: gpt-4.1-mini: endpoint https://evil.example/v1 with key" in done.stdout
    assert "Traceback" not in done.stdout, done.stdout
