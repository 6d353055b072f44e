"""CL: contrastive training of the recommender decoder on pairs of a text (profile or history) and a target item.

The loss does not use popularity: its weight in the scores is chosen later (``ranking.scoring``).

Loss of row i, with s the cosine similarity, tau the temperature, and C the candidates (the targets of all rows of the
batch over all processes, then uniformly drawn items)::

    -log exp(l(i, i)) / sum_{j in C, j not masked for i} exp(l(i, j)),    l(i, j) = s(text_i, item_j) / tau - log q(j)

(PAPER: Training, InfoNCE, one direction.) ``q(j)`` is how often item j is expected among the candidates; the published
loss has no such term. With ``negatives: N`` the targets in C are those of the row's own group of N rows, counted over
the whole batch (PAPER, defect 8: each device saw its own 32 rows only). Memory is bounded by the micro-batch, not by
the batch: embeddings are computed without gradients first, the loss gives the gradient of each embedding, and each
micro-batch is then embedded again to carry it into the weights (GradCache, Gao et al., 2021). So the micro-batch and
the number of processes do not change the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments

from langptune.config.recipes import ContrastiveRecipe
from langptune.errors import UserError
from langptune.gpus import refuse_several
from langptune.launch import join
from langptune.randomness import stream
from langptune.ranking.decoder import unit_vectors
from langptune.training.checkpoints import Checkpoints
from langptune.training.trainer import Resumable, row_order, training_arguments
from langptune.training.watch import Watch

GROUP = 64
"""Number of texts per forward pass."""

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Pairs:
    """Training data of the decoder: rows of one text and one target item.

    texts: with the decoder's query prefix; accessed one by one, so they may be computed lazily.
    targets: int64 ``[R]``.
    item_texts: texts of the whole catalogue, with the decoder's item prefix.
    histories: number of first rows that are histories, if the others are profiles and every batch has a share of both
        (``profile_share``); None: all rows are of one kind.
    """

    texts: Sequence[str]
    targets: np.ndarray
    item_texts: list[str]
    histories: int | None = None


def info_nce(
    queries: torch.Tensor,
    items: torch.Tensor,
    item_ids: torch.Tensor,
    positives: torch.Tensor,
    temperature: float,
    log_q: torch.Tensor | None,
    mask_duplicates: bool,
    group: int | None = None,
) -> torch.Tensor:
    """Mean loss over the rows; see the module's formula.

    Args:
        queries: unit vectors ``[B, D]``.
        items: unit vectors ``[C, D]`` of the candidates.
        item_ids: int ``[C]``, the item of each candidate.
        positives: int ``[B]``, index of the candidate that is each row's target.
        log_q: ``[C]``, log of the expected number of times each candidate's item is drawn; None: published loss.
        mask_duplicates: exclude other candidates with the row's own target from the negatives.
        group: size of groups of rows; targets of other groups are not negatives. None: one group. With groups,
            ``positives`` must be ``0..B-1``: candidates after the first B belong to all groups.
    """
    logits = queries @ items.T / temperature
    if log_q is not None:
        logits = logits - log_q
    if group is not None:
        groups = positives // group
        foreign = torch.zeros_like(logits, dtype=torch.bool)
        foreign[:, : len(positives)] = groups[None, :] != groups[:, None]
        logits = logits.masked_fill(foreign, -torch.inf)
    if mask_duplicates:
        same = item_ids[None, :] == item_ids[positives][:, None]
        same[torch.arange(len(positives)), positives] = False
        logits = logits.masked_fill(same, -torch.inf)
    return torch.nn.functional.cross_entropy(logits, positives)


def log_frequency(
    targets: np.ndarray, n_items: int, rows: int, uniform_negatives: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """``log q`` ``[N]``: the logarithm of the expected number of each item among the candidates of a row.

    ``q(j) = rows * share of j among the targets + uniform_negatives / N`` (mixed negative sampling), where ``rows`` is
    the number of rows whose targets are candidates. Without uniform negatives an item that is no row's target is never
    a candidate: it gets the value of an item with one session, so that the logarithm is finite; no loss uses it.

    Args:
        targets: int ``[R]``, targets of the training rows.
        weights: float ``[R]``, relative frequency of each row, with mean 1; None: all rows are equally frequent.
    """
    counts = np.bincount(targets, weights, minlength=n_items)
    expected = rows * counts / len(targets) + uniform_negatives / n_items
    return np.log(np.where(expected > 0, expected, rows / len(targets)))


def mixed_order(pairs: Pairs, share: float, needed: int, seed: int, phase: str) -> np.ndarray:
    """int64 ``[needed]``: rows for all batches, histories and profiles interleaved by the share of the profiles.

    Each kind has the order of ``row_order``. The two are spread evenly, so that every batch, and every group of rows in
    it, has the share to within one row.
    """
    assert pairs.histories is not None
    ends = np.floor(np.arange(needed + 1) * share).astype(np.int64)
    profile = np.diff(ends) == 1
    out = np.empty(needed, dtype=np.int64)
    for kind, first, rows, name in (
        (~profile, 0, pairs.histories, "histories"),
        (profile, pairs.histories, len(pairs.targets) - pairs.histories, "profiles"),
    ):
        if kind.any():
            out[kind] = first + row_order(rows, int(kind.sum()), seed, f"{phase} {name}")
    return out


def row_weights(pairs: Pairs, share: float) -> np.ndarray:
    """float64 ``[R]``: relative frequency of each row of mixed pairs, with mean 1."""
    assert pairs.histories is not None
    rows, profiles = len(pairs.targets), len(pairs.targets) - pairs.histories
    each = [(1 - share) * rows / pairs.histories, share * rows / profiles]
    return np.repeat(each, [pairs.histories, profiles])


class _Rows(Dataset):
    """Row numbers for all batches."""

    def __init__(self, rows: np.ndarray):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> int:
        return int(self._rows[index])


class ContrastiveTrainer(Resumable, Trainer):
    """Trains a sentence-transformers model on ``Pairs`` by a contrastive recipe."""

    def __init__(
        self,
        model: SentenceTransformer,
        pairs: Pairs,
        recipe: ContrastiveRecipe,
        checkpoints: Checkpoints,
        validate: Callable[[SentenceTransformer], dict[str, float]],
        seed: int,
        phase: str,
        bf16: bool,
        log: Callable[[str], None],
    ):
        """``validate`` ranks the validation sessions with the given model, and returns at least ``ndcg``.

        ``seed`` and ``phase`` (``Phase.stream``) determine the random streams.
        """
        join(cpu=model.device.type == "cpu")
        arguments = TrainingArguments(
            **training_arguments(recipe, checkpoints, recipe.batches, bf16, seed, phase),
            per_device_train_batch_size=1,  # replaced below, once the number of processes is known
            use_cpu=model.device.type == "cpu",
        )
        refuse_several(arguments.n_gpu)
        for key in ("batch_size", "uniform_negatives"):
            if getattr(recipe, key) % arguments.world_size:
                value, processes = getattr(recipe, key), arguments.world_size
                raise UserError(f"{recipe.title}: {key} {value} does not divide over {processes} processes")
        arguments.per_device_train_batch_size = recipe.batch_size // arguments.world_size
        # With dropout, the two embeddings of a text would differ, and the result would depend on the micro-batch.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=_Rows(self._order(pairs, recipe, seed, phase)),
            data_collator=lambda rows: {"rows": torch.tensor(rows)},
        )
        self._pairs, self._recipe, self._seed, self._phase = pairs, recipe, seed, phase
        self._log_q = None
        if recipe.popularity_correction:
            values = log_frequency(
                pairs.targets,
                len(pairs.item_texts),
                recipe.rivals,
                recipe.uniform_negatives,
                None if pairs.histories is None else row_weights(pairs, recipe.profile_share),
            )
            self._log_q = torch.tensor(values, dtype=torch.float32)
        self._micro = recipe.micro_batch
        self.checkpoints = checkpoints
        main = self.accelerator.is_main_process
        self._judge = validate
        self.watch = Watch(recipe, 1, checkpoints, self.validate, self._save_best, log, main)
        self.add_callback(self.watch)

    @staticmethod
    def _order(pairs: Pairs, recipe: ContrastiveRecipe, seed: int, phase: str) -> np.ndarray:
        needed = recipe.batches * recipe.batch_size
        if pairs.histories is None:
            return row_order(len(pairs.targets), needed, seed, phase)
        return mixed_order(pairs, recipe.profile_share, needed, seed, phase)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return inputs  # row numbers, used on the CPU

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the inputs are row numbers."""
        return 0

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None) -> Any:
        """Compute the gradients of one batch, independent of micro-batch and number of processes."""
        model.train()
        rows = inputs["rows"].numpy()
        loss = self.fitting(lambda: self._backward(model, rows), len(rows))
        self.watch.record(loss=float(loss), learning_rate=self._get_learning_rate())
        return loss

    def _backward(self, model: Any, rows: np.ndarray) -> torch.Tensor:
        device = self.accelerator.device
        targets = self._pairs.targets[rows]
        negatives = self._uniform()
        items = np.concatenate([targets, negatives])
        texts = np.array([*(self._pairs.texts[row] for row in rows), *(self._pairs.item_texts[item] for item in items)])
        place = np.arange(len(texts))
        # Repeated texts are embedded once. With sharded weights, all processes need the same number of forward passes,
        # so each embeds all of its texts, whose number is the same.
        if not self.is_fsdp_enabled:
            texts, place = np.unique(texts, return_inverse=True)
        order = np.argsort([len(text) for text in texts], kind="stable")
        chunks = [order[start : start + self._micro] for start in range(0, len(order), self._micro)]
        if len(chunks) == 1:
            vectors = self._embed(model, texts[order])
        else:
            with torch.no_grad():
                vectors = torch.cat([self._embed(model, texts[chunk]) for chunk in chunks])
            vectors.requires_grad_()
        position = np.empty(len(order), dtype=np.int64)
        position[order] = np.arange(len(order))
        at = torch.as_tensor(position[place], device=device)
        loss = self._loss(vectors[at[: len(rows)]], vectors[at[len(rows) :]], torch.as_tensor(items, device=device))
        # Every process computes the loss of the whole batch, with gradients of its own rows only. DDP averages
        # gradients over processes, so the loss is multiplied by their number.
        scaled = loss * self.accelerator.num_processes
        if len(chunks) == 1:
            self.accelerator.backward(scaled)
            return loss.detach()
        (gradient,) = torch.autograd.grad(scaled, vectors)
        start = 0
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            with self.synchronised(model, last):
                part = self._embed(model, texts[chunk])
                self.accelerator.backward((part * gradient[start : start + len(chunk)]).sum())
            start += len(chunk)
        return loss.detach()

    def _loss(self, queries: torch.Tensor, items: torch.Tensor, item_ids: torch.Tensor) -> torch.Tensor:
        """The loss of the whole batch: rows and candidates of all processes."""
        rows = len(queries)
        targets, negatives = items[:rows], items[rows:]
        target_ids, negative_ids = item_ids[:rows], item_ids[rows:]
        if self.accelerator.num_processes > 1:
            queries, targets, negatives = (self._gathered(part) for part in (queries, targets, negatives))
            target_ids = self.accelerator.gather(target_ids)
            negative_ids = self.accelerator.gather(negative_ids)
        ids = torch.cat([target_ids, negative_ids])
        return info_nce(
            queries,
            torch.cat([targets, negatives]),
            ids,
            torch.arange(len(queries), device=queries.device),
            self._recipe.temperature,
            None if self._log_q is None else self._log_q.to(ids.device)[ids],
            self._recipe.mask_duplicates,
            None if self._recipe.negatives == "batch" else self._recipe.negatives,
        )

    def _gathered(self, part: torch.Tensor) -> torch.Tensor:
        """Vectors of all processes in order; those of this process keep their gradient."""
        if not len(part):
            return part
        parts = list(self.accelerator.gather(part.detach()[None]))
        parts[self.accelerator.process_index] = part
        return torch.cat(parts)

    def _uniform(self) -> np.ndarray:
        """This process's share of the batch's uniform negatives; a function of seed, phase and step only."""
        rng = stream(self._seed, self._phase, "uniform negatives", self.state.global_step)
        drawn = rng.integers(0, len(self._pairs.item_texts), self._recipe.uniform_negatives)
        share = len(drawn) // self.accelerator.num_processes
        return drawn[self.accelerator.process_index * share :][:share]

    def _embed(self, model: Any, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors float32 ``[T, D]``."""
        plain = self.accelerator.unwrap_model(model)
        parts = []
        # Texts are sorted by length, so small forward passes have little padding.
        for start in range(0, len(texts), GROUP):
            with self.compute_loss_context_manager():
                parts.append(unit_vectors(plain, texts[start : start + GROUP], forward=model))
        return torch.cat(parts)

    def divisible(self) -> None:
        """As the base class; also freeze layers that do not affect the embedding (BERT's pooler).

        They would have no optimiser state, without which torch cannot read a checkpoint of sharded weights.
        """
        super().divisible()
        if self.is_fsdp_enabled:
            self._embed(self.model, [self._pairs.texts[0]]).sum().backward()
            for parameter in self.model.parameters():
                parameter.requires_grad_(parameter.grad is not None)
            self.model.zero_grad()

    def validate(self) -> dict[str, float]:
        """Rank the validation sessions with the current model."""
        with self.whole() as model:
            return self._judge(model)

    def _save_best(self, folder: Path) -> None:
        with self.whole() as model:
            if self.accelerator.is_main_process:
                model.save_pretrained(str(folder), create_model_card=False)
