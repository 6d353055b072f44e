"""The explorer refuses other accounts of the machine, other sites, and more requests than it can serve."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from langptune.explorer.access import CONNECTIONS
from langptune.explorer.server import WORKERS
from tests.browser.explored import DATASET, ask, ended, opened, printed, real, run_key, script

WEIGHTS = (
    (-0.5, "body.weight: Input should be greater than or equal to 0"),
    (float("nan"), "body.weight: Input should be"),
    (float("inf"), "body.weight: Input should be a finite number"),
    ("much", "body.weight: Input should be a valid number"),
    (1e6, "weight 1e+06: at most"),
)
"""Weights of popularity that are refused, and why."""


def asked_weight(weight: object, **further: str) -> dict:
    """The body of a request that ranks a text with a weight."""
    return {"dataset": DATASET, "run": run_key("langptune"), "text": "y", "session": 0, "weight": weight, **further}


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
        ("/api/rank", {"dataset": DATASET, "run": "pop/pop/0", "text": "y", "session": 0}, "does not rank by texts"),
        *(("/api/rank", asked_weight(weight), message) for weight, message in WEIGHTS),
        ("/api/rank", asked_weight(0, beside="pop/pop/0"), "does not rank by texts"),
        ("/api/rank", asked_weight(0, beside="x"), "run 'x' is not among the finished"),
        ("/api/match", {"dataset": DATASET, "lines": ["a"] * 101}, "at most 100"),
        ("/api/write", {"dataset": DATASET, "run": run_key("langptune"), "own": [[99999, 5]]}, "outside the catalogue"),
        ("/api/rank", {"dataset": DATASET, "wrong": 1}, "Field required"),
    ):
        status, _, answer = ask(address, "POST", path, json.dumps(asked), **kind)
        error = json.loads(answer)["error"]
        assert status == 400 and message in error and "\n" not in error, answer


SECRETS = (DATASET, "ml-100k", "langptune", "history", "Profile explorer")
"""Words that an answer to a stranger must not contain."""


def as_nobody(work):
    """Call a function in a process of another account of this machine, and return its result."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to act as another account")
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
    """Chromium sends the cookie, because another port of 127.0.0.1 is the same site for a browser."""
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
        # Chromium reports no status for refused scripts and images.
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
    """Each client sends or receives a little at a time, for as long as the server allows."""
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
    # This client reads nothing of what it requests: many files, of which the socket's buffers hold a few.
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
    """On one requested port, one explorer serves and the other reports this in one line. Without a port, both serve."""
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
