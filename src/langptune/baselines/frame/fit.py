"""Trials on validation, the final fit and the ranks, for all baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from langptune import metrics
from langptune.baselines.frame.baseline import Baseline, Fit, Lesson
from langptune.data.contracts import AFTER_CUT
from langptune.errors import UserError
from langptune.ranking.decoder import rank_sessions
from langptune.ranking.kept import Keep
from langptune.ranking.ranks import TOP

COLUMNS = ["session", "user_id", "split", "history", "seen", "target", "target_time"]
"""The columns of ``sessions`` that fitting and ranking read; and ``AFTER_CUT`` where the protocol has it."""

_SCORES = 1 << 24
"""Maximum number of scores in memory (128 MiB in double precision)."""


def blocks(model: Baseline, sessions: pl.DataFrame, n_items: int) -> Iterator[np.ndarray]:
    """Scores float ``[b, n_items]`` of consecutive sessions, in blocks that bound memory."""
    step = max(1, _SCORES // n_items)
    queries = sessions.select(model.asks)
    return (model.scores(queries.slice(start, step)) for start in range(0, len(queries), step))


def ranks(
    model: Baseline, sessions: pl.DataFrame, n_items: int, top: int = TOP, keep: Keep = lambda _, scores: scores
) -> pl.DataFrame:
    """The ranks of sessions (contract ``ranks``), as those of every other method.

    Args:
        keep: passes the score blocks on (``langptune.ranking.kept``).
    """
    return rank_sessions(sessions, keep(sessions, blocks(model, sessions, n_items)), top)


def lesson(
    sessions: pl.DataFrame,
    n_items: int,
    shows: str,
    seed: int,
    log: Callable[[str], None],
    threads: int = 1,
    device: str = "auto",
) -> Lesson:
    """The training data of a baseline before the sessions of a split are ranked.

    Args:
        sessions: the contract's sessions, at least ``COLUMNS``.
        shows: the split whose histories are known: ``val`` for selection, ``test`` for a refit.
    """
    held_out = ["val", "test"] if shows == "val" else ["test"]
    # A user may have several sessions in a split: one may show the target of another.
    targets = sessions.filter(pl.col("split").is_in(held_out)).select("user_id", item="target")
    part = sessions.filter(pl.col("split") == shows)
    shown = pl.concat([part.select("user_id", item=_known(part, name)).explode("item") for name in ("history", "seen")])
    val = sessions.filter(pl.col("split") == "val")

    def validate(model: Baseline) -> dict[str, float]:
        values = ranks(model, val, n_items, top=0)["rank"].to_numpy()
        return {key: float(metrics.from_ranks(key, values).mean()) for key in ("ndcg@10", "recall@10")}

    return Lesson(
        n_items=n_items,
        users=sessions["user_id"].unique(maintain_order=True).to_list(),
        train=sessions.filter(pl.col("split") == "train"),
        shown=shown.drop_nulls().join(targets, on=["user_id", "item"], how="anti"),
        seed=seed,
        log=log,
        validate=None if val.is_empty() else validate,
        threads=threads,
        device=device,
    )


def _known(sessions: pl.DataFrame, column: str) -> pl.Expr:
    """The items of a list column that are older than the cut-off of the session's split; all, without cut-offs.

    A history may reach beyond the cut-off, up to its target. Its items from the cut-off on may be newer than the target
    of another user, so no model is trained on them.
    """
    items = pl.col(column)
    if AFTER_CUT not in sessions.columns:
        return items
    return items.list.head((items.list.len().cast(pl.Int64) - pl.col(AFTER_CUT)).clip(0))


def select(model: Baseline, lesson: Lesson) -> Fit:
    """Fit on the train sessions, and measure on the validation sessions.

    Args:
        lesson: the lesson of the split ``val``.

    Raises:
        UserError: there are no validation sessions; see ``Baseline.fit``.
    """
    fit = model.fit(lesson)
    if not fit.val:
        if lesson.validate is None:
            raise UserError(
                f"{model.keys.label}: the sessions have no validation split to choose on; set tune: {{}} for it"
            )
        fit.val = lesson.validate(model)
        lesson.log(f"{model.keys.label}: val NDCG@10 {fit.val['ndcg@10']:.4f}")
    return fit


def final(
    make: Callable[[], Baseline],
    first: Lesson,
    again: Callable[[], Lesson],
    selected: Callable[[Baseline], None] = lambda model: None,
) -> tuple[Baseline, Fit]:
    """The model that ranks the test sessions, and the outcome of its fit.

    An ID-based model (``refits``) is fitted again from scratch, with the same seed and the best number of epochs. It
    then also trains on the items that the test sessions show (``history`` and ``seen``), which every history-based
    method reads. These never include a test target.

    Args:
        make: returns an unfitted model.
        first, again: the lessons of the splits ``val`` and ``test``.
        selected: is called with the model of the first fit, which alone may score validation sessions: under
            leave-one-out the test sessions show their targets.
    """
    model = make()
    fit = model.fit(first)
    selected(model)
    if model.refits:
        model = make()
        model.fit(again(), fit.best_epoch)
    return model, fit
