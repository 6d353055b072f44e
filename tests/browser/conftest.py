"""A headless Chromium for the pages. LANGPTUNE_NEED_BROWSER=1 makes its absence a failure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.browser.explored import ask, ended, printed, script

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """The system's Chromium, driven by Playwright.

    It stops after each file: its thread has a running event loop until then, and other tests start their own.
    """
    if CHROMIUM is None:
        if os.environ.get("LANGPTUNE_NEED_BROWSER"):
            pytest.fail("no chromium on this machine: apt-get install chromium")
        pytest.skip("needs chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A fresh page. The test fails if the page sends a request beyond this machine or throws an error."""
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    outside, errors = [], []
    page.on("request", lambda request: outside.append(request.url) if foreign(request.url) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not outside, f"requests beyond this machine: {outside}"
    assert not errors, f"errors on the page: {errors}"


def foreign(url: str) -> bool:
    """Whether a request leaves this machine."""
    return not url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:", "about:"))


@pytest.fixture(scope="module")
def address(smoke_run):
    """The address of the explorer, run as a script on the finished run."""
    server = script(smoke_run, "--config", str(smoke_run / "config/smoke.yaml"), "--port", "0")
    out = printed(server)
    assert out.token
    # The first answer waits for torch and two decoders, so it must not count against a browser's time limit.
    assert ask(out, "GET", "/api/view")[0] == 200
    yield out
    ended(server)
