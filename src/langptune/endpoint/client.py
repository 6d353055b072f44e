"""A chat client with a cost cap and repeatable answers.

It sends the requests that are not in the cache (``langptune.endpoint.cache``) in parallel, within the rate limits of
the server (``langptune.endpoint.rate_limit``), and explains its errors (``langptune.endpoint.errors``).

Sources: OpenAI's chat completions API (``POST {endpoint}/chat/completions``), which vLLM, ``transformers serve`` and
others speak, through the package ``openai``. The package retries after 408, 409, 429 and 5xx: it waits as long as the
server's ``Retry-After`` header says, otherwise with growing pauses.

``answers`` checks each answer before it is counted or kept. An unusable answer (empty, filtered, broken off) is counted
and never kept. Its cost is written beside the cache, so that the cap includes all attempts. The request is sent again:
up to ``TRIES`` times in one run, and in the next run. The API key is not part of a request, and is written nowhere.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langptune import allowed
from langptune.config.models import ModelSource
from langptune.endpoint import answers
from langptune.endpoint.answers import Answer, Request
from langptune.endpoint.cache import AnswerCache
from langptune.endpoint.errors import explained, without_key
from langptune.endpoint.rate_limit import RateLimit
from langptune.errors import UserError

if TYPE_CHECKING:
    from openai import OpenAI

TRIES = 3
"""The most attempts for one request if its answer is unusable and another might not be."""
EMPTY_SHARE = 0.05
"""The largest share of unusable answers in a job where each answer makes a result; more would measure empty texts."""
_HOPELESS = 20
"""A run ends once this many answers, and more than half of all so far, are unusable."""


def paced(report: Callable[[int, int, float], None], pause: float = 10.0) -> Callable[[int, int], None]:
    """Progress for ``Client.ask`` that reports (done, total, seconds since the start): now and then, and at the end.

    Args:
        pause: minimum number of seconds between two reports.
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
        self.source, self.max_usd = source, max_usd
        self.url, self.socket = str(source.endpoint).rstrip("/"), socket
        self.cache = AnswerCache(Path(cache), source, identity or self.url)
        self.rate_limit = RateLimit(
            Path(cache), f"{identity or self.url} {source.model}", source.requests_per_minute, source.tokens_per_minute
        )
        self.spent = Spent()
        self._before = 0.0
        self._charged: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._asking = threading.local()

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """The cost of what is not in the cache: tokens (prompts by characters, answers at their limit) and dollars."""
        unique = {self.cache.key_of(request): request for request in requests}
        missing = [request for request in unique.values() if self.cache.known(request) is None]
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
        unique = {self.cache.key_of(request): request for request in requests}
        found = {key: answer for key, request in unique.items() if (answer := self.cache.known(request)) is not None}
        missing = {key: request for key, request in unique.items() if key not in found}
        self.spent.cached += len(found)
        # A job that runs again has one cap for all its attempts.
        fresh = [found[key] for key in found.keys() - self._charged]
        self._before += sum(self._price(answer.prompt_tokens, answer.tokens) for answer in fresh)
        for key in unique.keys() - self._charged:
            self._before += sum(self._price(*tokens) for tokens in self.cache.charges(key))
        self._charged |= unique.keys()
        if missing:
            self._check_cap(list(missing.values()))
            found |= self._all(missing, progress)
        return [found[self.cache.key_of(request)] for request in requests]

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
            self.rate_limit.wait(request.tokens + request.max_tokens, self._stop)
            with self._lock:
                spent = self._before + self.spent.usd
            if self.max_usd is not None and spent > self.max_usd:
                raise UserError(
                    f"{self.source.model} at {self.url}: {spent:.4f} USD spent, more than max_usd {self.max_usd:.4f}; "
                    f"the answers so far are kept in {self.cache.folder}: raise max_usd and run again"
                )
            if self._stop.is_set():
                raise UserError("stopped")
            answer = self._once(client, request)
            answer = replace(answer, why=without_key(answer.why, self.source))
            self._charge(request, answer)
            if not answer.fault:
                self.cache.keep(request, answer)
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
            raise explained(error, self.source, settings) from None
        except Exception as error:
            raise explained(error, self.source, settings) from None  # a traceback could hold the key

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
        """Count the cost of an answer; the cost of an unusable one is also written beside the cache."""
        with self._lock:
            self.spent.requests += 1
            self.spent.unusable += bool(answer.fault)
            self.spent.prompt_tokens += answer.prompt_tokens
            self.spent.tokens += answer.tokens
            self.spent.usd += self._price(answer.prompt_tokens, answer.tokens)
        if answer.fault:
            self.cache.charge(request, answer)

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
            f"{faults[0].why}); {'; '.join(advice)}. All other answers are kept in {self.cache.folder} and cost "
            "nothing in the next run"
        )

    def _price(self, prompt: int, tokens: int) -> float:
        return (prompt * (self.source.input_price or 0) + tokens * (self.source.output_price or 0)) / 1e6

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


@contextmanager
def _hidden_variables(prefix: str) -> Iterator[None]:
    """Remove variables from the environment while the block runs."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)
