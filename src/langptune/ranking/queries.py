"""Query vectors of texts: all that ranks by a text (ranks, rewards, explorer, steering) makes its queries here.

A text is embedded whole, or in two parts (``langptune.language.denials``): ``query = likes - beta * avoids``,
both of unit length. Scores are dot products with the items' vectors, so the similarity of an item is
``cos(likes, item) - beta * cos(avoids, item)``. A text without denials has the same vector either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from langptune.language.claims import Titles
from langptune.language.denials import Splitter
from langptune.language.tastes import tastes_of
from langptune.ranking.decoder import Embedded, embed

if TYPE_CHECKING:
    import polars as pl
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Denials:
    """How denials count.

    weight: ``beta``, above 0.
    splitter: splits texts about the catalogue.
    """

    weight: float
    splitter: Splitter


def splitter_of(items: pl.DataFrame, taste_field: str | None) -> Splitter:
    """The splitter of a catalogue.

    Args:
        items: contract ``items`` with its fields.
        taste_field: the item field of genres; without one, contradictions between tastes are not looked for.
    """
    tastes = tastes_of(items, taste_field) if taste_field in items.columns else None
    return Splitter(Titles(items["title"].to_list()), tastes)


def denials_of(items: pl.DataFrame, taste_field: str | None, weight: float) -> Denials | None:
    """How denials count at a weight; None at 0, where texts are embedded whole. Arguments: ``splitter_of``."""
    return Denials(weight, splitter_of(items, taste_field)) if weight else None


@dataclass(frozen=True)
class InParts:
    """Vectors of T texts in two parts.

    likes: float32 ``[T, D]``, of unit length. If a text consists of denials, zero: only what is avoided, and
        popularity, rank items. The vector of the empty text would be a direction without meaning.
    avoids: float32 ``[T, D]``, of unit length; zero where nothing is denied.
    cut: number of parts cut at the token limit.
    """

    likes: np.ndarray
    avoids: np.ndarray
    cut: int

    def at(self, weight: float) -> np.ndarray:
        """The queries, float32 ``[T, D]``, with a weight of denials."""
        return self.likes - np.float32(weight) * self.avoids


def embed_parts(model: SentenceTransformer, texts: Sequence[str], prefix: str, splitter: Splitter) -> InParts:
    """Embed what each text likes and avoids; ``prefix`` is the decoder's query prefix."""
    parts = [splitter.parts(text) for text in texts]
    likes = embed(model, [one.likes for one in parts], prefix)
    vectors, avoids = likes.vectors, np.zeros_like(likes.vectors)
    denying = [at for at, one in enumerate(parts) if one.avoids]
    if not denying:
        return InParts(vectors, avoids, likes.cut)
    denied = embed(model, [parts[at].avoids for at in denying], prefix)
    avoids[denying] = denied.vectors
    vectors[[at for at in denying if not parts[at].likes]] = 0
    return InParts(vectors, avoids, likes.cut + denied.cut)


def embed_queries(
    model: SentenceTransformer, texts: Sequence[str], prefix: str = "", denials: Denials | None = None
) -> Embedded:
    """The query vectors of texts, float32 ``[T, D]``; of unit length where nothing is denied.

    Args:
        prefix: the decoder's query prefix.
        denials: None: texts are embedded whole.
    """
    if denials is None:
        return embed(model, texts, prefix)
    parts = embed_parts(model, texts, prefix, denials.splitter)
    return Embedded(parts.at(denials.weight), parts.cut)
