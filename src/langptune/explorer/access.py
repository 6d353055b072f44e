"""Who may ask the explorer, and how much at once: other accounts of the machine and other sites get nothing.

A token, new at every start, stands in the address that the terminal prints; the page it opens leaves it in a cookie.
The cookie is sent to no other host and with no request that another site starts, and no script can read it. Cookies
know no ports: another server on 127.0.0.1 that the same browser is led to by hand receives it, too.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from asyncio import Transport

BODY = 128 * 1024
"""Bytes of a request's body."""
CONNECTIONS = 64
"""Open at once; a browser opens six."""
SECONDS = 10.0
"""For a request to be sent, and for an answer to be taken."""

# No inline script or style, nothing from elsewhere, no form that leaves, no frame around it; and the browser itself
# refuses to make markup of text (Trusted Types).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def new_token() -> str:
    """43 random characters that may stand in an address."""
    return secrets.token_urlsafe(32)


class Guard:
    """Adds the security headers, and refuses requests without the token, of other sites, and with large bodies.

    A page elsewhere may send simple requests to this address; a browser says where they come from.
    """

    def __init__(self, app: ASGIApp, token: str | None, limit: int = BODY):
        """``token``: None lets everybody in who can reach the port."""
        self.app, self.token, self.limit = app, token, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        cookie = f"langptune-explorer-{scope['server'][1]}"
        large = f"the request is larger than {self.limit // 1024} KiB"
        headers, taken = dict(HEADERS), 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit:
                raise _TooLarge(413, large)
            return message

        async def covered(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(key.encode(), value.encode()) for key, value in headers.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        async def refuse(status: int, line: str) -> None:
            headers["connection"] = "close"
            kind = PlainTextResponse(line, status) if scope["path"] == "/" else JSONResponse({"error": line}, status)
            await kind(scope, receive, covered)

        if _foreign(scope, told):
            await refuse(403, "requests of other sites are refused")
            return
        if self.token is not None:
            if scope["path"] == "/" and self._told(scope["query_string"].decode("latin-1"), "token"):
                headers["set-cookie"] = f"{cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            elif not self._told(told.get("cookie", ""), cookie):
                await refuse(403, "this needs the explorer's token: open the whole address that its terminal printed")
                return
        length = told.get("content-length", "0")
        if length.isdigit() and int(length) > self.limit:
            await refuse(413, large)
        else:
            await self.app(scope, counted, covered)

    def _told(self, text: str, name: str) -> bool:
        """Whether a query or a cookie header holds the token under a name.

        Strangers may send a megabyte: only what looks like a token is looked at, and nothing is parsed.
        """
        assert self.token is not None
        found = re.search(rf"(?:^|[&;]) *{name}=([A-Za-z0-9_-]{{43}})(?=[&; ]|$)", text)
        return found is not None and secrets.compare_digest(found[1], self.token)


def _foreign(scope: Scope, told: dict[str, str]) -> bool:
    """Whether another site asks, or a frame. A link elsewhere may open the page itself, and nothing else."""
    site, mode, dest = (told.get(f"sec-fetch-{name}", "") for name in ("site", "mode", "dest"))
    origin = told.get("origin")
    if origin is not None and origin != f"http://{told.get('host', '')}":
        return True
    if dest in ("iframe", "frame", "fencedframe", "object", "embed"):
        return True
    link = (scope["method"], scope["path"], mode) == ("GET", "/", "navigate")
    return site in ("cross-site", "same-site") and not link


class _TooLarge(HTTPException):
    """A body went over the limit while it was read."""


class Bounded(H11Protocol):
    """HTTP/1.1 over few connections, with little time to send a request and to take an answer.

    Where too many are open, the one that has waited longest without a whole request goes.
    """

    _timer: asyncio.TimerHandle | None = None
    _idle = False
    opened = 0.0

    @property
    def waiting(self) -> bool:
        """Whether it is the client's turn: no request has been read whole that is not answered yet."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: Transport) -> None:
        """Take a connection, at the cost of another one where there are too many."""
        others = self.connections if len(self.connections) >= CONNECTIONS else ()
        self.opened = self.loop.time()
        super().connection_made(transport)
        if others:
            last = min((one for one in self.connections if one.waiting), key=lambda one: one.opened)
            self.connections.discard(last)
            last.cut()
        self._start()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        if self._idle:
            self._idle = False
            self._start()
        super().data_received(data)
        if not self.waiting:
            self._stop()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to take the answer and leave."""
        super().on_response_complete()
        if self.waiting:
            self._idle = True
            self._start()

    def pause_writing(self) -> None:
        """The client takes its answer too slowly."""
        super().pause_writing()
        self._start()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if not self.waiting:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop()
        super().connection_lost(exc)

    def cut(self) -> None:
        """Reset the connection: closed in order, it would be kept for as long as the client leaves its answer."""
        self.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
        self.transport.abort()

    def _start(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(SECONDS, self.cut)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def server(site: ASGIApp) -> Server:
    """A server of the explorer's application, which is given its listening socket when it runs."""
    settings = Config(
        site,
        # A stranger's malformed request is no line in the owner's terminal.
        log_level="error",
        log_config=None,
        access_log=False,
        http=Bounded,
        ws="none",
        backlog=2 * CONNECTIONS,
        # Links that hold a long text are read, so that the page can say what is wrong with them.
        h11_max_incomplete_event_size=2**20,
        timeout_graceful_shutdown=2,
    )
    return Server(settings)
