"""From texts to vectors to ranks: each distinct text is embedded once, and cosine similarity ranks the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as packed

from langptune.data.contracts import RANKS
from langptune.errors import UserError
from langptune.files import whole
from langptune.ranking.ranks import TOP, Ranked, full_ranks

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

BLOCK = 4096
"""Number of texts that are scored at once; limits memory to BLOCK x items floats."""


@dataclass(frozen=True)
class ItemVectors:
    """A decoder's embeddings of a catalogue.

    vectors: float32 ``[U, D]``, unit length, one row per distinct item text.
    row_of_item: int64 ``[N]``, the row of each item. Items with the same text share a row, so that they tie exactly,
        independent of rounding.
    """

    vectors: np.ndarray
    row_of_item: np.ndarray

    def save(self, path: Path) -> None:
        """Write both arrays to a safetensors file, atomically."""
        with whole(path) as part:
            # Not save_file, which creates another file beside the given one.
            part.write_bytes(packed({"vectors": self.vectors, "row_of_item": self.row_of_item}))

    @staticmethod
    def load(path: Path) -> ItemVectors:
        """Read a file that ``save`` wrote.

        Raises:
            UserError: the file is missing or truncated.
        """
        try:
            arrays = load_file(path)
            return ItemVectors(arrays["vectors"], arrays["row_of_item"])
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete it and rerun the embedding rule") from None

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """Cosine similarity float32 ``[B, N]`` of unit-length queries ``[B, D]`` to every item."""
        return (queries @ self.vectors.T)[:, self.row_of_item]


@dataclass(frozen=True)
class Embedded:
    """Vectors float32 ``[T, D]`` of unit length for T texts, and the number of texts cut at the token limit."""

    vectors: np.ndarray
    cut: int


def unit_vectors(
    model: SentenceTransformer, texts: Sequence[str], forward: Callable[[Any], Any] | None = None
) -> torch.Tensor:
    """Unit vectors float32 ``[T, D]`` of texts (including prefixes) in one forward pass.

    All embeddings are computed here: items, queries, training and evaluation. No prompt of the model's own config is
    added to a text (``load_decoder``). A ``truncate_dim`` of that config is applied, as in the model's ``encode``.
    Gradients are kept unless the caller is in inference mode.

    Args:
        forward: the training wrapper of ``model`` (DDP, FSDP); None: the model itself.
    """
    import torch

    features = model.preprocess([str(text) for text in texts])
    features = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in features.items()}
    vectors = (forward or model)(features)["sentence_embedding"]
    if model.truncate_dim is not None:
        vectors = vectors[..., : model.truncate_dim]
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def embed(model: SentenceTransformer, texts: Sequence[str], prefix: str = "", batch_size: int = 64) -> Embedded:
    """Embed each distinct text once, sorted by text so that batches do not depend on the order of sessions.

    An empty text is embedded like any other: a method that writes nothing is ranked by the decoder's vector for the
    empty text. The model is in evaluation mode afterwards.
    """
    import torch

    distinct = sorted(set(texts))
    prefixed = [prefix + text for text in distinct]
    lengths = [len(ids) for ids in model.tokenizer(prefixed, truncation=False, verbose=False)["input_ids"]]
    model.eval()
    # Texts of similar length share a batch, longest first.
    order = np.argsort([-len(text) for text in prefixed])
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            parts.append(unit_vectors(model, [prefixed[row] for row in rows]).cpu().numpy())
    vectors = np.concatenate(parts)[np.argsort(order)] if parts else np.zeros((0, 0), dtype=np.float32)
    place = {text: row for row, text in enumerate(distinct)}
    rows = np.array([place[text] for text in texts], dtype=np.int64)
    cut = np.array([length > model.max_seq_length for length in lengths], dtype=bool)
    return Embedded(vectors[rows], int(cut[rows].sum()))


def mean_vector(vectors: np.ndarray) -> np.ndarray:
    """The same query for all: each row is the mean of the rows of ``vectors``, float32 ``[S, D]``, of unit length."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    unit = mean / max(float(np.linalg.norm(mean)), np.finfo(np.float32).tiny)
    return np.broadcast_to(unit.astype(np.float32), vectors.shape)


def embed_items(model: SentenceTransformer, texts: Sequence[str], prefix: str = "") -> tuple[ItemVectors, int]:
    """The catalogue's vectors, and the number of item texts cut at the token limit."""
    distinct = sorted(set(texts))
    place = {text: row for row, text in enumerate(distinct)}
    done = embed(model, distinct, prefix)
    return ItemVectors(done.vectors, np.array([place[text] for text in texts], dtype=np.int64)), done.cut


def rank_sessions(sessions: pl.DataFrame, blocks: Iterator[np.ndarray], top: int = TOP) -> pl.DataFrame:
    """Contract ``ranks`` from score blocks.

    Args:
        sessions: columns session, target and seen (the mask), in the order of the scores.
        blocks: float ``[b, N]`` scores of consecutive sessions.
        top: number of best items to keep.

    Raises:
        UserError: the scores do not cover the sessions, or are not finite.
    """
    done: list[Ranked] = []
    start = 0
    for scores in blocks:
        part = sessions.slice(start, len(scores))
        done.append(full_ranks(scores, part["target"].to_numpy(), [s.to_numpy() for s in part["seen"]], top))
        start += len(scores)
    if start != len(sessions):
        raise UserError(f"ranking: {start} score rows for {len(sessions)} sessions")
    best = np.concatenate([r.top for r in done])
    top_scores = np.concatenate([r.top_scores for r in done])
    kept = best >= 0  # padding of rows with fewer unmasked items than places
    return pl.DataFrame(
        {
            "session": sessions["session"],
            "target": sessions["target"],
            "rank": np.concatenate([r.rank for r in done]),
            "top": [row[keep] for row, keep in zip(best, kept, strict=True)],
            "top_scores": [row[keep] for row, keep in zip(top_scores, kept, strict=True)],
        },
        schema=RANKS,
    )
