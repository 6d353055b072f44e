"""A chat client that pays for no answer twice: cached on disk, paced, capped, and repeatable.

Sources: OpenAI's chat completions API (``POST {endpoint}/chat/completions``), which vLLM, ``transformers serve`` and
others speak, through the package ``openai``. It waits and asks again by itself: after 408, 409, 429 and 5xx, as
long as the server's ``Retry-After`` says, else with growing pauses.

An answer belongs to its request: endpoint, model, messages, longest answer, temperature and seed. Their SHA-256 is its
file name, so that a job that is killed, or run again, asks only for what is missing. The key is no part of a request,
and is written nowhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from langptune.config.models import ModelSource
from langptune.endpoint.lengths import rough_tokens
from langptune.errors import UserError

if TYPE_CHECKING:
    from openai import OpenAI

_MESSAGE_TOKENS = 4
"""Of the chat format around a message, roughly."""
_WINDOW = 60.0


def paced(tell: Callable[[int, int, float], None], pause: float = 10.0) -> Callable[[int, int], None]:
    """Progress for ``Client.ask`` that tells (done, of how many, seconds since now): at the end, and at times before.

    Args:
        pause: seconds between two lines at least.
    """
    start, last = time.monotonic(), 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last > pause:
            last = now
            tell(done, total, now - start)

    return progress


@dataclass(frozen=True)
class Request:
    """One question, without the server it goes to.

    messages: (role, text) in their order.
    max_tokens: longest answer, in the server's tokens.
    stop: a text that ends the answer; None: only the model does.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop: str | None = None

    @property
    def tokens(self) -> int:
        """About how many tokens the prompt has."""
        return sum(_MESSAGE_TOKENS + rough_tokens(text) for _, text in self.messages)


@dataclass(frozen=True)
class Answer:
    """What came back.

    finished: the model ended it; False where it was cut at ``max_tokens`` or by a filter (see ``reason``).
    prompt_tokens, tokens: as the server counted them; by characters where it does not say (``counted`` is False).
    model: what the server says it ran.
    """

    text: str
    finished: bool
    reason: str
    prompt_tokens: int
    tokens: int
    counted: bool
    model: str


@dataclass(frozen=True)
class Estimate:
    """What a list of requests will take at most: answers that are not in the cache, and their tokens.

    usd: their price, each answer taken as long as it may be.
    """

    requests: int
    cached: int
    prompt_tokens: int
    tokens: int
    usd: float

    @property
    def line(self) -> str:
        """For a person."""
        return (
            f"{self.requests} answers to ask for, {self.cached} kept; about {self.prompt_tokens:,} + at most "
            f"{self.tokens:,} tokens, at most {self.usd:.4f} USD"
        )


@dataclass
class Spent:
    """What one client has really used: requests that were answered, tokens as the servers counted them, their price."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    usd: float = 0.0

    @property
    def line(self) -> str:
        """For a person."""
        return (
            f"{self.requests} answers asked for, {self.cached} from the cache; {self.prompt_tokens:,} + "
            f"{self.tokens:,} tokens, {self.usd:.4f} USD"
        )


class Client:
    """Asks one endpoint; answers are kept in a folder that jobs may share."""

    def __init__(
        self,
        source: ModelSource,
        cache: Path | str,
        max_usd: float | None = None,
        identity: str | None = None,
        url: str | None = None,
    ):
        """A client; nothing is sent yet.

        Args:
            source: the registry's endpoint: address, model, key's name, limits, prices, ``parallel``.
            cache: folder of answers.
            max_usd: no more is spent on what this client is asked, in US dollars, answers that an earlier attempt paid
                for and that are in the cache included; None: no limit.
            identity: what stands for the server in the cache, where its address does not (a port of the moment).
            url: where the server listens now, where that is not ``source.endpoint``.
        """
        self.source, self.cache, self.max_usd = source, Path(cache), max_usd
        self.identity = identity or str(source.endpoint).rstrip("/")
        self.url = (url or str(source.endpoint)).rstrip("/")
        self.spent = Spent()
        self._before = 0.0
        self._charged: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def key_of(self, request: Request) -> str:
        """SHA-256 of all that changes an answer."""
        told = {"server": self.identity, "model": self.source.model, "limit": self.source.limit_key, **asdict(request)}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def known(self, request: Request) -> Answer | None:
        """The answer in the cache; None where there is none, or none that can be read."""
        try:
            told = json.loads(self._file(request).read_text(encoding="utf-8"))
            return Answer(**told["answer"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What is still to be asked, in tokens (prompts by their characters, answers at their longest) and dollars."""
        unique = {self.key_of(request): request for request in requests}
        missing = [request for request in unique.values() if self.known(request) is None]
        prompt, longest = sum(r.tokens for r in missing), sum(r.max_tokens for r in missing)
        return Estimate(len(missing), len(unique) - len(missing), prompt, longest, self._price(prompt, longest))

    def ask(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[Answer]:
        """The answers, in the order of the requests; equal requests are asked once.

        Args:
            progress: is called with (done, of how many) after each answer that had to be asked for.

        Raises:
            UserError: the estimate is above ``max_usd`` (before anything is sent), what was really spent is (after;
                answers are kept), no key, or an error of the server, in one line.
        """
        unique = {self.key_of(request): request for request in requests}
        found = {key: answer for key, request in unique.items() if (answer := self.known(request)) is not None}
        missing = {key: request for key, request in unique.items() if key not in found}
        self.spent.cached += len(found)
        # A job that is tried again has its limit once, not once an attempt.
        fresh = [found[key] for key in found.keys() - self._charged]
        self._before += sum(self._price(answer.prompt_tokens, answer.tokens) for answer in fresh)
        self._charged |= unique.keys()
        if missing:
            self._check_cap(list(missing.values()))
            found |= self._all(missing, progress)
        return [found[self.key_of(request)] for request in requests]

    def _check_cap(self, missing: list[Request]) -> None:
        told = self.estimate(missing)
        if self.max_usd is not None and self._before + self.spent.usd + told.usd > self.max_usd:
            left = max(self.max_usd - self._before - self.spent.usd, 0)
            kept = f" after {self._before:.4f} for those in the cache" if self._before else ""
            raise UserError(
                f"{self.source.model} at {self.url}: {told.requests} answers would cost up to {told.usd:.4f} USD, "
                f"max_usd allows {left:.4f}{kept}; nothing was sent: raise max_usd, or ask for fewer"
            )

    def _all(self, missing: dict[str, Request], progress: Callable[[int, int], None] | None) -> dict[str, Answer]:
        """Ask from several threads; the first error ends all once what is under way has been kept."""
        client = self._openai()
        todo: queue.SimpleQueue[tuple[str, Request]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[str, Answer | BaseException]] = queue.SimpleQueue()
        for item in missing.items():
            todo.put(item)
        self._stop.clear()

        def work() -> None:
            while not self._stop.is_set():
                try:
                    key, request = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((key, self._one(client, request)))
                except BaseException as error:  # handed on to the thread that asked
                    done.put((key, error))  # before the others are stopped: theirs is not the error to tell
                    self._stop.set()

        # Daemons: a job that must stop now (SIGTERM) does not wait for a slow server.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.source.parallel, len(missing)))]
        for thread in threads:
            thread.start()
        found: dict[str, Answer] = {}
        try:
            while len(found) < len(missing):
                key, outcome = done.get()
                if isinstance(outcome, BaseException):
                    for thread in threads:  # what is under way is paid for, so it is kept
                        thread.join()
                    raise outcome
                found[key] = outcome
                if progress:
                    progress(len(found), len(missing))
        finally:
            self._stop.set()
        return found

    def _one(self, client: OpenAI, request: Request) -> Answer:
        self._pace(request.tokens + request.max_tokens)
        with self._lock:
            spent = self._before + self.spent.usd
        if self.max_usd is not None and spent > self.max_usd:
            raise UserError(
                f"{self.source.model} at {self.url}: {spent:.4f} USD spent, more than max_usd {self.max_usd:.4f}; the "
                f"answers so far are kept in {self.cache}: raise max_usd and run again"
            )
        if self._stop.is_set():
            raise UserError("stopped")
        settings: dict[str, Any] = {
            "model": self.source.model,
            "messages": [{"role": role, "content": text} for role, text in request.messages],
            "temperature": request.temperature,
            "seed": request.seed,
            self.source.limit_key: request.max_tokens,
        }
        if request.stop is not None:
            settings["stop"] = [request.stop]
        try:
            told = client.chat.completions.create(**settings)
        except Exception as error:
            raise self._explained(error) from None  # no trace: it could hold the key
        choice = told.choices[0] if getattr(told, "choices", None) else None
        if choice is None or not choice.message:
            raise UserError(f"{self.url}: answered without a choice; is it an OpenAI-compatible chat API?")
        text, usage = choice.message.content or "", told.usage
        answer = Answer(
            text=text,
            finished=choice.finish_reason == "stop",
            reason=str(choice.finish_reason),
            prompt_tokens=usage.prompt_tokens if usage else request.tokens,
            tokens=usage.completion_tokens if usage else rough_tokens(text),
            counted=usage is not None,
            model=str(told.model),
        )
        self._keep(request, answer)
        with self._lock:
            self.spent.requests += 1
            self.spent.prompt_tokens += answer.prompt_tokens
            self.spent.tokens += answer.tokens
            self.spent.usd += self._price(answer.prompt_tokens, answer.tokens)
        return answer

    def _price(self, prompt: int, tokens: int) -> float:
        return (prompt * (self.source.input_price or 0) + tokens * (self.source.output_price or 0)) / 1e6

    def _file(self, request: Request) -> Path:
        key = self.key_of(request)
        return self.cache / key[:2] / f"{key}.json"

    def _keep(self, request: Request, answer: Answer) -> None:
        """Written whole or not at all. Several jobs may ask the same, so the part's name is this thread's own."""
        path = self._file(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        told = {
            "request": {"server": self.identity, "model": self.source.model, **asdict(request)},
            "answer": asdict(answer),
        }
        part.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    def _pace(self, tokens: int) -> None:
        """Wait until one more request of so many tokens keeps to the limits, for all jobs that share the cache."""
        requests, budget = self.source.requests_per_minute, self.source.tokens_per_minute
        if requests is None and budget is None:
            return
        name = hashlib.sha256(f"{self.identity} {self.source.model}".encode()).hexdigest()[:16]
        path = self.cache / f"pace-{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        while not self._stop.is_set():
            with path.open("a+", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                now = time.time()
                try:
                    sent = [(at, n) for at, n in json.loads(file.read() or "[]") if now - _WINDOW < at <= now]
                except (ValueError, TypeError):
                    sent = []
                wait = _wait(sent, now, tokens, requests, budget)
                if wait <= 0:
                    file.seek(0)
                    file.truncate()
                    file.write(json.dumps([*sent, (now, tokens)]))
                    return
            self._stop.wait(min(wait, 5.0))

    def _openai(self) -> OpenAI:
        from openai import DefaultHttpxClient, OpenAI

        # A proxy of the environment is none for this machine itself.
        near = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        return OpenAI(
            api_key=self._secret() or "none",
            base_url=self.url,
            timeout=self.source.timeout,
            max_retries=self.source.retries,
            http_client=DefaultHttpxClient(trust_env=False) if near else None,
        )

    def _secret(self) -> str:
        if self.source.key is None:
            return ""
        secret = os.environ.get(self.source.key, "").strip()
        if not secret:
            raise UserError(
                f"{self.source.model} at {self.url} needs a key: `export {self.source.key}=...` before the run (it is "
                "written to no file), or give an entry without 'key'"
            )
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise UserError(f"environment variable {self.source.key}: holds characters that no key has; set it again")
        return secret

    def _explained(self, error: Exception) -> UserError:
        """What went wrong, in one line that says what to do; never with the key in it."""
        import openai

        where = f"{self.source.model} at {self.url}"
        if isinstance(error, openai.APITimeoutError):
            return UserError(f"{where}: no answer within {self.source.timeout:g} s; raise 'timeout' in models.yaml")
        if isinstance(error, openai.APIConnectionError):
            cause = type(error.__cause__ or error).__name__
            return UserError(
                f"{where}: cannot be reached ({cause}); is the server running, and may this machine reach it? Start "
                "it, mend 'endpoint' in models.yaml, or run where there is a network"
            )
        if not isinstance(error, openai.APIStatusError):
            return UserError(f"{where}: not the answer of a chat API ({type(error).__name__}); check 'endpoint'")
        status = error.status_code
        if status in (401, 403):
            what = (
                f"the key in {self.source.key}"
                if self.source.key
                else "no key was sent; name its variable as 'key', it"
            )
            return UserError(f"{where}: refused ({status}): {what} is not accepted there; mend it and run again")
        said = self._said(error)
        if status == 404:
            return UserError(
                f"{where}: not found (404{said}); check 'model' and 'endpoint' in models.yaml (a base URL mostly "
                "ends in /v1)"
            )
        if status == 429:
            return UserError(
                f"{where}: too many requests, or no credit (429{said}), after {self.source.retries} retries; lower "
                "requests_per_minute, tokens_per_minute or parallel in models.yaml, or look at the account; run again "
                "to go on"
            )
        return UserError(f"{where}: refused the request ({status}{said}); answers so far are kept, run again to go on")

    def _said(self, error: Any) -> str:
        """The server's own words, short, with the key taken out."""
        try:
            text = error.response.text
            body = json.loads(text)
            body = body.get("error", body) if isinstance(body, dict) else body
            told = body.get("message") or body.get("detail") or body if isinstance(body, dict) else body
        except Exception:
            told = ""
        text = " ".join(str(told).split())
        secret = os.environ.get(self.source.key or "", "").strip()
        text = text.replace(secret, "***") if secret else text
        return f": {text[:200]}" if text else ""


def _wait(sent: list[tuple[float, int]], now: float, tokens: int, requests: int | None, budget: int | None) -> float:
    """Seconds until a request of ``tokens`` may follow those ``sent`` (time, tokens) in the last minute."""
    sent = sorted(sent)
    wait = 0.0
    if requests is not None and len(sent) >= requests:
        wait = sent[len(sent) - requests][0] + _WINDOW - now
    if budget is not None:
        used = sum(n for _, n in sent)
        for at, n in sent:
            if used + tokens <= budget:
                break
            wait = max(wait, at + _WINDOW - now)
            used -= n
    return wait
