"""The explorer's server: one page and a few JSON responses, for its owner only (``langptune.explorer.access``).

``langptune.explorer.views`` computes the responses; this module has the routes, the responses to errors, and the stream
of progress while a profile is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from langptune.errors import UserError, printable
from langptune.explorer.access import Guard
from langptune.explorer.finished import Choice
from langptune.explorer.live import Cancelled, Live
from langptune.explorer.views import LINES, TEXT, Explorer, Lines, Order, Rerank

HERE = Path(__file__).parent
HOST = "127.0.0.1"
WORKERS = 8
"""Requests that are computed at the same time."""

log = logging.getLogger("langptune.explorer")


@contextlib.asynccontextmanager
async def _few_workers(_: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = WORKERS
    yield


def app(explorer: Explorer, token: str | None) -> FastAPI:
    """The web application; its users need ``token``, None admits everybody."""
    # FastAPI's documentation pages load scripts from other hosts.
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_few_workers)
    pages = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    site.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    site.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    site.add_middleware(Guard, token=token)

    @site.exception_handler(UserError)
    def _user_error(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @site.exception_handler(RequestValidationError)
    def _malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": printable(f"{where}: {first['msg'].removeprefix('Value error, ')}")[:300]}, 400)

    @site.exception_handler(HTTPException)
    def _refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @site.exception_handler(Exception)
    def _broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"{type(error).__name__}; see the terminal of the server for details"}, 500)

    @site.get("/")
    def page() -> HTMLResponse:
        names = {name: explorer.finished.workflow.datasets[name].title for name in explorer.finished.datasets()}
        page = pages.get_template("explore.html").render(datasets=names, limit=TEXT, lines=LINES)
        return HTMLResponse(page)

    @site.get("/favicon.ico")
    def icon() -> PlainTextResponse:
        return PlainTextResponse("", 204)

    @site.get("/api/view")
    def view(request: Request) -> dict[str, Any]:
        return explorer.view(dict(request.query_params))

    @site.get("/api/users")
    def users(dataset: str, q: str) -> list[dict[str, Any]]:
        return explorer.users(dataset, q)

    @site.get("/api/random")
    def random(dataset: str, seed: int) -> dict[str, int]:
        return {"session": explorer.random(dataset, seed)}

    @site.post("/api/rank")
    def rank(asked: Rerank) -> dict[str, Any]:
        return explorer.rerank(asked)

    @site.post("/api/match")
    def match(asked: Lines) -> list[dict[str, Any]]:
        return explorer.match(asked)

    @site.post("/api/write")
    async def write(order: Order) -> StreamingResponse:
        choice = await run_in_threadpool(explorer.ordered, order)
        return StreamingResponse(_writing(explorer.live, choice, order.own), media_type="application/x-ndjson")

    return site


async def _writing(live: Live, choice: Choice, own: list[tuple[int, float]]) -> AsyncIterator[str]:
    """Progress of a profile, one JSON object per line; the last one has ``text`` or ``error``.

    If the client disconnects, the server closes this generator, which stops the writing.
    """
    if not live.writers.acquire(blocking=False):
        yield json.dumps({"error": "too many profiles are being written; wait for one, or stop it"}) + "\n"
        return
    loop, lines, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

    def put(line: dict[str, Any] | None) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended in the meantime
            loop.call_soon_threadsafe(lines.put_nowait, line)

    def work() -> None:
        try:
            text, source = live.write(
                choice, own, lambda stage, done, of: put({"stage": stage, "done": done, "of": of}), gone
            )
            put({"text": text, "source": source})
        except Cancelled:
            log.info("the client cancelled a profile")
        except UserError as error:
            put({"error": str(error)})
        except Exception as error:
            log.exception("writing a profile failed")
            put({"error": f"{type(error).__name__}; see the terminal of the server for details"})
        finally:
            live.writers.release()
            put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (line := await lines.get()) is not None:
            yield json.dumps(line) + "\n"
    finally:
        gone.set()
