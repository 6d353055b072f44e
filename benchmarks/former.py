"""The procedure before prompts were shared: what benchmarks compare with.

Generation by ``generate()`` with Gumbel noise over the vocabulary, every profile computing its own prompt;
log-probabilities of one row a profile, left-padded prompts, an extra pass for log pi_t.
"""

from __future__ import annotations

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from langptune.randomness import torch_stream


class Gumbel(LogitsProcessor):
    """Adds each row's own noise."""

    def __init__(self, seeds: list[int], temperature: float):
        self._temperature = temperature
        self._generators = [torch_stream(seed, torch.device("cpu")) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores / temperature`` plus Gumbel noise, float32 ``[B, V]``."""
        scores = scores.float()
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator).clamp_(min=2.0**-25)
        return scores / self._temperature - noise.log()


@torch.inference_mode()
def write(model, prompts: list[list[int]], seeds: list[int], tokens: int, temperature: float, ends: set[int], pad: int):
    """Token ids of one profile a prompt, the end token included."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=sorted(ends), pad_token_id=pad)
    noise = LogitsProcessorList([Gumbel(seeds, temperature)] if temperature else [])
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=noise)
    profiles = []
    for row in out[:, width:].tolist():
        end = next((at for at, token in enumerate(row) if token in ends), len(row) - 1)
        profiles.append(row[: end + 1])
    return profiles


def logprobs(model, prompts: list[list[int]], profiles: list[list[int]], temperature: float, pad: int) -> torch.Tensor:
    """Sum of the log-probabilities of each profile, float32 ``[B]``."""
    left, right = max(map(len, prompts)), max(map(len, profiles))
    both = list(zip(prompts, profiles, strict=True))
    ids = torch.tensor([[pad] * (left - len(a)) + a + b + [pad] * (right - len(b)) for a, b in both])
    real = [[0] * (left - len(a)) + [1] * (len(a) + len(b)) + [0] * (right - len(b)) for a, b in both]
    mask = torch.tensor(real)
    kept = torch.arange(left - 1, left + right)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=kept,
        use_cache=False,
    ).logits[:, :-1]
    logs = torch.log_softmax(logits.float() / temperature, -1).gather(2, ids[:, left:, None])[:, :, 0]
    return (logs * mask[:, left:]).sum(1)
