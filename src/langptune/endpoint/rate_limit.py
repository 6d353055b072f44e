"""Limits on requests and tokens per minute, which all jobs of one machine or cluster keep together.

The jobs share a file with the times and sizes of the requests of the last minute. It is locked while a job reads it and
adds its own request.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
import time
from pathlib import Path

from langptune.files import private

WINDOW = 60.0
"""The period that the limits refer to, in seconds."""


class RateLimit:
    """The rate limits of one model at one server."""

    def __init__(self, folder: Path, name: str, requests: int | None, tokens: int | None):
        """Set up the limits; no file is opened yet.

        Args:
            folder: the folder of the shared file, equal for all jobs.
            name: identifies server and model.
            requests, tokens: the limits per minute; None: no limit.
        """
        self._path = folder / f"pace-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
        self._requests, self._tokens = requests, tokens

    def wait(self, tokens: int, stop: threading.Event) -> None:
        """Wait until one more request of so many tokens respects the limits, or until ``stop`` is set."""
        if self._requests is None and self._tokens is None:
            return
        while not stop.is_set():
            with private(self._path) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                now = time.time()
                try:
                    sent = [(at, n) for at, n in json.loads(file.read() or "[]") if now - WINDOW < at <= now]
                except (ValueError, TypeError):
                    sent = []
                seconds = seconds_until(sent, now, tokens, self._requests, self._tokens)
                if seconds <= 0:
                    file.seek(0)
                    file.truncate()
                    file.write(json.dumps([*sent, (now, tokens)]))
                    return
            stop.wait(min(seconds, 5.0))


def seconds_until(
    sent: list[tuple[float, int]], now: float, tokens: int, requests: int | None, budget: int | None
) -> float:
    """Seconds until a request of ``tokens`` may follow those ``sent`` (time, tokens) in the last minute.

    Args:
        requests, budget: limits on requests and tokens per minute; None: no limit.
    """
    sent = sorted(sent)
    wait = 0.0
    if requests is not None and len(sent) >= requests:
        wait = sent[len(sent) - requests][0] + WINDOW - now
    if budget is not None:
        used = sum(n for _, n in sent)
        for at, n in sent:
            if used + tokens <= budget:
                break
            wait = max(wait, at + WINDOW - now)
            used -= n
    return wait
