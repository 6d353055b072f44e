"""A real HTTP proxy of a chat server: it checks a key, counts and refuses requests, or sends fixed answers."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from langptune.allowed import VARIABLE

KEY = "sk-of-this-test-0123456789"


class Door:
    """A proxy of a chat server.

    busy: number of further requests that are answered with 429.
    passed, refused: number of requests that were passed on, or refused.
    says: replaces the server: a function of the request's body returns status and bytes.
    asked: the bodies of the requests that passed.
    """

    def __init__(self, behind: str):
        self.behind, self.busy, self.passed, self.refused = behind, 0, 0, 0
        self.says: Callable[[dict[str, Any]], tuple[int, bytes]] | None = None
        self.asked: list[dict[str, Any]] = []
        self.url = ""

    async def answer(self, request: Request) -> Response:
        """Refuse a request, or pass it on to the server and return its answer."""
        if request.headers.get("authorization") != f"Bearer {KEY}":
            self.refused += 1
            # Some servers return the key in the message.
            message = f"Incorrect API key provided: {request.headers.get('authorization')}"
            return JSONResponse({"error": {"message": message}}, 401)
        if self.busy:
            self.busy -= 1
            self.refused += 1
            return JSONResponse({"error": {"message": "slow down"}}, 429, {"Retry-After": "1"})
        self.passed += 1
        body = await request.body()
        self.asked.append(json.loads(body))
        if self.says is not None:
            status, content = self.says(self.asked[-1])
        else:
            status, content = await run_in_threadpool(self._behind, body)
        return Response(content, status, media_type="application/json")

    def _behind(self, body: bytes) -> tuple[int, bytes]:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=self.behind), timeout=120) as client:
            headers = {"Content-Type": "application/json"}
            answer = client.post("http://127.0.0.1/v1/chat/completions", content=body, headers=headers)
        return answer.status_code, answer.content


@contextmanager
def door(behind: str = "", keys: tuple[str, ...] = ("DOOR_KEY", "WRONG", "NOWHERE")):
    """A running proxy; it stops and frees its port when the block ends.

    Args:
        behind: socket of the chat server.
        keys: environment variables with keys that the user allows for the proxy's address while it runs.
    """
    keeper = Door(behind)
    app = Starlette(routes=[Route("/v1/chat/completions", keeper.answer, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    keeper.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = " ".join(f"{keeper.url}={key}" for key in keys)
    try:
        yield keeper
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})
        server.should_exit = True
        thread.join()
