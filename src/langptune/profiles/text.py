"""The decoder on plain history text: what remains of a method when the encoder is taken away."""

from __future__ import annotations

from collections.abc import Sequence

from langptune.errors import UserError


def last_item(history: Sequence[int], item_texts: Sequence[str]) -> str:
    """The text of the most recent item: nearest neighbours of what the user saw last."""
    return item_texts[history[-1]]


def history_text(history: Sequence[int], item_texts: Sequence[str], limit: int) -> str:
    """The texts of the ``limit`` most recent items, newest first (PAPER: EMB-0).

    Newest first, because a decoder cuts a long text at its end: the oldest items go.
    """
    return "\n".join(item_texts[item] for item in reversed(history[-limit:]))


def query(view: str, history: Sequence[int], item_texts: Sequence[str], limit: int) -> str:
    """The text that stands for a session under a view, ``last-item`` or ``history``."""
    if view == "last-item":
        return last_item(history, item_texts)
    if view == "history":
        return history_text(history, item_texts, limit)
    raise UserError(f"unknown text view '{view}'; valid: history, last-item")
