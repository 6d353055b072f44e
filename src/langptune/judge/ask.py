"""Ask a judge about pairs of profiles: an endpoint as it is, a local model behind a server for as long as it takes."""

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
"""Columns of a file of verdicts: two rows a session.

swapped: the reference's profile came first. verdict: ``first``, ``second``, ``tie`` or ``unparsed``, by position.
outcome: the session's, the same in both rows: ``win`` (of the method, in both orders), ``loss``, ``tie`` (all else),
``unparsed`` (either answer holds no verdict).
"""


def pairs(
    method: pl.DataFrame, reference: pl.DataFrame, sessions: pl.DataFrame, items: pl.DataFrame, history_items: int
) -> list[Pair]:
    """What is compared, in the order of ``sessions``.

    Args:
        method, reference: contract ``profiles``, one row a session.
        sessions: contract ``sessions``, those to be judged.
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
    """The source of a model that is served here: no key, no price, one request at a time (the server runs no more)."""
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
    tell: Callable[[str], None],
) -> tuple[list[Answer], Client]:
    """Every request answered, and the client that did it, which knows what was spent.

    ``tell`` hears what it will take, before anything is asked. A local model is served only where an answer is missing
    in the cache. Its answers are kept by its hash, dtype, threads and library, not by the server's address.

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
        told = client.estimate(requests)
        tell(f"{client.source.model}: {told.line}")
        if entry.source.endpoint is None and told.requests:
            client.socket = stack.enter_context(served(folder, log, threads, dtype))
        return client.ask(requests, progress), client


def table(asked: Sequence[Question], told: Sequence[Answer], judge: Judge) -> pl.DataFrame:
    """Questions and their answers as a file of verdicts (``VERDICTS``)."""
    rows = []
    for question, answer in zip(asked, told, strict=True):
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
    """One session's outcome from the verdicts of both orders (Zheng et al., arXiv 2306.05685, section 3.4).

    A win only where the method is preferred in both; where the orders disagree, a tie.

    Args:
        straight: with the method's profile first. swapped: with the reference's first.
    """
    if "unparsed" in (straight, swapped):
        return "unparsed"
    return {("first", "second"): "win", ("second", "first"): "loss"}.get((straight, swapped), "tie")
