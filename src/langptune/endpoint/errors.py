"""Explains the errors of an endpoint: one line that says what to do, and never contains the key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from langptune.config.models import OMISSIBLE, ModelSource
from langptune.endpoint import answers
from langptune.errors import UserError


def explained(error: Exception, source: ModelSource, sent: Mapping[str, Any]) -> UserError:
    """An error as one line that says what to do; it never contains the key.

    Args:
        sent: the settings of the request.
    """
    import openai

    where = f"{source.model} at {str(source.endpoint).rstrip('/')}"
    if isinstance(error, openai.APITimeoutError):
        return UserError(f"{where}: no answer within {source.timeout:g} s; raise 'timeout' in models.yaml")
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__ or error).__name__
        return UserError(
            f"{where}: cannot be reached ({cause}); is the server running, and may this machine reach it? Start "
            "it, fix 'endpoint' in models.yaml, or run where there is a network"
        )
    if not isinstance(error, openai.APIStatusError):
        return UserError(f"{where}: not the answer of a chat API ({type(error).__name__}); check 'endpoint'")
    status, detail = error.status_code, _detail(error, source)
    if 300 <= status < 400:
        try:
            other = urlsplit(error.response.headers.get("location", "")).hostname or "another path"
        except ValueError:
            other = "an invalid address"
        return UserError(
            f"{where}: sends requests on to {other[:100]!a} ({status}), which is not followed; write the server's "
            "own address as 'endpoint' in models.yaml"
        )
    if status in (401, 403):
        if source.key is None:
            what = "no key was sent; name its variable as 'key' in models.yaml"
        elif status == 401:
            what = f"the key in {source.key} is not accepted there; set it anew"
        else:
            what = f"the key in {source.key} has no access there; look at the account, or set another 'model'"
        # The server's message for a 401 is about the key, and may hold parts of it.
        return UserError(f"{where}: refused ({status}{detail if status == 403 else ''}): {what}")
    if status == 404:
        return UserError(
            f"{where}: not found (404{detail}); check 'model' and 'endpoint' in models.yaml (a base URL mostly "
            "ends in /v1)"
        )
    if status == 429:
        return UserError(
            f"{where}: too many requests, or no credit (429{detail}), after {source.retries} retries; lower "
            "requests_per_minute, tokens_per_minute or parallel in models.yaml, or look at the account; run again "
            "to go on"
        )
    if status >= 500 or status in (408, 409, 425):
        return UserError(
            f"{where}: failed ({status}{detail}) after {source.retries} retries; answers so far are kept, run "
            "again to go on"
        )
    return UserError(f"{where}: refused the request ({status}{detail}); {_advice(status, error, source, sent)}")


def _advice(status: int, error: Any, source: ModelSource, sent: Mapping[str, Any]) -> str:
    """What to change after a 4xx error that the same request would get again."""
    if status == 402:
        return "the account has no credit: add some, or take another 'endpoint' in models.yaml"
    body = _body(error)
    named, body = body.get("param"), _message(body).lower()
    limit = source.limit_key
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[limit]
    if named == limit or (named is None and re.search(rf"\b{other}\b", body)):
        return f"set `limit_key: {other}` in the model's source in models.yaml, or a smaller max_tokens"
    for key in OMISSIBLE:
        if key in sent and (named == key or (named is None and re.search(rf"\b{key}\b", body))):
            return (
                f"it does not take {key!r} as sent: set `omit: [{', '.join([*source.omit, key])}]` in the model's "
                "source in models.yaml, and it is no longer sent"
            )
    if status == 413 or "context" in body or "too long" in body:
        return "set a smaller max_prompt_tokens in models.yaml, a smaller max_tokens, or fewer history_items"
    return "check 'model' and the other keys of its source in models.yaml; the same request would be refused again"


def without_key(text: str, source: ModelSource) -> str:
    """A text of the server with stars instead of the key, which it may repeat."""
    secret = os.environ.get(source.key or "", "").strip()
    return text.replace(secret, "***") if secret else text


def _body(error: Any) -> dict[str, Any]:
    """The error object in the server's response; empty if there is none."""
    try:
        body = json.loads(error.response.text)
    except (ValueError, RecursionError):
        return {}
    inner = body.get("error", body) if isinstance(body, dict) else body
    return inner if isinstance(inner, dict) else {"message": inner}


def _detail(error: Any, source: ModelSource) -> str:
    """The server's message, shortened and without the key."""
    text = without_key(" ".join(answers.unicode(_message(_body(error))).split()), source)
    return f": {text[:200]}" if text else ""


def _message(body: Mapping[str, Any]) -> str:
    """The message of an error object, or the validation errors of a server that checks each field."""
    message = body.get("message") or body.get("detail") or body or ""
    if isinstance(message, list):  # FastAPI's entries also hold the input, which is not part of the message
        parts = [part for part in message if isinstance(part, dict)]
        message = "; ".join(f"{'.'.join(map(str, part.get('loc') or []))}: {part.get('msg')}" for part in parts)
    metadata = body.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None  # the message of the provider behind a broker
    return f"{message}: {raw}" if raw else str(message)
