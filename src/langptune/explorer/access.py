"""Access control and limits of the explorer: other accounts of the machine and other sites are refused.

The address that the terminal prints contains a token, new at every start. The page stores it in a cookie. The browser
sends the cookie to no other host and with no request that another site starts, and no script can read it. Cookies are
not bound to a port: another server on 127.0.0.1 that the user opens in the same browser receives it too.
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
"""Limit on a request's body in bytes."""
CONNECTIONS = 64
"""Limit on open connections; a browser opens six."""
SECONDS = 10.0
"""Time limit for sending a request, and for receiving its response."""

# No inline script or style, nothing from other hosts, no forms to other sites, no frame around the page; and the
# browser refuses to turn text into markup (Trusted Types).
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
    """43 random characters that are valid in an address."""
    return secrets.token_urlsafe(32)


class Guard:
    """Adds the security headers, and refuses requests without the token, from other sites, or with large bodies.

    A page of another site may send simple requests to this address; the browser reports where they come from.
    """

    def __init__(self, app: ASGIApp, token: str | None, limit: int = BODY):
        """``token``: None admits everybody who can reach the port."""
        self.app, self.token, self.limit = app, token, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        cookie = f"langptune-explorer-{scope['server'][1]}"
        large = f"the request is larger than {self.limit // 1024} KiB"
        extra_headers, received = dict(HEADERS), 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise _TooLarge(413, large)
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(key.encode(), value.encode()) for key, value in extra_headers.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        async def refuse(status: int, line: str) -> None:
            extra_headers["connection"] = "close"
            page = scope["path"] == "/"
            response = PlainTextResponse(line, status) if page else JSONResponse({"error": line}, status)
            await response(scope, receive, send_with_headers)

        if _foreign(scope, headers):
            await refuse(403, "requests of other sites are refused")
            return
        if self.token is not None:
            if scope["path"] == "/" and self._has_token(scope["query_string"].decode("latin-1"), "token"):
                extra_headers["set-cookie"] = f"{cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            elif not self._has_token(headers.get("cookie", ""), cookie):
                await refuse(403, "this needs the explorer's token: open the whole address that its terminal printed")
                return
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.limit:
            await refuse(413, large)
        else:
            await self.app(scope, receive_limited, send_with_headers)

    def _has_token(self, text: str, name: str) -> bool:
        """Whether a query or a cookie header contains the token under a name.

        Others may send a megabyte: a regular expression finds what looks like a token, and nothing is parsed.
        """
        assert self.token is not None
        found = re.search(rf"(?:^|[&;]) *{name}=([A-Za-z0-9_-]{{43}})(?=[&; ]|$)", text)
        return found is not None and secrets.compare_digest(found[1], self.token)


def _foreign(scope: Scope, headers: dict[str, str]) -> bool:
    """Whether a request comes from another site or a frame. A link of another site may open the page itself only."""
    site, mode, dest = (headers.get(f"sec-fetch-{name}", "") for name in ("site", "mode", "dest"))
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers.get('host', '')}":
        return True
    if dest in ("iframe", "frame", "fencedframe", "object", "embed"):
        return True
    link = (scope["method"], scope["path"], mode) == ("GET", "/", "navigate")
    return site in ("cross-site", "same-site") and not link


class _TooLarge(HTTPException):
    """The body exceeded the limit while it was read."""


class Bounded(H11Protocol):
    """HTTP/1.1 with few connections, and with time limits for sending a request and receiving its response.

    If too many connections are open, the one that has waited longest without a complete request is closed.
    """

    _timer: asyncio.TimerHandle | None = None
    _idle = False
    opened = 0.0

    @property
    def waiting(self) -> bool:
        """Whether it is the client's turn: every request that was read completely has its response."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: Transport) -> None:
        """Accept a connection, and close another one if there are too many."""
        others = self.connections if len(self.connections) >= CONNECTIONS else ()
        self.opened = self.loop.time()
        super().connection_made(transport)
        if others:
            oldest = min((one for one in self.connections if one.waiting), key=lambda one: one.opened)
            self.connections.discard(oldest)
            oldest.cut()
        self._start()

    def data_received(self, data: bytes) -> None:
        """Receive bytes of a request."""
        if self._idle:
            self._idle = False
            self._start()
        super().data_received(data)
        if not self.waiting:
            self._stop()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to receive the response and close."""
        super().on_response_complete()
        if self.waiting:
            self._idle = True
            self._start()

    def pause_writing(self) -> None:
        """The client receives its response too slowly."""
        super().pause_writing()
        self._start()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if not self.waiting:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop()
        super().connection_lost(exc)

    def cut(self) -> None:
        """Reset the connection: an orderly close would wait until the client has received its response."""
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
    """A server of the explorer's application; it gets its listening socket when it runs."""
    settings = Config(
        site,
        # Malformed requests of others must not fill the owner's terminal.
        log_level="error",
        log_config=None,
        access_log=False,
        http=Bounded,
        ws="none",
        backlog=2 * CONNECTIONS,
        # Links that contain a long text are accepted, so that the page can explain what is wrong with them.
        h11_max_incomplete_event_size=2**20,
        timeout_graceful_shutdown=2,
    )
    return Server(settings)
