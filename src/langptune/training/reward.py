"""The reward of RLSO: how high the frozen decoder ranks the target by a profile, over the full catalogue.

``r = 1 / log2(1 + rank)`` (``ndcg``) or ``1 / rank`` (``mrr``), the rank as in every table of this benchmark: what the
user has seen is left out, ties count half (PAPER: Training; formula of r).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from langptune.metrics import from_ranks
from langptune.ranking.decoder import ItemVectors, embed
from langptune.ranking.ranks import flat_masks, target_ranks

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Sessions:
    """What the policy reads and is rewarded by.

    prompts: token ids ``[S][*]``.
    """

    sessions: list[int]
    prompts: list[list[int]]
    targets: list[int]
    seen: list[list[int]]
    futures: list[list[int]] = field(default_factory=list)
    histories: list[list[int]] = field(default_factory=list)


class Reward:
    """Ranks targets by texts through a frozen decoder, and turns ranks into rewards."""

    def __init__(
        self,
        decoder: SentenceTransformer,
        items: ItemVectors,
        prefix: str = "",
        metric: str = "ndcg",
        unfinished: str = "zero",
    ):
        """``items``: the catalogue as this decoder embeds it; ``prefix``: the decoder's query prefix."""
        self._decoder, self._prefix, self.metric, self._unfinished = decoder, prefix, metric, unfinished
        self._vectors = torch.as_tensor(items.vectors, device=decoder.device)
        self._row_of_item = torch.as_tensor(items.row_of_item, device=decoder.device)

    @torch.inference_mode()
    def ranks(self, texts: Sequence[str], targets: Sequence[int], seen: Sequence[Sequence[int]]) -> np.ndarray:
        """int64 ``[B]``: the rank of each target by its text, the items of ``seen`` left out."""
        device = self._vectors.device
        queries = torch.as_tensor(embed(self._decoder, texts, self._prefix).vectors, device=device)
        scores = (queries @ self._vectors.T)[:, self._row_of_item]
        rows, cols = flat_masks(seen)
        allowed = torch.ones_like(scores, dtype=torch.bool)
        allowed[torch.as_tensor(rows, device=device), torch.as_tensor(cols, device=device)] = False
        wanted = torch.as_tensor(np.asarray(targets, dtype=np.int64), device=device)[:, None]
        return target_ranks(scores, scores.gather(1, wanted)[:, 0], allowed).cpu().numpy()

    def __call__(self, texts: Sequence[str], targets: Sequence[int], seen: Sequence[Sequence[int]]) -> np.ndarray:
        """float64 ``[B]`` in (0, 1]: the reward of each text."""
        return from_ranks(self.metric, self.ranks(texts, targets, seen))

    def columns(
        self, texts: Sequence[str], sessions: Sessions, rows: Sequence[int], finished: np.ndarray
    ) -> dict[str, np.ndarray]:
        """float64 ``[B]`` each: the reward of each text, 0 for an unfinished one where the recipe says so.

        Args:
            rows: whose session each text is, as places in ``sessions``.
            finished: bool ``[B]``.
        """
        values = self(texts, [sessions.targets[row] for row in rows], [sessions.seen[row] for row in rows])
        return {"reward": np.where(finished, values, 0.0) if self._unfinished == "zero" else values}

    def combine(self, columns: dict[str, np.ndarray], samples: int) -> np.ndarray:
        """float64 ``[B]``: what the algorithm maximises, from the columns of the whole batch."""
        return columns["reward"]


def validation_metrics(ranks: np.ndarray) -> dict[str, float]:
    """What is reported of validation ranks: ``ndcg`` without cut-off selects, NDCG@10 is for comparison."""
    return {name: float(from_ranks(name, ranks).mean()) for name in ("ndcg", "ndcg@10")}
