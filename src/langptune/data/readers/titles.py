"""Titles as MovieLens writes them, and as people do."""

from __future__ import annotations

import re

_ARTICLE = re.compile(
    r"^(?P<rest>.+), (?P<article>The|A|An|Les?|La|L'|El|Los|Las|Il|Die|Der|Das|Une?)(?P<tail> \(.*\))?$"
)


def move_article(title: str) -> str:
    """``Usual Suspects, The`` to ``The Usual Suspects``; a trailing parenthesis stays last."""
    match = _ARTICLE.match(title)
    if not match:
        return title
    space = "" if match["article"].endswith("'") else " "
    return f"{match['article']}{space}{match['rest']}{match['tail'] or ''}"
