"""Edited texts for CL: one taste of a text is changed so that the text stays true of the row's own target item.

An edited row teaches the decoder that the text decides the ranking. The positive stays the session's own target, so no
item is drawn, and the popularity correction needs only the frequencies of the rows (``contrastive.row_weights``).

- ``add``: a sentence with a taste of the target that the text does not name is put before the text.
- ``strengthen``: the same with a taste of the target that the text names.
- ``remove``: the mentions of a taste that the text names and the target lacks are removed.
- ``deny``: a sentence that denies a taste that the target lacks is put before the text.

The sentences differ from those with which steerability is measured (``langptune.interpretability.steering``), so that
the measure does not count sentences that were learnt by heart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from langptune.config.recipes import EDITS, Edit
from langptune.interpretability.steering import with_sentence
from langptune.language.claims import Titles, unmasked
from langptune.language.tastes import Tastes, removed

SENTENCES: dict[Edit, tuple[str, ...]] = {
    "add": (
        "They enjoy {}.",
        "They are a fan of {}.",
        "They are interested in {}.",
        "They would like more {}.",
        "They also like {}.",
        "They are keen on {}.",
        "{} is what they want next.",
        "They appreciate {} as well.",
    ),
    "strengthen": (
        "They like {} more than anything else.",
        "{} is their favourite.",
        "They prefer {} to all else.",
        "They cannot get enough of {}.",
        "{} matters most to them.",
        "They enjoy {} most of all.",
        "They always come back to {}.",
        "They are passionate about {}.",
    ),
    "deny": (
        "They avoid {}.",
        "They do not like {}.",
        "They have no interest in {}.",
        "{} is not for them.",
        "They are tired of {}.",
        "They stay away from {}.",
        "They hate {}.",
        "They never enjoy {}.",
    ),
}
"""Sentences of the edits that put one before the text; ``{}`` is the taste's name in the catalogue."""


class Edits:
    """Edits of the rows of training; a text is read when it is edited, so that no more texts are in memory."""

    def __init__(
        self,
        texts: Sequence[str],
        targets: np.ndarray,
        tastes: Tastes,
        titles: Titles,
        kinds: Sequence[Edit],
        prefix: str = "",
    ):
        """Set up the edits.

        Args:
            texts: texts of all rows ``[R]``, each with ``prefix``.
            targets: int ``[R]``, their target items.
            titles: titles of the catalogue; words in them are not tastes, and stay.
            kinds: the edits that are used; their order has no effect.
            prefix: the decoder's query prefix, which stays at the beginning.
        """
        self._texts, self._targets, self._tastes, self._titles = texts, targets, tastes, titles
        self._kinds = [kind for kind in EDITS if kind in kinds]
        self._prefix = prefix

    def admitted(self) -> np.ndarray:
        """int64 ``[E]``: the rows that are edited, ascending.

        With ``add`` and ``strengthen`` these are the rows whose target has a taste, which the text names or does not.
        With ``deny``, so are those whose target lacks one. Only for other selections of edits is every text read.
        """
        has, likes, denies = self._tastes.has, {"add", "strengthen"} <= set(self._kinds), "deny" in self._kinds
        if likes or denies:
            items = (likes & has.any(axis=1)) | (denies & ~has.all(axis=1))
            return np.flatnonzero(items[self._targets])
        rows = range(len(self._targets))
        return np.array([row for row in rows if self._options(self._masked(row)[1], row)], dtype=np.int64)

    def text(self, row: int, rng: np.random.Generator) -> str:
        """The text of a row that admits an edit, with one: its kind, taste and sentence are drawn uniformly."""
        plain, masked, written = self._masked(row)
        options = self._options(masked, row)
        kind = list(options)[int(rng.integers(len(options)))]
        taste = options[kind][int(rng.integers(len(options[kind])))]
        name = self._tastes.names[taste]
        if kind == "remove":
            # The first of a list ("Genres: Drama, War") leaves a comma behind.
            return self._prefix + unmasked(removed(masked, name).replace(":,", ":"), written)
        sentence = SENTENCES[kind][int(rng.integers(len(SENTENCES[kind])))]
        return self._prefix + with_sentence(sentence.format(name), plain)

    def _masked(self, row: int) -> tuple[str, str, list[tuple[str, str]]]:
        """A row's text without prefix, the same with its titles masked, and the titles."""
        plain = self._texts[row].removeprefix(self._prefix)
        return plain, *self._titles.mask(plain)

    def _options(self, masked: str, row: int) -> dict[Edit, list[int]]:
        """Kind of edit -> the tastes, ascending, with which it is true of the row's target; kinds without one left out.

        Args:
            masked: the text with its titles masked.
        """
        own = self._tastes.has[self._targets[row]]
        named = np.zeros(len(own), dtype=bool)
        named[self._tastes.in_text(masked)] = True
        tastes = {"add": own & ~named, "strengthen": own & named, "remove": named & ~own, "deny": ~own}
        found = {kind: np.flatnonzero(tastes[kind]).tolist() for kind in self._kinds}
        return {kind: at for kind, at in found.items() if at}
