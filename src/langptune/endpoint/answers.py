"""Parses and validates the answers of chat servers: the only reader of what comes from outside.

``read`` takes the bytes of a response, ``kept`` those of a file in the cache. Both apply the same checks: an answer is
counted, paid for and kept only if it is valid, and a cached answer must pass the current checks too.

Sources: OpenAI's chat completions API, and what servers that speak it send: vLLM, SGLang, TGI, llama.cpp, Ollama,
Mistral, DeepSeek, Together, Anthropic, Gemini, Azure and OpenRouter (errors in a body with HTTP 200, reasoning in a
field of its own or in the content, content as a list of parts, finish reasons of their own, no or broken ``usage``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from langptune.endpoint.lengths import rough_tokens
from langptune.thinking import without_thoughts

_MESSAGE_TOKENS = 4
"""Tokens that the chat format adds to a message, roughly."""
_LARGEST = 2**31 - 1
"""The largest count of tokens that is accepted: the columns that hold counts have 32 bits."""
_ENDED = {"stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "complete", "completed", "finished"}
_CUT = {"length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length"}
_FILTERED = {"content_filter", "safety", "blocklist", "prohibited_content", "recitation", "spii", "refusal"}
LONGEST_TOKEN = 256
"""Characters: twice those of the longest runs of blanks or dashes that tokenizers have as one token."""
_REASONING_PARTS = {"thinking", "reasoning", "reasoning_text"}


@dataclass(frozen=True)
class Request:
    """One request, independent of the server that it is sent to.

    messages: (role, text) in their order.
    max_tokens: limit on the answer, in the server's tokens.
    stop: a text that ends the answer; None: only the model ends it.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop: str | None = None

    @property
    def begun(self) -> bool:
        """Whether the last message is the beginning of the answer, which the server continues (prefill)."""
        return bool(self.messages) and self.messages[-1][0] == "assistant"

    @property
    def tokens(self) -> int:
        """The approximate number of tokens in the prompt."""
        return sum(_MESSAGE_TOKENS + rough_tokens(text) for _, text in self.messages)


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    text: the model's answer without its reasoning; valid Unicode.
    finished: the model ended it; False if it was cut at ``max_tokens``, or has a fault.
    reason: the server's finish reason in lower case; empty if it gave none.
    prompt_tokens, tokens: as the server counted them; estimated from characters if it gave none (``counted`` is False).
    model: the model that the server names; ``unknown`` if it names none.
    thought: reasoning was removed from the content.
    fault: ``empty``, ``reasoning`` (and nothing else), ``filtered``, ``aborted``, ``overlong`` (longer than
        ``max_tokens`` allows), ``foreign`` (not a chat API's answer); the empty string for a usable answer.
        With a fault the text is empty, the cost is counted, and the answer is never kept.
    why: the fault in words, with the server's message.
    """

    text: str
    finished: bool
    reason: str
    prompt_tokens: int
    tokens: int
    counted: bool
    model: str
    thought: bool = False
    fault: str = ""
    why: str = ""

    @property
    def again(self) -> bool:
        """Whether a retry may give a usable answer: not if the limit on tokens was used up or exceeded."""
        return bool(self.fault) and self.fault != "overlong" and self.reason not in _CUT


def read(body: bytes, request: Request) -> Answer:
    """The answer in a response with HTTP status 200; an unusable answer has a ``fault``. Never raises."""
    data = _json(body)
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        detail = _text_of(data.get("detail") or data.get("message") or "")[:200]
        return _checked(request, data, "", "", None, "foreign", f"no choice with a message{detail and f': {detail}'}")
    text, reasoning, refused = _content(message.get("content"))
    for key in ("reasoning_content", "reasoning"):
        if isinstance(message.get(key), str):
            reasoning += message[key]
    if isinstance(message.get("refusal"), str):
        refused += message["refusal"]
    fault = why = ""
    if error := choice.get("error") or data.get("error"):
        detail = _text_of(error.get("message") if isinstance(error, dict) else error)
        fault, why = "aborted", f"broken off by the server: {detail[:200]}"
    elif refused.strip():
        fault, why = "filtered", f"refused: {unicode(refused).strip()[:200]}"
    return _checked(request, data, text, reasoning, choice.get("finish_reason"), fault, why)


def kept(content: bytes, request: Request) -> Answer | None:
    """The answer in a cache file; None if it cannot be read or fails the current checks: the request is sent again."""
    data = _json(content).get("answer")
    if not isinstance(data, dict) or not isinstance(data.get("text"), str) or not isinstance(data.get("counted"), bool):
        return None
    counts = {"prompt_tokens": data.get("prompt_tokens"), "completion_tokens": data.get("tokens")}
    prompt, tokens = _counts(counts)
    if prompt is None or tokens is None:
        return None
    reason = None if data.get("reason") == "None" else data.get("reason")  # older caches hold null as "None"
    found = _checked(request, {"model": data.get("model"), "usage": counts}, data["text"], "", reason, "", "")
    if found.fault:
        return None
    thought = found.thought or data.get("thought") is True
    return Answer(found.text, found.finished, found.reason, prompt, tokens, data["counted"], found.model, thought)


def paid(line: bytes | str) -> tuple[int, int]:
    """Tokens of prompt and answer in one line of the log of unusable answers; 0 if unreadable."""
    data = _json(line.encode() if isinstance(line, str) else line)
    prompt, tokens = _counts({"prompt_tokens": data.get("prompt_tokens"), "completion_tokens": data.get("tokens")})
    return prompt or 0, tokens or 0


def error_status(body: bytes) -> int | None:
    """The HTTP status that a body with HTTP 200 should have had; None if it holds no error.

    OpenRouter sends ``{"error": {"code": 429, "message": ...}}``, others ``{"object": "error", ...}``. A code that is
    not an HTTP status counts as 500: the request is sent again, and the server's message is shown if that fails too.
    """
    data = _json(body)
    error = data if data.get("object") == "error" else data.get("error")
    if not error or data.get("choices"):
        return None
    for code in (error.get("code"), error.get("status")) if isinstance(error, dict) else ():
        found = _count(int(code) if isinstance(code, str) and re.fullmatch(r"\d{3}", code) else code)
        if found is not None and 400 <= found < 600:
            return found
    return 500


def refused_prompt(body: bytes, request: Request) -> Answer | None:
    """The answer of a server that reports a filtered prompt as an HTTP error; None for any other error.

    Azure sends 400 with the code ``content_filter``, OpenRouter 403 with the flagged input.
    """
    error = _json(body).get("error")
    if not isinstance(error, dict):
        return None
    inner, metadata = error.get("innererror"), error.get("metadata")
    codes = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    flagged = isinstance(metadata, dict) and "flagged_input" in metadata
    if not flagged and not {"content_filter", "ResponsibleAIPolicyViolation"} & {str(code) for code in codes}:
        return None
    why = f"the prompt was filtered: {_text_of(error.get('message'))[:200]}"
    return Answer("", False, "content_filter", 0, 0, True, "unknown", fault="filtered", why=why)


def usage_of(body: bytes) -> tuple[int, int]:
    """Tokens of prompt and answer that a body without an answer reports as used."""
    prompt, tokens = _counts(_json(body).get("usage"))
    return prompt or 0, tokens or 0


def unicode(text: str) -> str:
    """Valid Unicode: a surrogate pair becomes its character; a lone surrogate, which cannot be encoded, U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _checked(
    request: Request, data: dict[str, Any], text: str, reasoning: str, reason: Any, fault: str, why: str
) -> Answer:
    """Apply the checks that new and cached answers share."""
    clean, thought = without_thoughts(unicode(text))
    if request.stop is not None and request.stop in clean:  # it was not sent to the server, or the server keeps it
        clean = clean.split(request.stop)[0]
    prompt, tokens = _counts(data.get("usage"))
    counted = bool(prompt) and tokens is not None and not (tokens == 0 and text)
    if not counted:
        prompt, tokens = prompt or request.tokens, tokens or rough_tokens(text + reasoning)
    reason = "" if reason is None else unicode(str(reason)).strip().lower()
    # Without a reason, only the length shows whether the answer was cut.
    ended = reason in _ENDED or (not reason and tokens < request.max_tokens)
    if fault:
        pass
    elif reason in _FILTERED:
        fault, why = "filtered", "filtered by the server"
    elif reason and reason not in _ENDED | _CUT:
        fault, why = "aborted", f"ended by the server with finish reason '{reason[:50]}'"
    elif len(clean) > LONGEST_TOKEN * request.max_tokens:
        fault, why = "overlong", f"{len(clean):,} characters for {request.max_tokens} tokens"
    elif not clean and (thought or reasoning.strip()):
        fault, why = "reasoning", "only reasoning came, no answer"
    elif not clean and not (ended and request.stop is not None):  # the stop text may come first
        fault, why = "empty", "an empty text" + ("" if ended else ", cut at the limit")
    model = unicode(data["model"]) if isinstance(data.get("model"), str) and data["model"] else "unknown"
    if fault:
        return Answer("", False, reason, prompt, tokens, counted, model, thought, fault, unicode(why))
    return Answer(clean, ended, reason, prompt, tokens, counted, model, thought)


def _content(content: Any) -> tuple[str, str, str]:
    """A message's content as text, reasoning and refusal; a list of parts is joined by kind."""
    out: dict[str, list[str]] = {"text": [], "reasoning": [], "refusal": []}
    for part in content if isinstance(content, list) else [content]:
        kind, value = "text", part
        if isinstance(part, dict):
            kind = "reasoning" if part.get("type") in _REASONING_PARTS else "text"
            kind = "refusal" if part.get("type") == "refusal" else kind
            value = next((part[key] for key in ("text", "thinking", "reasoning", "refusal") if part.get(key)), "")
        out[kind].append(_text_of(value))
    return "".join(out["text"]), "".join(out["reasoning"]), "".join(out["refusal"])


def _text_of(value: Any, depth: int = 8) -> str:
    """A text that may be wrapped: a string, ``{"value": text}``, or a list of parts; anything else is empty.

    Args:
        depth: the most levels of wrappers; servers use two, a hostile one thousands.
    """
    if not depth:
        return ""
    if isinstance(value, list):
        return "".join(_text_of(part, depth - 1) for part in value)
    if isinstance(value, dict):
        return _text_of(value.get("value") or value.get("text") or value.get("msg"), depth - 1)
    return value if isinstance(value, str) else ""


def _counts(usage: Any) -> tuple[int | None, int | None]:
    """Tokens of prompt and answer in a ``usage`` object, each None if it is not a count."""
    data = usage if isinstance(usage, dict) else {}
    return _count(data.get("prompt_tokens")), _count(data.get("completion_tokens"))


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        return None  # NaN fails both comparisons
    return int(value) if value == int(value) else None


def _json(content: bytes) -> dict[str, Any]:
    """A JSON object; empty if there is none. Invalid UTF-8 costs a character, not the answer."""
    try:
        data = json.loads(content.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
