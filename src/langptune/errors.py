"""Exceptions with which scripts stop on purpose, and the display of external text in messages."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"
"""Invisible characters that Persian, Indic scripts and emoji need."""


def printable(text: str, kept: str = "") -> str:
    """External text (ids, titles, answers, messages of servers) made safe for a terminal, a log or a report.

    Unprintable characters are escaped as in Python (``\\x1b``, ``\\u202e``): terminals obey control characters,
    direction marks reorder the surrounding text, and lone surrogates cannot be written as UTF-8.

    Args:
        kept: unprintable characters that are kept, such as line breaks of the program's own text.
    """
    if text.isprintable():
        return text
    safe = kept + JOINERS
    shown = (c if c.isprintable() or c in safe or unicodedata.category(c) == "Zs" else _escape(c) for c in text)
    return "".join(shown)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class UserError(Exception):
    """An error that the user can fix: bad config, bad data, a missing model, a full disk.

    The message is a single line that names the file, the field or key, the value found and what to do.
    Scripts print it without a stack trace and exit with status 2.
    """

    def __init__(self, message: str):
        super().__init__(printable(" ".join(str(message).split())))


class Interrupted(Exception):
    """The scheduler asked the job to stop; its state is saved. Scripts exit with ``EXIT_AGAIN``."""


EXIT_AGAIN = 75
"""EX_TEMPFAIL: not an error, run the same command again."""
