"""A chat client that pays for no answer twice: cached on disk, paced, capped, and repeatable.

Sources: OpenAI's chat completions API (``POST {endpoint}/chat/completions``), which vLLM, ``transformers serve`` and
others speak, through the package ``openai``. It waits and asks again by itself: after 408, 409, 429 and 5xx, as
long as the server's ``Retry-After`` says, else with growing pauses.

What comes back is checked in one place (``answers``) before it is counted or kept. An answer that cannot be used
(empty, filtered, broken off) is counted and never kept. Its cost is written beside the cache, so that a cap holds for
all attempts. The question is asked again: up to ``TRIES`` times at once, and in the next run.

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
from langptune.files import private, read_plain, whole

if TYPE_CHECKING:
    from openai import OpenAI

TRIES = 3
"""How often one question is asked where the answer cannot be used but another might."""
EMPTY_SHARE = 0.05
"""Share of a job's answers that may be unusable where each makes a result; more would measure the empty text."""
_HOPELESS = 20
"""A run ends once this many answers, and more than half of those so far, cannot be used."""
_WINDOW = 60.0
_KEPT = 1 << 25
"""Bytes of a kept answer with its request; a longer file is none."""


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
    """What one client has really used: requests that were answered, tokens as the servers counted them, their price.

    unusable: of those, the answers that cannot be used.
    """

    requests: int = 0
    unusable: int = 0
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
            + (f"; {self.unusable} could not be used" if self.unusable else "")
        )


# Without litellm: its cache keeps empty and filtered answers, its budget counts after an answer and not before a job,
# and it sends OPENAI_ORGANIZATION to any server. It needs 60 packages, and more for its cache on disk.
class Client:
    """Asks one endpoint; answers are kept in a folder that jobs may share."""

    def __init__(
        self,
        source: ModelSource,
        cache: Path | str,
        max_usd: float | None = None,
        identity: str | None = None,
        socket: str | None = None,
    ):
        """A client; nothing is sent yet.

        Args:
            source: the registry's endpoint: address, model, key's name, limits, prices, ``parallel``.
            cache: folder of answers.
            max_usd: no more is spent on what this client is asked, in US dollars, answers that an earlier attempt paid
                for and that are in the cache included; None: no limit.
            identity: what stands for the server in the cache, where its address does not (a port of the moment).
            socket: Unix socket that the server listens on, in place of the port of ``source.endpoint``.
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
        """SHA-256 of all that changes an answer."""
        told = {"server": self.identity, "model": self.source.model, "limit": self.source.limit_key, **asdict(request)}
        if self.source.omit:  # what is not sent changes the answer; earlier keys stay what they were
            told["omit"] = sorted(self.source.omit)
        if request.begun:
            told["prefill"] = self.source.prefill
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def known(self, request: Request) -> Answer | None:
        """The answer in the cache; None where there is none, or none that can be used."""
        try:
            return answers.kept(read_plain(self._file(request), _KEPT), request)
        except OSError:
            return None

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What is still to be asked, in tokens (prompts by their characters, answers at their longest) and dollars."""
        unique = {self.key_of(request): request for request in requests}
        missing = [request for request in unique.values() if self.known(request) is None]
        prompt, longest = sum(r.tokens for r in missing), sum(r.max_tokens for r in missing)
        return Estimate(len(missing), len(unique) - len(missing), prompt, longest, self._price(prompt, longest))

    def ask(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[Answer]:
        """The answers, in the order of the requests; equal requests are asked once.

        One that cannot be used, after ``TRIES``, comes back with its ``fault`` and without a text.

        Args:
            progress: is called with (done, of how many) after each answer that had to be asked for.

        Raises:
            UserError: the estimate is above ``max_usd`` (before anything is sent), what was really spent is (after;
                answers are kept), no key, an error of the server, or a server whose answers can mostly not be used, in
                one line.
        """
        unique = {self.key_of(request): request for request in requests}
        found = {key: answer for key, request in unique.items() if (answer := self.known(request)) is not None}
        missing = {key: request for key, request in unique.items() if key not in found}
        self.spent.cached += len(found)
        # A job that is tried again has its limit once, not once an attempt.
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
        faults: list[Answer] = []
        try:
            while len(found) < len(missing):
                key, outcome = done.get()
                if isinstance(outcome, BaseException):
                    for thread in threads:  # what is under way is paid for, so it is kept
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
        """One question, asked until its answer can be used, at most ``TRIES`` times."""
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
        """One question sent; the package asks again where the server was busy or failed."""
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
            # The bytes, for the package would make objects of whatever it gets, unchecked.
            told = client.chat.completions.with_raw_response.create(**settings)
            return answers.read(told.http_response.content, request)
        except TooLarge as error:
            # What it cost is not known, but no more than what was asked for should.
            tokens = (request.tokens, request.max_tokens)
            return Answer(
                "", False, "", *tokens, False, "unknown", fault="overlong", why=f"{error} for {tokens[1]} tokens"
            )
        except openai.APIStatusError as error:
            if (filtered := answers.refused_prompt(error.response.content, request)) is not None:
                return filtered
            raise self._explained(error, settings) from None
        except Exception as error:
            raise self._explained(error, settings) from None  # no trace: it could hold the key

    def _unmask(self, response: Any) -> None:
        """Give an error that came with HTTP 200 the status it should have: it is then retried and explained as such."""
        if response.status_code != 200:
            return
        body = response.content
        if (status := answers.error_status(body)) is not None:
            prompt, tokens = answers.usage_of(body)
            if prompt or tokens:
                told = Answer("", False, "", prompt, tokens, True, "unknown", fault="aborted", why="an error")
                self._charge(self._asking.request, told)
            response.status_code = status

    def _charge(self, request: Request, answer: Answer) -> None:
        """Count what an answer cost; of one that is not kept, also in the request's account beside the cache."""
        with self._lock:
            self.spent.requests += 1
            self.spent.unusable += bool(answer.fault)
            self.spent.prompt_tokens += answer.prompt_tokens
            self.spent.tokens += answer.tokens
            self.spent.usd += self._price(answer.prompt_tokens, answer.tokens)
        if answer.fault:
            told = {key: getattr(answer, key) for key in ("fault", "why", "reason", "prompt_tokens", "tokens", "model")}
            with private(self._account(self.key_of(request))) as file:
                file.write(json.dumps(told) + "\n")

    def _account(self, key: str) -> Path:
        """What the answers to one request cost that could not be used, a line each."""
        return self.cache / key[:2] / f"{key}.unusable.jsonl"

    @staticmethod
    def _lines(path: Path) -> list[bytes]:
        try:
            return read_plain(path, _KEPT).splitlines()
        except OSError:
            return []

    def few_faults(self, told: Sequence[Answer]) -> list[Answer]:
        """Those of a job's answers that cannot be used: one, or a share of ``EMPTY_SHARE``, and fewer than half.

        Raises:
            UserError: there are more.
        """
        faults = [answer for answer in told if answer.fault]
        if faults and (len(faults) > max(1, EMPTY_SHARE * len(told)) or 2 * len(faults) >= len(told)):
            raise UserError(self.without_text(faults, len(told)))
        return faults

    def without_text(self, faults: Sequence[Answer], asked: int) -> str:
        """The line for answers of which too many cannot be used: how many, why, and what to change."""
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
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return (
            f"{self.source.model} at {self.url}: {len(faults)} of {asked} answers cannot be used ({told}; first: "
            f"{faults[0].why}); {'; '.join(advice)}. All other answers are kept in {self.cache} and cost "
            "nothing in the next run"
        )

    def _price(self, prompt: int, tokens: int) -> float:
        return (prompt * (self.source.input_price or 0) + tokens * (self.source.output_price or 0)) / 1e6

    def _file(self, request: Request) -> Path:
        key = self.key_of(request)
        return self.cache / key[:2] / f"{key}.json"

    def _keep(self, request: Request, answer: Answer) -> None:
        """Written whole or not at all, and for this user's eyes: a prompt is what somebody read or bought."""
        told = {
            "request": {"server": self.identity, "model": self.source.model, **asdict(request)},
            "answer": asdict(answer),
        }
        with whole(self._file(request), 0o600) as part:
            part.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def _pace(self, tokens: int) -> None:
        """Wait until one more request of so many tokens keeps to the limits, for all jobs that share the cache."""
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
        with _hidden_variables("OPENAI_"):  # the package sends what it finds there to any server
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
                    trust_env=not allowed.near(self.url),  # a proxy of the environment is none for this machine itself
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
        """What went wrong, in one line that says what to do; never with the key in it.

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
                "it, mend 'endpoint' in models.yaml, or run where there is a network"
            )
        if not isinstance(error, openai.APIStatusError):
            return UserError(f"{where}: not the answer of a chat API ({type(error).__name__}); check 'endpoint'")
        status, said = error.status_code, self._said(error)
        if 300 <= status < 400:
            try:
                other = urlsplit(error.response.headers.get("location", "")).hostname or "another path"
            except ValueError:
                other = "an address that is none"
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
            # Of a 401 the server's words are about the key, and may hold parts of it.
            return UserError(f"{where}: refused ({status}{said if status == 403 else ''}): {what}")
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
        if status >= 500 or status in (408, 409, 425):
            return UserError(
                f"{where}: failed ({status}{said}) after {self.source.retries} retries; answers so far are kept, run "
                "again to go on"
            )
        return UserError(f"{where}: refused the request ({status}{said}); {self._advice(status, error, sent)}")

    def _advice(self, status: int, error: Any, sent: Mapping[str, Any]) -> str:
        """What to change after a 4xx that the same request would meet again."""
        if status == 402:
            return "the account has no credit: add some, or take another 'endpoint' in models.yaml"
        body = self._body(error)
        named, body = body.get("param"), _words(body).lower()
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
        """The error object in the server's answer; empty where there is none."""
        try:
            body = json.loads(error.response.text)
        except (ValueError, RecursionError):
            return {}
        inner = body.get("error", body) if isinstance(body, dict) else body
        return inner if isinstance(inner, dict) else {"message": inner}

    def _said(self, error: Any) -> str:
        """The server's own words, short, with the key taken out."""
        text = self._hidden(" ".join(answers.unicode(_words(self._body(error))).split()))
        return f": {text[:200]}" if text else ""

    def _hidden(self, text: str) -> str:
        secret = os.environ.get(self.source.key or "", "").strip()
        return text.replace(secret, "***") if secret else text


@contextmanager
def _hidden_variables(prefix: str) -> Iterator[None]:
    """Take variables out of the environment while the block runs."""
    told = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(told)


def _words(body: Mapping[str, Any]) -> str:
    """The words in an error object: its message, or the complaints of a server that checks each field."""
    told = body.get("message") or body.get("detail") or body or ""
    if isinstance(told, list):  # FastAPI: what was sent stands in it too, which is no part of the complaint
        parts = [part for part in told if isinstance(part, dict)]
        told = "; ".join(f"{'.'.join(map(str, part.get('loc') or []))}: {part.get('msg')}" for part in parts)
    metadata = body.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None  # of the provider behind a broker
    return f"{told}: {raw}" if raw else str(told)


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
