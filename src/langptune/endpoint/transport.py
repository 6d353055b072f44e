"""HTTP to untrusted endpoints: each answer has one deadline, and a maximum size derived from its limit on tokens.

The HTTP client's own time limit applies to each read from the connection: a server that sends a byte now and then can
hold it for ever. The client has no limit on the size of a body.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
from openai import DefaultHttpxClient

SPARE, PER_TOKEN = 1 << 20, 1 << 11
"""Bytes that an answer may have: a constant, and so many per token. Reasoning and signatures come beside the text, and
JSON may escape a character in up to twelve bytes."""
_LIMITS = "langptune.limits"
"""Key in a request's extensions, which a redirected request inherits."""


class TooLarge(Exception):
    """The answer is longer than its limit on tokens allows."""


class Bounded(DefaultHttpxClient):
    """An HTTP client whose ``send`` ends in time whatever the server does, with a body of bounded size.

    Args:
        seconds: time limit of one attempt, from the first byte sent to the last byte received.
        bytes_of: returns the largest size of a body in bytes; called before each request.
        seen: called with each response once it is read, in the calling thread.
        options: passed to the HTTP client of the package ``openai``.
    """

    def __init__(self, seconds: float, bytes_of: Callable[[], int], seen: Callable[[Any], None], **options: Any):
        super().__init__(event_hooks={"response": [_limit]}, **options)
        self._seconds, self._bytes_of, self._seen = seconds, bytes_of, seen

    def send(self, request: Any, **options: Any) -> Any:
        """Send a request and read its response as ``httpx`` does, within the limits on time and size.

        Raises:
            httpx2.ReadTimeout: the attempt took longer.
            TooLarge: the body is larger.
        """
        # No compression: a few bytes could unpack to gigabytes.
        request.headers["Accept-Encoding"] = "identity"
        late = threading.Event()
        request.extensions[_LIMITS] = (self._bytes_of(), late)
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def work() -> None:
            try:
                response = super(Bounded, self).send(request, **{**options, "stream": True})
                try:
                    response.read()
                finally:
                    response.close()
                done.put(response)
            except BaseException as error:  # raised again in the calling thread
                done.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            outcome = done.get(timeout=self._seconds)
        except queue.Empty:
            # The thread ends with the next byte, or with the client's time limit of one read.
            late.set()
            raise httpx2.ReadTimeout("the answer was not complete in time", request=request) from None
        if isinstance(outcome, BaseException):
            raise outcome
        self._seen(outcome)
        return outcome


def _limit(response: Any) -> None:
    """Bound what is read of a response: called for each, redirects included, before its body is read."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise TooLarge("compressed, which was not asked for")
    # Otherwise the server could name one of Python's codecs that unpack (charset=zlib).
    response.encoding = "utf-8"
    response.stream = _Stream(response.stream, *response.request.extensions[_LIMITS])


class _Stream(httpx2.SyncByteStream):
    """The body as it arrives, up to a size and until the deadline."""

    def __init__(self, stream: Any, bound: int, late: threading.Event):
        self._stream, self._bound, self._late = stream, bound, late

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for block in self._stream:
            size += len(block)
            if size > self._bound:
                raise TooLarge(f"more than {self._bound:,} bytes")
            if self._late.is_set():
                raise httpx2.ReadTimeout("the answer was not complete in time")
            yield block

    def close(self) -> None:
        self._stream.close()
