"""A chat client with a cache on disk, rate limits, a cost cap and repeatable answers: no answer is paid for twice.

Sources: OpenAI's chat completions API (``POST {endpoint}/chat/completions``), which vLLM, ``transformers serve`` and
others speak, through the package ``openai``. The package retries after 408, 409, 429 and 5xx: it waits as long as the
server's ``Retry-After`` header says, otherwise with growing pauses.

``answers`` checks each answer before it is counted or kept. An unusable answer (empty, filtered, broken off) is counted
and never kept. Its cost is written beside the cache, so that the cap includes all attempts. The request is sent again:
up to ``TRIES`` times in one run, and in the next run.

The cache key is the SHA-256 of the request: endpoint, model, messages, longest answer, temperature and seed. It is the
file name of the answer, so that a job that was killed, or runs again, asks only for what is missing. The API key is
not part of a request, and is written nowhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from langptune import allowed
from langptune.config.models import OMISSIBLE, ModelSource
from langptune.endpoint import answers
from langptune.endpoint.answers import Answer, Request
from langptune.errors import UserError
from langptune.files import private, whole
from langptune.reading import read_plain

if TYPE_CHECKING:
    from openai import OpenAI

TRIES = 3
"""The most attempts for one request if its answer is unusable and another might not be."""
EMPTY_SHARE = 0.05
"""The largest share of unusable answers in a job where each answer makes a result; more would measure empty texts."""
_HOPELESS = 20
"""A run ends once this many answers, and more than half of all so far, are unusable."""
_WINDOW = 60.0
_KEPT = 1 << 25
"""The most bytes of a cached answer with its request; a larger file is ignored."""


def paced(report: Callable[[int, int, float], None], pause: float = 10.0) -> Callable[[int, int], None]:
    """Progress for ``Client.ask`` that reports (done, total, seconds since the start): now and then, and at the end.

    Args:
        pause: seconds between two reports at least.
    """
    start, last = time.monotonic(), 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last > pause:
            last = now
            report(done, total, now - start)

    return progress


@dataclass(frozen=True)
class Estimate:
    """Upper bound of the cost of a list of requests: answers that are not in the cache, and their tokens.

    usd: their price if each answer is as long as allowed.
    """

    requests: int
    cached: int
    prompt_tokens: int
    tokens: int
    usd: float

    @property
    def line(self) -> str:
        """The numbers in one line for the log."""
        return (
            f"{self.requests} answers to ask for, {self.cached} kept; about {self.prompt_tokens:,} + at most "
            f"{self.tokens:,} tokens, at most {self.usd:.4f} USD"
        )


@dataclass
class Spent:
    """What one client has used: requests that were answered, tokens as the servers counted them, and their price.

    unusable: how many of the answers cannot be used.
    """

    requests: int = 0
    unusable: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    usd: float = 0.0

    @property
    def line(self) -> str:
        """The numbers in one line for the log."""
        return (
            f"{self.requests} answers asked for, {self.cached} from the cache; {self.prompt_tokens:,} + "
            f"{self.tokens:,} tokens, {self.usd:.4f} USD"
            + (f"; {self.unusable} could not be used" if self.unusable else "")
        )


# Without litellm: its cache keeps empty and filtered answers, its budget counts after an answer and not before a job,
# and it sends OPENAI_ORGANIZATION to any server. It needs 60 packages, and more for its cache on disk.
class Client:
    """Sends requests to one endpoint; answers are kept in a folder that jobs may share."""

    def __init__(
        self,
        source: ModelSource,
        cache: Path | str,
        max_usd: float | None = None,
        identity: str | None = None,
        socket: str | None = None,
    ):
        """Set up a client; nothing is sent yet.

        Args:
            source: the registry's endpoint: address, model, name of the key's variable, limits, prices, ``parallel``.
            cache: folder of answers.
            max_usd: cost cap on this client's requests in US dollars, including what earlier attempts paid for answers
                in the cache; None: no limit.
            identity: identifies the server in cache keys if its address cannot (an ephemeral port).
            socket: Unix socket that the server listens on, instead of the port of ``source.endpoint``.
        """
        self.source, self.cache, self.max_usd = source, Path(cache), max_usd
        self.identity = identity or str(source.endpoint).rstrip("/")
        self.url, self.socket = str(source.endpoint).rstrip("/"), socket
        self.spent = Spent()
        self._before = 0.0
        self._charged: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._asking = threading.local()

    def key_of(self, request: Request) -> str:
        """SHA-256 of everything that changes an answer."""
        fields = {
            "server": self.identity,
            "model": self.source.model,
            "limit": self.source.limit_key,
            **asdict(request),
        }
        if self.source.omit:  # omitted settings change the answer; keys without any stay as in older caches
            fields["omit"] = sorted(self.source.omit)
        if request.begun:
            fields["prefill"] = self.source.prefill
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def known(self, request: Request) -> Answer | None:
        """The answer in the cache; None if there is none that can be used."""
        try:
            return answers.kept(read_plain(self._file(request), _KEPT), request)
        except OSError:
            return None

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """The cost of what is not in the cache: tokens (prompts by characters, answers at their limit) and dollars."""
        unique = {self.key_of(request): request for request in requests}
        missing = [request for request in unique.values() if self.known(request) is None]
        prompt, longest = sum(r.tokens for r in missing), sum(r.max_tokens for r in missing)
        return Estimate(len(missing), len(unique) - len(missing), prompt, longest, self._price(prompt, longest))

    def ask(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[Answer]:
        """The answers, in the order of the requests; equal requests are sent once.

        An answer that is still unusable after ``TRIES`` attempts is returned with its ``fault`` and an empty text.

        Args:
            progress: called with (done, total) after each answer that was not in the cache.

        Raises:
            UserError: the estimate exceeds ``max_usd`` (before anything is sent); the real cost does (later; answers
                are kept); no key; an error of the server; or most answers are unusable.
        """
        unique = {self.key_of(request): request for request in requests}
        found = {key: answer for key, request in unique.items() if (answer := self.known(request)) is not None}
        missing = {key: request for key, request in unique.items() if key not in found}
        self.spent.cached += len(found)
        # A job that runs again has one cap for all its attempts.
        fresh = [found[key] for key in found.keys() - self._charged]
        self._before += sum(self._price(answer.prompt_tokens, answer.tokens) for answer in fresh)
        for key in unique.keys() - self._charged:
            self._before += sum(self._price(*answers.paid(line)) for line in self._lines(self._account(key)))
        self._charged |= unique.keys()
        if missing:
            self._check_cap(list(missing.values()))
            found |= self._all(missing, progress)
        return [found[self.key_of(request)] for request in requests]

    def _check_cap(self, missing: list[Request]) -> None:
        total = self.estimate(missing)
        if self.max_usd is not None and self._before + self.spent.usd + total.usd > self.max_usd:
            left = max(self.max_usd - self._before - self.spent.usd, 0)
            kept = f" after {self._before:.4f} for those in the cache" if self._before else ""
            raise UserError(
                f"{self.source.model} at {self.url}: {total.requests} answers would cost up to {total.usd:.4f} USD, "
                f"max_usd allows {left:.4f}{kept}; nothing was sent: raise max_usd, or ask for fewer"
            )

    def _all(self, missing: dict[str, Request], progress: Callable[[int, int], None] | None) -> dict[str, Answer]:
        """Send requests from several threads; after the first error, requests in flight are kept, then all end."""
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
                except BaseException as error:  # raised again in the calling thread
                    done.put((key, error))  # before the other threads stop with errors of their own
                    self._stop.set()

        # Daemons: a job that must stop now (SIGTERM) does not wait for a slow server.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.source.parallel, len(missing)))]
        for thread in threads:
            thread.start()
        found: dict[str, Answer] = {}
        faults: list[Answer] = []
        try:
            while len(found) < len(missing):
                key, outcome = done.get()
                if isinstance(outcome, BaseException):
                    for thread in threads:  # requests in flight are paid for, so their answers are kept
                        thread.join()
                    raise outcome
                found[key] = outcome
                faults += [outcome] if outcome.fault else []
                if len(faults) >= _HOPELESS and 2 * len(faults) > len(found):
                    self._stop.set()
                    for thread in threads:
                        thread.join()
                    raise UserError(self.without_text(faults, len(found)))
                if progress:
                    progress(len(found), len(missing))
        finally:
            self._stop.set()
        return found

    def _one(self, client: OpenAI, request: Request) -> Answer:
        """Send one request until its answer is usable, at most ``TRIES`` times."""
        for left in reversed(range(TRIES)):
            self._pace(request.tokens + request.max_tokens)
            with self._lock:
                spent = self._before + self.spent.usd
            if self.max_usd is not None and spent > self.max_usd:
                raise UserError(
                    f"{self.source.model} at {self.url}: {spent:.4f} USD spent, more than max_usd {self.max_usd:.4f}; "
                    f"the answers so far are kept in {self.cache}: raise max_usd and run again"
                )
            if self._stop.is_set():
                raise UserError("stopped")
            answer = self._once(client, request)
            answer = replace(answer, why=self._hidden(answer.why))
            self._charge(request, answer)
            if not answer.fault:
                self._keep(request, answer)
                return answer
            if not answer.again or not left:
                break
        if answer.fault == "foreign":
            raise UserError(
                f"{self.source.model} at {self.url}: answered without a choice ({answer.why}); is 'endpoint' in "
                "models.yaml the base URL of an OpenAI-compatible chat API?"
            )
        return answer

    def _once(self, client: OpenAI, request: Request) -> Answer:
        """Send one request; the package retries if the server was busy or failed."""
        import openai

        from langptune.endpoint.transport import TooLarge

        settings: dict[str, Any] = {
            "model": self.source.model,
            "messages": [{"role": role, "content": text} for role, text in request.messages],
            "temperature": request.temperature,
            "seed": request.seed,
            self.source.limit_key: request.max_tokens,
        }
        if request.stop is not None:
            settings["stop"] = [request.stop]
        settings = {key: value for key, value in settings.items() if key not in self.source.omit}
        if request.begun and self.source.prefill:
            settings["extra_body"] = dict(self.source.prefill)
        self._asking.request = request
        try:
            # Raw bytes, because the package would build objects from any response without checks.
            response = client.chat.completions.with_raw_response.create(**settings)
            return answers.read(response.http_response.content, request)
        except TooLarge as error:
            # The cost is unknown; the limits of the request are its upper bound.
            tokens = (request.tokens, request.max_tokens)
            return Answer(
                "", False, "", *tokens, False, "unknown", fault="overlong", why=f"{error} for {tokens[1]} tokens"
            )
        except openai.APIStatusError as error:
            if (filtered := answers.refused_prompt(error.response.content, request)) is not None:
                return filtered
            raise self._explained(error, settings) from None
        except Exception as error:
            raise self._explained(error, settings) from None  # a traceback could hold the key

    def _unmask(self, response: Any) -> None:
        """Give an error that came with HTTP 200 its proper status, so that it is retried and explained as an error."""
        if response.status_code != 200:
            return
        body = response.content
        if (status := answers.error_status(body)) is not None:
            prompt, tokens = answers.usage_of(body)
            if prompt or tokens:
                failed = Answer("", False, "", prompt, tokens, True, "unknown", fault="aborted", why="an error")
                self._charge(self._asking.request, failed)
            response.status_code = status

    def _charge(self, request: Request, answer: Answer) -> None:
        """Count the cost of an answer; the cost of an unusable one is also logged beside the cache."""
        with self._lock:
            self.spent.requests += 1
            self.spent.unusable += bool(answer.fault)
            self.spent.prompt_tokens += answer.prompt_tokens
            self.spent.tokens += answer.tokens
            self.spent.usd += self._price(answer.prompt_tokens, answer.tokens)
        if answer.fault:
            row = {key: getattr(answer, key) for key in ("fault", "why", "reason", "prompt_tokens", "tokens", "model")}
            with private(self._account(self.key_of(request))) as file:
                file.write(json.dumps(row) + "\n")

    def _account(self, key: str) -> Path:
        """The log of one request's unusable answers and their cost, one line each."""
        return self.cache / key[:2] / f"{key}.unusable.jsonl"

    @staticmethod
    def _lines(path: Path) -> list[bytes]:
        try:
            return read_plain(path, _KEPT).splitlines()
        except OSError:
            return []

    def few_faults(self, all_answers: Sequence[Answer]) -> list[Answer]:
        """The unusable answers of a job: at most one or a share of ``EMPTY_SHARE``, and fewer than half.

        Raises:
            UserError: more are unusable.
        """
        faults = [answer for answer in all_answers if answer.fault]
        if faults and (len(faults) > max(1, EMPTY_SHARE * len(all_answers)) or 2 * len(faults) >= len(all_answers)):
            raise UserError(self.without_text(faults, len(all_answers)))
        return faults

    def without_text(self, faults: Sequence[Answer], asked: int) -> str:
        """The message for a job with too many unusable answers: how many, why, and what to change."""
        kinds = Counter(answer.fault for answer in faults)
        cut = any(answer.reason and not answer.again and answer.fault != "overlong" for answer in faults)
        advice = []
        if kinds["reasoning"] or cut:
            advice.append("raise max_tokens, or have the server answer without reasoning")
        if kinds["overlong"]:
            advice.append("the server does not keep to max_tokens: set another 'limit_key', or take another endpoint")
        if kinds["filtered"]:
            advice.append("look at the provider's content filter")
        if kinds["aborted"] or (kinds["empty"] and not advice):
            advice.append("look at the server's log")
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return (
            f"{self.source.model} at {self.url}: {len(faults)} of {asked} answers cannot be used ({counts}; first: "
            f"{faults[0].why}); {'; '.join(advice)}. All other answers are kept in {self.cache} and cost "
            "nothing in the next run"
        )

    def _price(self, prompt: int, tokens: int) -> float:
        return (prompt * (self.source.input_price or 0) + tokens * (self.source.output_price or 0)) / 1e6

    def _file(self, request: Request) -> Path:
        key = self.key_of(request)
        return self.cache / key[:2] / f"{key}.json"

    def _keep(self, request: Request, answer: Answer) -> None:
        """Write an answer atomically, readable by this user only: a prompt holds what somebody read or bought."""
        content = {
            "request": {"server": self.identity, "model": self.source.model, **asdict(request)},
            "answer": asdict(answer),
        }
        with whole(self._file(request), 0o600) as part:
            part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def _pace(self, tokens: int) -> None:
        """Wait until one more request of so many tokens respects the rate limits of all jobs that share the cache."""
        requests, budget = self.source.requests_per_minute, self.source.tokens_per_minute
        if requests is None and budget is None:
            return
        name = hashlib.sha256(f"{self.identity} {self.source.model}".encode()).hexdigest()[:16]
        path = self.cache / f"pace-{name}.json"
        while not self._stop.is_set():
            with private(path) as file:
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
        import httpx2
        from openai import OpenAI

        from langptune.endpoint.transport import PER_TOKEN, SPARE, Bounded

        secret = self._secret()
        with _hidden_variables("OPENAI_"):  # the package sends their values to any server
            return OpenAI(
                api_key=secret or "none",
                base_url=self.url,
                timeout=self.source.timeout,
                max_retries=self.source.retries,
                http_client=Bounded(
                    self.source.timeout,
                    lambda: SPARE + PER_TOKEN * self._asking.request.max_tokens,
                    self._unmask,
                    transport=None if self.socket is None else httpx2.HTTPTransport(uds=self.socket),
                    trust_env=not allowed.near(self.url),  # no proxy for servers on this machine
                    follow_redirects=False,  # another server would read the prompts
                ),
            )

    def _secret(self) -> str:
        if self.source.key is None:
            return ""
        allowed.check(self.source.endpoint, self.source.key)
        secret = os.environ.get(self.source.key, "").strip()
        if not secret:
            raise UserError(
                f"{self.source.model} at {self.url} needs a key: `export {self.source.key}=...` before the run (it is "
                "written to no file), or give an entry without 'key'"
            )
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise UserError(f"environment variable {self.source.key}: holds characters that no key has; set it again")
        return secret

    def _explained(self, error: Exception, sent: Mapping[str, Any]) -> UserError:
        """An error as one line that says what to do; it never contains the key.

        Args:
            sent: the settings of the request.
        """
        import openai

        where = f"{self.source.model} at {self.url}"
        if isinstance(error, openai.APITimeoutError):
            return UserError(f"{where}: no answer within {self.source.timeout:g} s; raise 'timeout' in models.yaml")
        if isinstance(error, openai.APIConnectionError):
            cause = type(error.__cause__ or error).__name__
            return UserError(
                f"{where}: cannot be reached ({cause}); is the server running, and may this machine reach it? Start "
                "it, fix 'endpoint' in models.yaml, or run where there is a network"
            )
        if not isinstance(error, openai.APIStatusError):
            return UserError(f"{where}: not the answer of a chat API ({type(error).__name__}); check 'endpoint'")
        status, detail = error.status_code, self._detail(error)
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
            if self.source.key is None:
                what = "no key was sent; name its variable as 'key' in models.yaml"
            elif status == 401:
                what = f"the key in {self.source.key} is not accepted there; set it anew"
            else:
                what = f"the key in {self.source.key} has no access there; look at the account, or set another 'model'"
            # The server's message for a 401 is about the key, and may hold parts of it.
            return UserError(f"{where}: refused ({status}{detail if status == 403 else ''}): {what}")
        if status == 404:
            return UserError(
                f"{where}: not found (404{detail}); check 'model' and 'endpoint' in models.yaml (a base URL mostly "
                "ends in /v1)"
            )
        if status == 429:
            return UserError(
                f"{where}: too many requests, or no credit (429{detail}), after {self.source.retries} retries; lower "
                "requests_per_minute, tokens_per_minute or parallel in models.yaml, or look at the account; run again "
                "to go on"
            )
        if status >= 500 or status in (408, 409, 425):
            return UserError(
                f"{where}: failed ({status}{detail}) after {self.source.retries} retries; answers so far are kept, run "
                "again to go on"
            )
        return UserError(f"{where}: refused the request ({status}{detail}); {self._advice(status, error, sent)}")

    def _advice(self, status: int, error: Any, sent: Mapping[str, Any]) -> str:
        """What to change after a 4xx error that the same request would get again."""
        if status == 402:
            return "the account has no credit: add some, or take another 'endpoint' in models.yaml"
        body = self._body(error)
        named, body = body.get("param"), _message(body).lower()
        limit = self.source.limit_key
        other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[limit]
        if named == limit or (named is None and re.search(rf"\b{other}\b", body)):
            return f"set `limit_key: {other}` in the model's source in models.yaml, or a smaller max_tokens"
        for key in OMISSIBLE:
            if key in sent and (named == key or (named is None and re.search(rf"\b{key}\b", body))):
                return (
                    f"it does not take {key!r} as sent: set `omit: [{', '.join([*self.source.omit, key])}]` in the "
                    + ("model's source in models.yaml, and it is no longer sent")
                )
        if status == 413 or "context" in body or "too long" in body:
            return "set a smaller max_prompt_tokens in models.yaml, a smaller max_tokens, or fewer history_items"
        return "check 'model' and the other keys of its source in models.yaml; the same request would be refused again"

    @staticmethod
    def _body(error: Any) -> dict[str, Any]:
        """The error object in the server's response; empty if there is none."""
        try:
            body = json.loads(error.response.text)
        except (ValueError, RecursionError):
            return {}
        inner = body.get("error", body) if isinstance(body, dict) else body
        return inner if isinstance(inner, dict) else {"message": inner}

    def _detail(self, error: Any) -> str:
        """The server's message, shortened and without the key."""
        text = self._hidden(" ".join(answers.unicode(_message(self._body(error))).split()))
        return f": {text[:200]}" if text else ""

    def _hidden(self, text: str) -> str:
        secret = os.environ.get(self.source.key or "", "").strip()
        return text.replace(secret, "***") if secret else text


@contextmanager
def _hidden_variables(prefix: str) -> Iterator[None]:
    """Remove variables from the environment while the block runs."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _message(body: Mapping[str, Any]) -> str:
    """The message of an error object, or the validation errors of a server that checks each field."""
    message = body.get("message") or body.get("detail") or body or ""
    if isinstance(message, list):  # FastAPI's entries also hold the input, which is not part of the message
        parts = [part for part in message if isinstance(part, dict)]
        message = "; ".join(f"{'.'.join(map(str, part.get('loc') or []))}: {part.get('msg')}" for part in parts)
    metadata = body.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None  # the message of the provider behind a broker
    return f"{message}: {raw}" if raw else str(message)


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
