"""Similarities of items to edited profiles, which the untrained decoder may read as well.

A trained decoder follows edits less than the untrained one (docs/interpretability.md, Reading edits). So the change
that the untrained decoder sees in an edit can be added, with a weight u:

    cos(p, i) + [cos(q, i) - cos(p, i)] + u * [cos0(q, i) - cos0(p, i)]

for the profile p before the edit, q after it, and item i; cos is by the run's decoder, cos0 by the untrained one. In
the brackets, denials have the weight of edited profiles, before them that of other texts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from langptune.ranking.decoder import ItemVectors
from langptune.ranking.queries import Denials, embed_queries

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Reader(Protocol):
    """A decoder with its embeddings of the catalogue."""

    def similarities(self, texts: Sequence[str], denials: Denials | None) -> np.ndarray:
        """float32 ``[T, N]``: similarities of all items to texts."""
        ...


def weight_of(denials: Denials | None) -> float:
    """The weight of denials; 0 where texts are embedded whole."""
    return denials.weight if denials else 0.0


class CachedReader:
    """A decoder with its catalogue, which embeds each text once.

    cut: number of texts that were cut at its limit.
    """

    def __init__(self, model: SentenceTransformer, items: ItemVectors, prefix: str):
        """``prefix``: the decoder's query prefix."""
        self._model, self._items, self._prefix, self.cut = model, items, prefix, 0
        self._known: dict[tuple[str, float], np.ndarray] = {}

    def embed(self, texts: Collection[str], denials: Denials | None) -> None:
        """Embed all texts that are new, in one pass."""
        weight = weight_of(denials)
        if not (new := sorted(text for text in set(texts) if (text, weight) not in self._known)):
            return
        embedded = embed_queries(self._model, new, self._prefix, denials)
        self.cut += embedded.cut
        self._known |= {(text, weight): vector for text, vector in zip(new, embedded.vectors, strict=True)}

    def similarities(self, texts: Sequence[str], denials: Denials | None) -> np.ndarray:
        """float32 ``[T, N]``: similarities of all items to texts."""
        self.embed(texts, denials)
        return self._items.scores(np.stack([self._known[text, weight_of(denials)] for text in texts]))


@dataclass(frozen=True)
class EditReader:
    """How a run reads texts, and edits of them.

    decoder: the run's own.
    denials: how denials count in texts that are no edits; None: they are embedded whole.
    edited_denials: how they count in edited texts.
    untrained: the untrained decoder; None: it does not read edits.
    weight: weight of its reading, ``u``; not used without it.
    """

    decoder: Reader
    denials: Denials | None = None
    edited_denials: Denials | None = None
    untrained: Reader | None = None
    weight: float = 0.0

    def similarities(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[T, N]``: similarities of all items to texts that are no edits."""
        return self.decoder.similarities(texts, self.denials)

    def edited(self, originals: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """float32 ``[T, N]``: similarities of all items to edited texts.

        Args:
            originals: the text before each edit. An edit that changes nothing has the similarities of the text itself.
            texts: the texts after it.
        """
        pairs = list(zip(originals, texts, strict=True))
        if self.untrained is None and weight_of(self.denials) == weight_of(self.edited_denials):
            return self.similarities([text for _, text in pairs])
        places = {text: at for at, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
        first, last = (np.array([places[pair[side]] for pair in pairs], dtype=np.int64) for side in (0, 1))
        out = self.similarities([before for before, _ in pairs])
        readers = [(self.decoder, 1.0)] + ([] if self.untrained is None else [(self.untrained, self.weight)])
        for reader, weight in readers:
            found = reader.similarities(list(places), self.edited_denials)
            out = out + np.float32(weight) * (found[last] - found[first])
        return out
