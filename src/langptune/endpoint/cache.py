"""The cache of the answers of endpoints: one file per request, so that no answer is paid for twice.

The cache key is the SHA-256 of the request: endpoint, model, messages, longest answer, temperature and seed. It is the
file name of the answer, so that a job that was killed, or runs again, asks only for what is missing. Unusable answers
are not kept, but their cost is, in a file beside.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from langptune.config.models import ModelSource
from langptune.endpoint import answers
from langptune.endpoint.answers import Answer, Request
from langptune.files import private, whole
from langptune.reading import read_plain

_LARGEST = 1 << 25
"""The most bytes of a cached answer with its request; a larger file is ignored."""


class AnswerCache:
    """The answers of one model at one server, in a folder that jobs and models may share."""

    def __init__(self, folder: Path, source: ModelSource, identity: str):
        """``identity``: identifies the server in keys."""
        self.folder, self._source, self._identity = folder, source, identity

    def key_of(self, request: Request) -> str:
        """SHA-256 of everything that changes an answer."""
        fields = {
            "server": self._identity,
            "model": self._source.model,
            "limit": self._source.limit_key,
            **asdict(request),
        }
        if self._source.omit:  # omitted settings change the answer; keys without any stay as in older caches
            fields["omit"] = sorted(self._source.omit)
        if request.begun:
            fields["prefill"] = self._source.prefill
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def path(self, request: Request) -> Path:
        """The file of an answer."""
        return self._beside(self.key_of(request), "json")

    def charges_path(self, key: str) -> Path:
        """The file with the cost of one request's unusable answers, one line each."""
        return self._beside(key, "unusable.jsonl")

    def known(self, request: Request) -> Answer | None:
        """The answer in the cache; None if there is none that can be used."""
        try:
            return answers.kept(read_plain(self.path(request), _LARGEST), request)
        except OSError:
            return None

    def keep(self, request: Request, answer: Answer) -> None:
        """Write an answer atomically, readable by this user only: a prompt holds what somebody read or bought."""
        content = {
            "request": {"server": self._identity, "model": self._source.model, **asdict(request)},
            "answer": asdict(answer),
        }
        with whole(self.path(request), 0o600) as part:
            part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def charge(self, request: Request, answer: Answer) -> None:
        """Write the cost of an unusable answer."""
        row = {key: getattr(answer, key) for key in ("fault", "why", "reason", "prompt_tokens", "tokens", "model")}
        with private(self.charges_path(self.key_of(request))) as file:
            file.write(json.dumps(row) + "\n")

    def charges(self, key: str) -> list[tuple[int, int]]:
        """Tokens of the prompt and of the answer, for each unusable answer to a request so far."""
        try:
            lines = read_plain(self.charges_path(key), _LARGEST).splitlines()
        except OSError:
            return []
        return [answers.paid(line) for line in lines]

    def _beside(self, key: str, ending: str) -> Path:
        return self.folder / key[:2] / f"{key}.{ending}"
