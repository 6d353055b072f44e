"""Asks a judge about pairs of profiles: an endpoint directly, a local model through a temporary server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import polars as pl

from langptune import provenance
from langptune.config.judges import Judge
from langptune.config.models import EncoderEntry, ModelSource
from langptune.endpoint.answers import Answer, Request
from langptune.endpoint.client import Client
from langptune.endpoint.serve import served
from langptune.judge import verdict
from langptune.judge.prompt import Pair, Question

VERDICTS = {
    "session": pl.Int32,
    "swapped": pl.Boolean,
    "verdict": pl.String,
    "outcome": pl.String,
    "answer": pl.String,
    "prompt_tokens": pl.Int32,
    "tokens": pl.Int32,
}
"""Columns of a file of verdicts: two rows per session.

swapped: the reference's profile came first. verdict: ``first``, ``second``, ``tie`` or ``unparsed``, by position.
outcome: of the session, the same in both rows: ``win`` (of the method, in both orders), ``loss`` (in both orders),
``tie`` (anything else), ``unparsed`` (either answer has no verdict).
"""


def pairs(
    method: pl.DataFrame, reference: pl.DataFrame, sessions: pl.DataFrame, items: pl.DataFrame, history_items: int
) -> list[Pair]:
    """The pairs to compare, in the order of ``sessions``.

    Args:
        method, reference: contract ``profiles``, one row per session.
        sessions: contract ``sessions``, the sessions to judge.
        items: contract ``items``.
        history_items: the most recent items that are shown, as their ``text`` with the user's rating.
    """
    texts = items["text"].to_list()
    sides = [dict(table.select("session", "profile").iter_rows()) for table in (method, reference)]
    out = []
    for row in sessions.select("session", "history", "ratings").to_dicts():
        shown = list(zip(row["history"], row["ratings"], strict=True))[-history_items:]
        history = tuple((texts[item], f"rated {rating:g}") for item, rating in shown)
        out.append(Pair(row["session"], history, sides[0][row["session"]], sides[1][row["session"]]))
    return out


def local_source(name: str) -> ModelSource:
    """The source of a model that is served locally: no key, no price, one request at a time (the server's limit)."""
    return ModelSource(
        endpoint="http://127.0.0.1/v1", model=name, input_price=0, output_price=0, parallel=1, timeout=600.0
    )


def answers(
    entry: EncoderEntry,
    folder: Path | str,
    requests: Sequence[Request],
    cache: Path | str,
    log: Path | str,
    threads: int,
    dtype: str,
    max_usd: float | None,
    progress: Callable[[int, int], None],
    report: Callable[[str], None],
) -> tuple[list[Answer], Client]:
    """The answers to all requests, and the client, which holds what was spent.

    ``report`` receives the estimated cost before anything is sent. A local model is served only if an answer is missing
    in the cache. Its cache key is made of its hash, dtype, threads, device and libraries, not of the server's address.

    Raises:
        UserError: as ``Client.ask`` and ``served``.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        if entry.source.endpoint is not None:
            client = Client(entry.source, cache, max_usd)
        else:
            made_with = provenance.versions("torch", "transformers")
            own = [provenance.input_hash(folder), dtype, threads, provenance.device(), *made_with.values()]
            source = local_source(folder.name)
            client = Client(source, cache, max_usd, identity=" ".join(map(str, ["local", *own])))
        estimate = client.estimate(requests)
        report(f"{client.source.model}: {estimate.line}")
        if entry.source.endpoint is None and estimate.requests:
            client.socket = stack.enter_context(served(folder, log, threads, dtype))
        return client.ask(requests, progress), client


def table(asked: Sequence[Question], replies: Sequence[Answer], judge: Judge) -> pl.DataFrame:
    """The verdicts of questions and their answers, in the columns ``VERDICTS``."""
    rows = []
    for question, answer in zip(asked, replies, strict=True):
        found = verdict.read(answer.text, answer.finished, judge)
        rows.append((question.session, question.swapped, found or "unparsed", answer))
    by_session: dict[int, dict[bool, str]] = {}
    for session, swapped, found, _ in rows:
        by_session.setdefault(session, {})[swapped] = found
    data = [
        (session, swapped, found, outcome(**_named(by_session[session])), a.text, a.prompt_tokens, a.tokens)
        for session, swapped, found, a in rows
    ]
    return pl.DataFrame(data, schema=VERDICTS, orient="row").sort("session", "swapped")


def _named(orders: dict[bool, str]) -> dict[str, str]:
    return {"straight": orders[False], "swapped": orders[True]}


def outcome(straight: str, swapped: str) -> str:
    """A session's outcome from the verdicts of both orders (Zheng et al., arXiv 2306.05685, section 3.4).

    It is a win only if the method is preferred in both orders; if the orders disagree, it is a tie.

    Args:
        straight: the verdict with the method's profile first.
        swapped: the verdict with the reference's profile first.
    """
    if "unparsed" in (straight, swapped):
        return "unparsed"
    return {("first", "second"): "win", ("second", "first"): "loss"}.get((straight, swapped), "tie")
