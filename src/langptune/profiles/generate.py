"""Batched generation with one random stream per profile, so that no text depends on which job wrote it.

Sampling is Gumbel-max: the token is ``argmax(logits / temperature + gumbel)``, with Gumbel noise from a generator
seeded by (seed, session, sample). That draws exactly from the softmax, and makes the noise a function of the
profile alone. Batches are formed over all sessions before they are dealt to shards, so the number of shards changes
nothing; the batch size changes padding and thereby rounding, see docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from langptune.randomness import torch_stream
from langptune.thinking import opens_thought, read_reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Profile:
    """One generated profile.

    ids: its token ids, the end token included.
    logprob: sum of the encoder's log-probabilities of its tokens (temperature 1), the end token included.
    finished: the encoder ended it within the limit, and wrote more than reasoning.
    thought: reasoning was taken out of ``text`` (``langptune.thinking``); it is among ``ids``.
    """

    text: str
    ids: list[int]
    finished: bool
    logprob: float
    thought: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids)


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar prompt length, longest first (the first batch shows whether memory suffices)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class _Chooser(LogitsProcessor):
    """Adds each row's own noise, and sums the log-probability of the token that will win the argmax."""

    def __init__(self, seeds: Sequence[int], temperature: float, end_ids: set[int], device: torch.device):
        self._temperature = temperature
        self._ends = torch.tensor(sorted(end_ids), device=device)
        self._generators = [torch_stream(seed, device) for seed in seeds] if temperature else []
        self.logprob = torch.zeros(len(seeds), dtype=torch.float64, device=device)
        self._open = torch.ones(len(seeds), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.float()
        chosen = scores
        if self._temperature:
            noise = torch.empty_like(scores)
            for row, generator in zip(noise, self._generators, strict=True):
                # Some builds draw exact zeros, whose logarithm would let a random token win.
                row.exponential_(generator=generator).clamp_(min=2.0**-25)
            chosen = scores / self._temperature - noise.log()
        token = chosen.argmax(dim=-1, keepdim=True)
        logprob = (scores.gather(1, token) - scores.logsumexp(dim=-1, keepdim=True))[:, 0]
        self.logprob += torch.where(self._open, logprob.double(), 0.0)
        self._open &= ~torch.isin(token[:, 0], self._ends)
        return chosen


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token id that ends a turn.

    The generation config's (Llama-3 has two), the tokenizer's, and the one that the chat template puts after what the
    encoder said: Gemma's ``<end_of_turn>`` need not be among the others.
    """
    ids = model.generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return {i for i in [*ids, tokenizer.eos_token_id, _turn_end(tokenizer)] if i is not None}


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    said = "\u27e6said\u27e7"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).partition(said)[2]
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

    Args:
        prompts: token ids ``[B][*]``, padded here on the left.
        seeds: one per row; unused when greedy.
        max_tokens: longest profile; generation stops as soon as every row has ended.
        temperature: 0 for greedy decoding.
        starts: the beginning of the reply that the prompts' token ids end with. Each text begins with it.
    """
    device = model.device
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    ends = end_tokens(model, tokenizer)
    chooser = _Chooser(seeds, temperature, ends, device)
    config = GenerationConfig(do_sample=False, max_new_tokens=max_tokens, eos_token_id=sorted(ends), pad_token_id=pad)
    # What a model ships (penalties, top-p) must not slip into the comparison: generate() would fill every key that
    # we leave open from the model's own config.
    shipped, model.generation_config = model.generation_config, GenerationConfig()
    try:
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([chooser]),
        )
    finally:
        model.generation_config = shipped
    opened = opens_thought(tokenizer)
    head = tokenizer(starts, add_special_tokens=False).input_ids if starts else []
    profiles = []
    for row, logprob in zip(out[:, width:].tolist(), chooser.logprob.tolist(), strict=True):
        end = next((i for i, token in enumerate(row) if token in ends), None)
        reply = read_reply(tokenizer, [*head, *row], ends, opened)
        kept = row if end is None else row[: end + 1]
        profiles.append(Profile(reply.text, kept, reply.finished, logprob, reply.thought))
    return profiles
