"""What a script may stop with on purpose, and how outside text stands in what it says."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"
"""Invisible, but part of how Persian, Indic scripts and emoji are written."""


def printable(text: str, kept: str = "") -> str:
    """Text from outside (ids, titles, answers, messages of servers) as it may stand in a terminal, a log or a report.

    What does not print is shown as Python writes it (``\\x1b``, ``\\u202e``): a terminal obeys control characters,
    marks of direction reorder what stands around them, and half a surrogate pair cannot be written as UTF-8.

    Args:
        kept: characters that stay although they do not print, such as line breaks of what a program wrote itself.
    """
    if text.isprintable():
        return text
    fine = kept + JOINERS
    shown = (c if c.isprintable() or c in fine or unicodedata.category(c) == "Zs" else _escape(c) for c in text)
    return "".join(shown)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class UserError(Exception):
    """Something the user can mend: bad config, bad data, a missing model, a full disk.

    The message is a single line that names the file, the field or key, the value found and what to do.
    Scripts print it without a stack trace and exit with status 2.
    """

    def __init__(self, message: str):
        super().__init__(printable(" ".join(str(message).split())))


class Interrupted(Exception):
    """The scheduler asked the job to stop; what it needs to go on is saved. Scripts exit with ``EXIT_AGAIN``."""


EXIT_AGAIN = 75
"""EX_TEMPFAIL: nothing is wrong, run the same command again."""
