"""Scores of the whole catalogue on disk, in blocks of sessions: kept for the methods that a fusion adds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import polars as pl

from langptune.data import contracts
from langptune.errors import UserError
from langptune.files import whole
from langptune.meter import Meter

BLOCK = 1 << 22
"""Maximum number of scores that are read at once (32 MiB in double precision)."""
Blocks = Iterator[np.ndarray]
Keep = Callable[[pl.DataFrame, Blocks], Blocks]


@contextmanager
def keeping(path: Path | str | None, wanted: pl.Series | None = None, meter: Meter | None = None) -> Iterator[Keep]:
    """A function that passes score blocks on unchanged, and writes them to a file that exists after the ``with``.

    The function takes the sessions (columns session and target, in the order of the scores) and the blocks, float
    ``[b, N]``. Scores keep their type, float32 or float64, so that the ranks by them stay the same.

    Args:
        path: Parquet file with columns session, target and scores; None: nothing is written.
        wanted: the sessions to write; None: all.
        meter: is paused while scores are written, which is no work of a recommender.
    """
    if path is None:
        yield lambda sessions, blocks: blocks
        return
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with whole(path) as part, ExitStack() as opened:
        file = None

        def append(sessions: pl.DataFrame, scores: np.ndarray) -> None:
            nonlocal file
            rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(scores).ravel()), scores.shape[1])
            columns = {name: pa.array(sessions[name].to_numpy()) for name in ("session", "target")}
            table = pa.table({**columns, "scores": rows})
            if file is None:  # the first block has the type and the number of the scores
                file = opened.enter_context(ParquetWriter(part, table.schema, compression="zstd", use_dictionary=False))
            file.write_table(table, row_group_size=max(1, BLOCK // scores.shape[1]))

        def keep(sessions: pl.DataFrame, blocks: Blocks) -> Blocks:
            chosen = np.ones(len(sessions), bool) if wanted is None else np.isin(sessions["session"], wanted)
            start = 0
            for scores in blocks:
                here = slice(start, start + len(scores))
                with nullcontext() if meter is None else meter.paused():
                    append(sessions[here].filter(pl.Series(chosen[here])), scores[chosen[here]])
                start += len(scores)
                yield scores

        yield keep


def write(path: Path | str, sessions: pl.DataFrame, blocks: Blocks) -> None:
    """Write the scores of sessions (columns session and target) that are not ranked at the same time."""
    with keeping(path) as keep:
        deque(keep(sessions, blocks), maxlen=0)


def read(path: Path | str, sessions: pl.DataFrame, n_items: int) -> Iterator[np.ndarray]:
    """Scores float ``[b, N]`` of consecutive sessions, in blocks of at most ``BLOCK`` scores.

    Args:
        sessions: columns session (ascending) and target.
        n_items: size of the catalogue, N.

    Raises:
        UserError: the file cannot be read, or has scores of other sessions, other targets or another catalogue.
    """
    lazy = contracts.scan_parquet(path)
    there = contracts.collected(lazy.select("session", "target"), path)
    if there["session"].to_list() != sessions["session"].to_list():
        odd = sorted(set(there["session"]) ^ set(sessions["session"]))
        first = f" (first: session {odd[0]})" if odd else ""
        raise UserError(
            f"{path}: scores of {len(there)} sessions, but {len(sessions)} are compared; {len(odd)} are in one of the "
            f"two only{first}. A fusion needs both methods on the same sessions (sample, protocol); rerun the rule "
            "that makes this file"
        )
    other = np.flatnonzero((there["target"] != sessions["target"]).to_numpy())
    if len(other):
        raise UserError(
            f"{path}: session {sessions['session'][int(other[0])]} has another target than in the prepared data: the "
            "scores are of another protocol or dataset; rerun the rule that makes this file"
        )
    kind = lazy.collect_schema()["scores"]
    if not isinstance(kind, pl.Array) or kind.shape != (n_items,):
        raise UserError(
            f"{path}: scores of type {kind}, expected {n_items} numbers per session, one for each item; "
            "rerun the rule that makes this file"
        )
    step = max(1, BLOCK // n_items)
    for start in range(0, len(sessions), step):
        yield contracts.collected(lazy.select("scores").slice(start, step), path)["scores"].to_numpy()
