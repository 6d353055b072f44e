"""The reward of RLSO: how high the frozen decoder ranks the target by a profile, over the full catalogue.

``r = 1 / log2(1 + rank)`` (``ndcg``) or ``1 / rank`` (``mrr``), the rank as in every table of this benchmark: what the
user has seen is left out, ties count half, popularity has the weight that it has in the table (PAPER: Training; formula
of r).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from langptune.metrics import from_ranks
from langptune.ranking.decoder import embed
from langptune.ranking.ranks import flat_masks, target_ranks
from langptune.ranking.scoring import Scoring, score

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Reward:
    """Ranks targets by texts through a frozen decoder, and turns ranks into rewards."""

    def __init__(self, decoder: SentenceTransformer, scoring: Scoring, prefix: str = "", metric: str = "ndcg"):
        """``scoring``: of the catalogue as this decoder embeds it; ``prefix``: the decoder's query prefix."""
        self._decoder, self._prefix, self.metric, self._weight = decoder, prefix, metric, scoring.weight
        self._vectors = torch.as_tensor(scoring.items.vectors, device=decoder.device)
        self._row_of_item = torch.as_tensor(scoring.items.row_of_item, device=decoder.device)
        self._popularity = torch.as_tensor(scoring.popularity, device=decoder.device)

    @torch.inference_mode()
    def ranks(self, texts: Sequence[str], targets: Sequence[int], seen: Sequence[Sequence[int]]) -> np.ndarray:
        """int64 ``[B]``: the rank of each target by its text, the items of ``seen`` left out."""
        device = self._vectors.device
        queries = torch.as_tensor(embed(self._decoder, texts, self._prefix).vectors, device=device)
        scores = score((queries @ self._vectors.T)[:, self._row_of_item], self._popularity, self._weight)
        rows, cols = flat_masks(seen)
        allowed = torch.ones_like(scores, dtype=torch.bool)
        allowed[torch.as_tensor(rows, device=device), torch.as_tensor(cols, device=device)] = False
        wanted = torch.as_tensor(np.asarray(targets, dtype=np.int64), device=device)[:, None]
        return target_ranks(scores, scores.gather(1, wanted)[:, 0], allowed).cpu().numpy()

    def __call__(self, texts: Sequence[str], targets: Sequence[int], seen: Sequence[Sequence[int]]) -> np.ndarray:
        """float64 ``[B]`` in (0, 1]: the reward of each text."""
        return from_ranks(self.metric, self.ranks(texts, targets, seen))


def validation_metrics(ranks: np.ndarray) -> dict[str, float]:
    """What is reported of validation ranks: ``ndcg`` without cut-off selects, NDCG@10 is for comparison."""
    return {name: float(from_ranks(name, ranks).mean()) for name in ("ndcg", "ndcg@10")}
