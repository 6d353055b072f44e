"""HTTP to an endpoint that may be anyone's: each answer has one deadline, and a size that its limit on tokens allows.

The client's own time limit is for each read from the connection: a server that sends a byte now and then holds it for
ever. Its memory has no limit at all.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
from openai import DefaultHttpxClient

SPARE, PER_TOKEN = 1 << 20, 1 << 11
"""Bytes of an answer, whatever its limit on tokens, and for each token: reasoning and signatures come beside the text,
and JSON spells a character in up to twelve bytes."""
_LIMITS = "langptune.limits"
"""Key in a request's extensions, which a redirected one inherits."""


class TooLarge(Exception):
    """An answer that is longer than its limit on tokens allows."""


class Bounded(DefaultHttpxClient):
    """An HTTP client whose ``send`` ends in time, whatever the server does, with a body of a bounded size.

    Args:
        seconds: from the first byte that is sent to the last that comes, of one attempt; later it is a time-out.
        bytes_of: the most bytes that a body may have, asked before each request.
        seen: is called with each response once it is read, in the thread that asked.
        options: of the client of the package ``openai``.
    """

    def __init__(self, seconds: float, bytes_of: Callable[[], int], seen: Callable[[Any], None], **options: Any):
        super().__init__(event_hooks={"response": [_limit]}, **options)
        self._seconds, self._bytes_of, self._seen = seconds, bytes_of, seen

    def send(self, request: Any, **options: Any) -> Any:
        """Send and read as ``httpx`` does, in time and within the size.

        Raises:
            httpx2.ReadTimeout: it took longer.
            TooLarge: the body is longer.
        """
        # Nothing packed: a few bytes could unpack to gigabytes.
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
            except BaseException as error:  # handed on to the thread that asked
                done.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            outcome = done.get(timeout=self._seconds)
        except queue.Empty:
            # The thread ends with the next byte, or with the client's time limit of one read.
            late.set()
            raise httpx2.ReadTimeout("the answer was not whole in time", request=request) from None
        if isinstance(outcome, BaseException):
            raise outcome
        self._seen(outcome)
        return outcome


def _limit(response: Any) -> None:
    """Bound what is read of a response: called for each, those that lead elsewhere too, before its body is read."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise TooLarge("packed, which was not asked for")
    # Else the server's word for it may be a codec of Python's that unpacks (charset=zlib).
    response.encoding = "utf-8"
    response.stream = _Stream(response.stream, *response.request.extensions[_LIMITS])


class _Stream(httpx2.SyncByteStream):
    """The body as it comes, up to a bound, until it is too late."""

    def __init__(self, stream: Any, bound: int, late: threading.Event):
        self._stream, self._bound, self._late = stream, bound, late

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for block in self._stream:
            size += len(block)
            if size > self._bound:
                raise TooLarge(f"more than {self._bound:,} bytes")
            if self._late.is_set():
                raise httpx2.ReadTimeout("the answer was not whole in time")
            yield block

    def close(self) -> None:
        self._stream.close()
