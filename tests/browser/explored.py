"""The explorer as a separate process on the finished smoke run, and requests to it."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DATASET = "ml-100k-small"
MODELS = "smollm2-135m+minilm-l6"


def real(test):
    """Mark a test that needs a finished run."""
    for name in ("browser", "models", "workflow"):
        test = getattr(pytest.mark, name)(test)
    return test


def script(repo: Path, *args: str) -> subprocess.Popen:
    """Start scripts/explore.py of a repository."""
    command = [sys.executable, str(repo / "scripts" / "explore.py"), *args]
    there = {**os.environ, "PYTHONPATH": str(repo / "src")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=repo, env=there, text=True, **pipes)


class Address(str):
    """Address of a server, as in links. ``token`` is the token that its terminal printed, ``pid`` its process id."""

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


def run_key(method: str, seed: int = 0, models: str = MODELS) -> str:
    return f"{method}/{models}/{seed}"


def opened(page, url: str, **state: str):
    """Open a page and wait until its lists are shown."""
    from urllib.parse import urlencode

    asked = ({"token": url.token} if isinstance(url, Address) else {}) | state
    page.goto(f"{url}?{urlencode(asked)}" if asked else url)
    page.locator(".list.right li").first.wait_for(timeout=60_000)
    return page


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
