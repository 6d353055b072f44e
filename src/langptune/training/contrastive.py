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

With an ``anchor`` a the loss has one more term, in which v are the vectors of the texts, v0 their vectors by the
decoder before the phase, and T the edited texts of the batch, or all its texts if none is edited::

    a * mean over t in T of (1 - cos(v(t), v0(t)))
"""

from __future__ import annotations

import copy
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
from langptune.training.edits import Edits
from langptune.training.trainer import Resumable, row_order, training_arguments
from langptune.training.watch import Watch

GROUP = 64
"""Number of texts per forward pass."""

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Kind:
    """Consecutive rows of one kind.

    name: names the random stream of their order.
    rows: their number.
    share: their share of the rows of every batch.
    """

    name: str
    rows: int
    share: float


@dataclass(frozen=True)
class Pairs:
    """Training data of the decoder: rows of one text and one target item, then rows whose texts are edited.

    texts: with the decoder's query prefix; accessed one by one, so they may be computed lazily.
    targets: int64 ``[R]``, of all rows.
    item_texts: texts of the whole catalogue, with the decoder's item prefix.
    kinds: the kinds of rows in their order; empty: all rows are of one kind.
    edits: makes the texts of the edited rows; None: there are none.
    edited: int64 ``[R - number of texts]``, the row whose text an edited row edits.
    """

    texts: Sequence[str]
    targets: np.ndarray
    item_texts: list[str]
    kinds: tuple[Kind, ...] = ()
    edits: Edits | None = None
    edited: np.ndarray | None = None

    def is_edited(self, rows: np.ndarray) -> np.ndarray:
        """bool ``[B]``, whether the text of each row is edited."""
        return rows >= len(self.texts)

    def text(self, row: int, rng: Callable[[], np.random.Generator]) -> str:
        """The text of a row; ``rng`` is called for the generator of an edit."""
        if row < len(self.texts):
            return self.texts[row]
        assert self.edits is not None and self.edited is not None
        return self.edits.text(int(self.edited[row - len(self.texts)]), rng())


def with_edits(pairs: Pairs, edits: Edits, share: float) -> Pairs:
    """The pairs with edited rows: of each kind, all rows that admit an edit, with ``share`` of the kind's share.

    A kind without such a row has no edited rows and keeps its share.

    Args:
        pairs: without edited rows, but with ``kinds``.
        share: in (0, 1).

    Raises:
        UserError: no row admits an edit.
    """
    admitted = edits.admitted()
    if not len(admitted):
        raise UserError("edits: no text admits one of these edits; name others in `edits`, or set edited_share to 0")
    plain, made, first = [], [], 0
    for kind in pairs.kinds:
        rows = int(((admitted >= first) & (admitted < first + kind.rows)).sum())
        first += kind.rows
        plain.append(Kind(kind.name, kind.rows, kind.share * (1 - share) if rows else kind.share))
        made += [Kind(f"edited {kind.name}", rows, kind.share * share)] if rows else []
    targets = np.concatenate([pairs.targets, pairs.targets[admitted]])
    return Pairs(pairs.texts, targets, pairs.item_texts, (*plain, *made), edits, admitted)


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


def mixed_order(kinds: Sequence[Kind], needed: int, seed: int, phase: str) -> np.ndarray:
    """int64 ``[needed]``: rows for all batches, the kinds interleaved by their shares.

    Each kind has the order of ``row_order``. Its rows are spread evenly over the places that later kinds leave free: of
    two kinds every batch, and every group of rows in it, has both shares to within one row; of more, the last kind's.
    """
    out = np.empty(needed, dtype=np.int64)
    free, share = np.arange(needed), 1.0
    first = sum(kind.rows for kind in kinds)
    for at, kind in reversed(list(enumerate(kinds))):
        first -= kind.rows
        own = np.ones(len(free), dtype=bool)
        if at:
            own = np.diff(np.floor(np.arange(len(free) + 1) * (kind.share / share)).astype(np.int64)) == 1
        if own.any():
            out[free[own]] = first + row_order(kind.rows, int(own.sum()), seed, f"{phase} {kind.name}")
        free, share = free[~own], share - kind.share
    return out


def row_weights(kinds: Sequence[Kind]) -> np.ndarray:
    """float64 ``[R]``: relative frequency of each row of several kinds, with mean 1."""
    rows = sum(kind.rows for kind in kinds)
    return np.repeat([kind.share * rows / kind.rows for kind in kinds], [kind.rows for kind in kinds])


class _Places(Dataset):
    """The places in the order of the rows, for all batches."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


class ContrastiveTrainer(Resumable, Trainer):
    """Trains a sentence-transformers model on ``Pairs`` by a contrastive recipe.

    order: int64, the row of each place, for all batches.
    """

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
        # Copied before anything wraps the model. A resumed job loads the same model before its checkpoint.
        self._start = copy.deepcopy(model).requires_grad_(False).eval() if recipe.anchor else None
        self.order = self._order(pairs, recipe, seed, phase)
        # With dropout, the two embeddings of a text would differ, and the result would depend on the micro-batch.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=_Places(len(self.order)),
            data_collator=lambda places: {"places": torch.tensor(places)},
        )
        self._pairs, self._recipe, self._seed, self._phase = pairs, recipe, seed, phase
        self._log_q = None
        if recipe.popularity_correction:
            values = log_frequency(
                pairs.targets,
                len(pairs.item_texts),
                recipe.rivals,
                recipe.uniform_negatives,
                row_weights(pairs.kinds) if pairs.kinds else None,
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
        if not pairs.kinds:
            return row_order(len(pairs.targets), needed, seed, phase)
        return mixed_order(pairs.kinds, needed, seed, phase)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return inputs  # places in the order, used on the CPU

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the inputs are places in the order of the rows."""
        return 0

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None) -> Any:
        """Compute the gradients of one batch, independent of micro-batch and number of processes."""
        model.train()
        places = inputs["places"].numpy()
        loss, distance = self.fitting(lambda: self._backward(model, places), len(places))
        measured = {} if distance is None else {"distance": float(distance)}
        self.watch.record(loss=float(loss), **measured, learning_rate=self._get_learning_rate())
        return loss

    def text(self, place: int) -> str:
        """The text of the row at a place of the order; an edit depends on seed, phase and place only."""
        return self._pairs.text(int(self.order[place]), lambda: stream(self._seed, self._phase, "edits", place))

    def _backward(self, model: Any, places: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The batch's loss, and its distance to the start (None without an anchor)."""
        device = self.accelerator.device
        rows = self.order[places]
        targets = self._pairs.targets[rows]
        negatives = self._uniform()
        items = np.concatenate([targets, negatives])
        queries = [self.text(place) for place in places.tolist()]
        anchors = None if self._start is None else self._anchors(queries, self._pairs.is_edited(rows))
        texts = np.array([*queries, *(self._pairs.item_texts[item] for item in items)])
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
        own = vectors[at[: len(rows)]]
        loss, distance = self._loss(own, vectors[at[len(rows) :]], torch.as_tensor(items, device=device)), None
        if anchors is not None:
            distance = self._distance(own, *anchors)
            loss, distance = loss + self._recipe.anchor * distance, distance.detach()
        # Every process computes the loss of the whole batch, with gradients of its own rows only. DDP averages
        # gradients over processes, so the loss is multiplied by their number.
        scaled = loss * self.accelerator.num_processes
        if len(chunks) == 1:
            self.accelerator.backward(scaled)
            return loss.detach(), distance
        (gradient,) = torch.autograd.grad(scaled, vectors)
        start = 0
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            with self.synchronised(model, last):
                part = self._embed(model, texts[chunk])
                self.accelerator.backward((part * gradient[start : start + len(chunk)]).sum())
            start += len(chunk)
        return loss.detach(), distance

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

    def _anchors(self, texts: list[str], edited: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of this process's texts before the phase ``[B, D]``, and whether each is edited, bool ``[B]``."""
        self._start.to(self.accelerator.device)
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = [order[start : start + self._micro] for start in range(0, len(order), self._micro)]
        with torch.no_grad():
            found = torch.cat([self._embed(self._start, [texts[at] for at in part]) for part in parts])
        back = torch.as_tensor(np.argsort(order, kind="stable"), device=found.device)
        return found[back], torch.as_tensor(edited, device=found.device)

    def _distance(self, queries: torch.Tensor, before: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
        """Mean of 1 - cos to the vectors before the phase, over the edited texts of the whole batch, or all its texts.

        Args:
            queries, before: unit vectors ``[B, D]`` of this process's texts.
            edited: bool ``[B]``.
        """
        if self.accelerator.num_processes > 1:
            queries, before = self._gathered(queries), self.accelerator.gather(before)
            edited = self.accelerator.gather(edited.long()).bool()  # not every backend gathers truth values
        distances = 1 - (queries * before).sum(dim=1)
        return (distances[edited] if edited.any() else distances).mean()

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
