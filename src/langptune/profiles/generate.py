"""Batched generation with one random stream per profile, so that no text depends on the job that wrote it.

A token is drawn by inverting the distribution function: it is the first token at which the cumulative sum of
``softmax(logits / temperature)`` exceeds a uniform number. The uniform numbers come from a generator seeded by (seed,
session, sample), one number per token, so the randomness is a function of the profile only. Batches are formed over all
sessions before they are assigned to shards, so the number of shards changes nothing; the batch size changes padding and
thereby rounding, see docs/numerics.md.

A prompt is computed once for all its profiles. They are then written side by side in one row
(``langptune.models.packed``), and a finished profile frees its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from langptune.models.packed import NOBODY, as_mask, only_at, packs, visible
from langptune.randomness import torch_stream
from langptune.thinking import opens_thought, read_reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARED = 16
"""Minimum length of a common prefix of a batch's prompts, in tokens, to compute it once for all."""


@dataclass(frozen=True)
class Profile:
    """One generated profile.

    text: the encoder's text, including the given start, without reasoning.
    ids: its token ids, including the end token, without the given start.
    logprob: sum of the encoder's log-probabilities of ``ids`` (temperature 1).
    finished: the encoder ended it within the limit, and wrote more than reasoning.
    thought: reasoning was removed from ``text`` (``langptune.thinking``); ``ids`` contains it.
    """

    text: str
    ids: list[int]
    finished: bool
    logprob: float
    thought: bool = False

    @property
    def tokens(self) -> int:
        """The number of generated tokens."""
        return len(self.ids)


class Reader:
    """Turns generated token ids into profiles."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, starts: str = ""):
        """``starts``: the beginning of the reply that the prompts end with."""
        self.ends = end_tokens(model, tokenizer)
        self._tokenizer, self._opened = tokenizer, opens_thought(tokenizer)
        self._starts = tokenizer(starts, add_special_tokens=False).input_ids if starts else []

    def __call__(self, ids: Sequence[int], logprob: float = 0.0) -> Profile:
        """The profile of generated ids; anything after the end token is ignored."""
        end = next((at for at, token in enumerate(ids) if token in self.ends), None)
        kept = list(ids if end is None else ids[: end + 1])
        reply = read_reply(self._tokenizer, [*self._starts, *kept], self.ends, self._opened)
        return Profile(reply.text, kept, reply.finished, logprob, reply.thought)


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar prompt length, longest first (the first batch then needs the most memory)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token id that ends a turn.

    Those of the generation config (Llama-3 has two), that of the tokenizer, and the token that the chat template puts
    after a reply: Gemma's ``<end_of_turn>`` may not be among the others.
    """
    ids = model.generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return {i for i in [*ids, tokenizer.eos_token_id, _turn_end(tokenizer)] if i is not None}


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    reply = "\u27e6said\u27e7"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": reply}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).partition(reply)[2]
    ids = tokenizer(after.strip(), add_special_tokens=False, split_special_tokens=False).input_ids
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


@torch.inference_mode()
def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    max_tokens: int,
    temperature: float,
    starts: str = "",
) -> list[Profile]:
    """Profiles for a batch of prompts.

    The generation settings that a model ships (penalties, top-p) are ignored: they would confound the comparison.

    Args:
        prompts: token ids ``[B][*]``; equal prompts are computed once.
        seeds: one per row; unused when greedy.
        max_tokens: limit on a profile; generation stops as soon as every row has ended.
        temperature: 0 for greedy decoding.
        starts: the beginning of the reply, with which the prompts' token ids end and each text begins.
    """
    device = model.device
    read = Reader(model, tokenizer, starts)
    ends = torch.tensor(sorted(read.ends), device=device)
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    number = {prompt: at for at, prompt in enumerate(unique)}
    place = np.array([number[tuple(prompt)] for prompt in prompts])
    cache = DynamicCache(config=model.config)
    plain = bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
    writer = (_SideBySide if plain and packs(model) else _RowByRow)(model, cache, unique, place, max_tokens)
    uniform = torch.zeros(len(prompts), max_tokens)
    if temperature:
        # On the CPU, because the numbers of a stream must be the same on every device.
        for row, seed in zip(uniform, seeds, strict=True):
            row.uniform_(generator=torch_stream(seed, torch.device("cpu")))
    uniform = uniform.to(device)

    written = torch.full((len(prompts), max_tokens), int(ends[0]), device=device)
    logprobs = torch.zeros(len(prompts), dtype=torch.float64, device=device)
    going = torch.arange(len(prompts), device=device)
    logits = writer.begin()
    for step in range(max_tokens):
        tokens, logprob = choose(logits.float(), uniform[going, step], temperature)
        written[going, step] = tokens
        logprobs[going] += logprob
        still = ~torch.isin(tokens, ends)
        going, tokens = going[still], tokens[still]
        if step + 1 == max_tokens or not len(going):
            break
        logits = writer.step(going, tokens)
    # A row that ended is padded with end tokens, and is read up to the first.
    return [read(ids, logprob) for ids, logprob in zip(written.tolist(), logprobs.tolist(), strict=True)]


def choose(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row, int ``[B]``, and its log-probability at temperature 1, float32 ``[B]``.

    Args:
        logits: float32 ``[B, V]``.
        uniform: float32 ``[B]`` in [0, 1), multiples of 2^-24; unused when greedy.
        temperature: 0 for the likeliest token.
    """
    if not temperature:
        tokens = logits.argmax(-1, keepdim=True)
    else:
        # The cumulative sum is rounded to float32: the error of a token's probability is at most about 1e-7.
        below = (logits / temperature).softmax(-1).cumsum_(-1)
        # The product is smaller than the total, so a token of probability 0 is never drawn.
        tokens = torch.searchsorted(below, (uniform * below[:, -1])[:, None], right=True)
    logprobs = logits.gather(1, tokens)[:, 0] - logits.logsumexp(-1)
    return tokens[:, 0], logprobs


class _Room(DynamicLayer):
    """A cache layer that is allocated for all future tokens, so that no step copies it."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int):
        """``keys`` and ``values``: ``[B, H, L, D]``; ``room``: number of additional positions."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self._used = keys.shape[2]
        self.keys, self.values = (self._grown(part, room) for part in (keys, values))

    def _grown(self, part: torch.Tensor, room: int) -> torch.Tensor:
        out = part.new_empty(*part.shape[:2], part.shape[2] + room, part.shape[3])
        out[:, :, : self._used] = part
        return out

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, self._used = self._used, self._used + key_states.shape[2]
        self.keys[:, :, start : self._used] = key_states
        self.values[:, :, start : self._used] = value_states
        return self.keys[:, :, : self._used], self.values[:, :, : self._used]

    def get_seq_length(self) -> int:
        return self._used


class _Writer:
    """Base of the two writers, which generate token by token."""

    def __init__(
        self, model: PreTrainedModel, cache: DynamicCache, prompts: list[tuple[int, ...]], place: np.ndarray, limit: int
    ):
        """``place`` int ``[B]``: the prompt of each profile; ``limit``: limit on a profile in tokens."""
        self._model, self._cache, self._prompts, self._limit = model, cache, prompts, limit
        self._place = torch.tensor(place, device=model.device)
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self._step = 0

    def _left_padded(self, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask ``[P, L]`` of the prompts from token ``first`` on."""
        rest = [prompt[first:] for prompt in self._prompts]
        width = max(map(len, rest))
        ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in rest]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in rest]
        return torch.tensor(ids, device=self._model.device), torch.tensor(mask, device=self._model.device)


class _SideBySide(_Writer):
    """Writes the profiles of a prompt in one row: the prompt's keys and values are stored once and read once a step."""

    def begin(self) -> torch.Tensor:
        """Logits of each profile's first token ``[B, V]``."""
        shared = self._shared()
        if shared:
            first = torch.tensor([self._prompts[0][:shared]], device=self._model.device)
            self._model(input_ids=first, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache.batch_repeat_interleave(len(self._prompts))
        ids, mask = self._left_padded(shared)
        mask = torch.cat([mask.new_ones(len(mask), shared), mask], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions[:, shared:],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        most = int(torch.bincount(self._place).max())
        room = most * (self._limit - 1)
        self._cache.layers = [_Room(layer.keys, layer.values, room) for layer in self._cache.layers]
        self._segments = torch.where(mask > 0, 0, NOBODY)
        self._rows = torch.arange(len(self._prompts), device=self._model.device)  # row of the cache of each prompt
        return out.logits[:, -1].index_select(0, self._place)

    def _shared(self) -> int:
        """Length of the prompts' common prefix in tokens; 0 if it is too short to compute it once."""
        least = min(map(len, self._prompts)) - 1  # every prompt's last token is computed, for its logits
        same = 0
        while same < least and len({prompt[same] for prompt in self._prompts}) == 1:
            same += 1
        return same if same >= SHARED and len(self._prompts) > 1 else 0

    def step(self, going: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``[G, V]`` after one more token of the profiles that have not ended.

        Args:
            going: int ``[G]``, indices of these profiles, ascending.
            tokens: int ``[G]``.
        """
        place = self._place[going]
        self._drop(place)
        rows = self._rows[place]
        order = rows.argsort(stable=True)
        counts = torch.bincount(rows, minlength=len(self._segments))
        slots = torch.empty_like(rows)
        slots[order] = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows[order]]
        width = int(counts.max())
        # Unused places attend to the prompt, and no position attends to them.
        ids = torch.zeros(len(counts), width, dtype=torch.long, device=rows.device)
        segments = torch.full_like(ids, NOBODY)
        ids[rows, slots], segments[rows, slots] = tokens, going + 1
        positions = torch.zeros_like(ids)
        positions[rows, slots] = self._lengths[place] + self._step
        self._step += 1
        self._segments = torch.cat([self._segments, segments], 1)
        nowhere = torch.zeros_like(self._segments)
        # All cached positions precede the new tokens, so visibility depends on segments only.
        allowed = visible(torch.where(segments == NOBODY, 0, segments), positions, self._segments, nowhere)
        with only_at(self._model, rows * width + slots):
            out = self._model(
                input_ids=ids,
                attention_mask=as_mask(self._model, allowed, positions, nowhere),
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            )
        return out.logits[0]

    def _drop(self, place: torch.Tensor) -> None:
        """Drop the cache rows of prompts whose profiles have all ended, once these are half of the cache."""
        used = self._rows[place].unique()
        if 2 * len(used) > len(self._segments):
            return
        self._cache.batch_select_indices(used)
        self._segments = self._segments[used]
        self._rows[(self._rows[:, None] == used).any(1).logical_not()] = NOBODY
        kept = self._rows != NOBODY
        self._rows[kept] = torch.searchsorted(used, self._rows[kept])


class _RowByRow(_Writer):
    """Writes one row per profile, in the cache of transformers: for sliding windows, states of other kinds, and
    attention that does not support custom masks.
    """

    def begin(self) -> torch.Tensor:
        """Logits of each profile's first token ``[B, V]``."""
        ids, self._mask = self._left_padded(0)
        # Recurrent states cannot be selected by row: each profile then computes its prompt, and no row is dropped.
        self._picks = all(hasattr(layer, "batch_select_indices") for layer in self._cache.layers)
        if not self._picks:
            ids, self._mask = ids[self._place], self._mask[self._place]
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=(self._mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._row = torch.arange(len(self._place), device=self._place.device)  # row of the cache of each profile
        if not self._picks:
            return out.logits[:, -1]
        self._cache.batch_select_indices(self._place)
        self._mask = self._mask[self._place]
        return out.logits[:, -1].index_select(0, self._place)

    def step(self, going: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """As ``_SideBySide.step``."""
        rows = self._row[going]
        if self._picks and 2 * len(going) <= len(self._mask):
            self._cache.batch_select_indices(rows)
            self._mask = self._mask[rows]
            rows = torch.arange(len(going), device=rows.device)
            self._row[going] = rows
        ids = torch.zeros(len(self._mask), 1, dtype=torch.long, device=rows.device)
        ids[rows, 0] = tokens
        positions = self._mask.sum(1, keepdim=True)
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], 1)
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].index_select(0, rows)
