"""The encoder as a policy: its trainable weights, and the log-probabilities of its profiles.

The trainable weights are a PEFT adapter: LoRA, or copies of whole layers (``modules_to_save``). So the initial policy
is the same model with the adapter disabled, and the result is a plain adapter folder that ``peft`` loads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file

from langptune.config.recipes import Trained
from langptune.errors import UserError
from langptune.models.logprobs import chosen_logprobs
from langptune.models.packed import NOBODY, as_mask, only_at, packs, visible
from langptune.provenance import write_json
from langptune.reading import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The transformer blocks of a causal language model.

    Raises:
        UserError: the architecture does not have its blocks in the same place as Llama, Gemma, Qwen and similar models.
    """
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise UserError(f"{type(model).__name__}: has no 'layers'; choose lora_rank without last_layers for it")
    return layers


def adapter_config(model: PreTrainedModel, trained: Trained) -> LoraConfig:
    """The PEFT configuration of a recipe's trainable weights. Dropout is 0: it would make pi_theta and pi_t differ.

    Raises:
        UserError: the model has fewer layers, or lacks a module.
    """
    total = model.config.get_text_config().num_hidden_layers
    last = trained.last_layers
    if last is not None and last > total:
        raise UserError(f"train.last_layers: {last}, but {type(model).__name__} has {total} layers")
    if trained.lora_rank is None:
        return LoraConfig(
            target_modules=DUMMY_TARGET_MODULES,
            modules_to_save=[f"model.layers.{layer}" for layer in range(total - last, total)],
            task_type="CAUSAL_LM",
        )
    ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if missing := [name for name in trained.modules if name not in ends]:
        raise UserError(f"train.modules: {type(model).__name__} has no module '{missing[0]}'")
    return LoraConfig(
        r=trained.lora_rank,
        lora_alpha=trained.lora_alpha,
        lora_dropout=0.0,
        target_modules=_targets(trained, total),
        task_type="CAUSAL_LM",
    )


def _targets(trained: Trained, total: int) -> list[str] | str:
    if trained.last_layers is None:
        return list(trained.modules)
    # PEFT's layers_to_transform would exclude lm_head.
    layers = "|".join(str(layer) for layer in range(total - trained.last_layers, total))
    inner = "|".join(name for name in trained.modules if name != "lm_head")
    return rf".*\.layers\.({layers})\..*\.({inner})" + (r"|.*lm_head" if "lm_head" in trained.modules else "")


def first_trained_layer(trained: Trained, model: PreTrainedModel) -> int:
    """The number of frozen lower layers."""
    return 0 if trained.last_layers is None else model.config.get_text_config().num_hidden_layers - trained.last_layers


def start_from(policy: PeftModel, start: Path | None) -> None:
    """Convert a policy's trainable weights to float32, and load the values of an earlier adapter.

    Raises:
        UserError: the adapter in ``start`` has other weights.
    """
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if start is None:
        return
    weights = load_file(Path(start) / "adapter_model.safetensors")
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    try:
        report = set_peft_model_state_dict(policy, weights)
        fits = not report.unexpected_keys and trained == sum(tensor.numel() for tensor in weights.values())
    except RuntimeError:
        fits = False
    if not fits:
        raise UserError(
            f"{start}: an adapter of other weights than this recipe trains; every reinforcement recipe of a method "
            "must have the same 'train'"
        )


def save_adapter(policy: PeftModel, folder: Path) -> None:
    """Write a plain PEFT adapter folder; the same weights give the same bytes."""
    # PEFT would add the whole embedding if lm_head, tied to it, has LoRA.
    policy.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    path = Path(folder) / "adapter_config.json"
    config = read_json(path)
    # PEFT writes sets in hash order, which differs between processes.
    write_json(path, {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()})
    (Path(folder) / "README.md").unlink(missing_ok=True)


@dataclass(frozen=True)
class Row:
    """A prompt and its profiles that are computed in one row (``langptune.models.packed``).

    prompt: token ids.
    profiles: token ids ``[k][*]``, none empty.
    numbers: indices of the profiles in the batch.
    """

    prompt: list[int]
    profiles: list[list[int]]
    numbers: list[int]

    @property
    def width(self) -> int:
        """Number of input tokens: the last token of a profile predicts nothing, so it is not an input."""
        return len(self.prompt) + sum(len(profile) - 1 for profile in self.profiles)


def rows_of(model: PreTrainedModel, prompt: list[int], profiles: list[list[int]], first: int) -> list[Row]:
    """Arrange a session's prompt and profiles in the cheapest rows; one row per profile if the model does not pack.

    Per layer a row of L tokens costs about ``12 H^2 L + 2 H L^2`` products (H the hidden size): profiles in one row
    share the prompt, but their masked attention to each other is still computed. So a row has many short profiles, or
    few long ones.

    Args:
        first: index of the session's first profile.
    """
    hidden = model.config.get_text_config().hidden_size

    def split(size: int) -> list[Row]:
        starts = range(0, len(profiles), size)
        return [
            Row(prompt, profiles[at : at + size], list(range(first + at, first + min(at + size, len(profiles)))))
            for at in starts
        ]

    if not packs(model):
        return split(1)
    sizes = {-(-len(profiles) // parts) for parts in range(1, len(profiles) + 1)}
    return min((split(size) for size in sorted(sizes, reverse=True)), key=lambda rows: _cost(rows, hidden))


def _cost(rows: list[Row], hidden: int) -> int:
    return sum(6 * hidden * row.width + row.width**2 for row in rows)


def row_logprobs(
    model: PreTrainedModel, rows: Sequence[Row], temperature: float, forward: Any = None, entropy: bool = False
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Log-probability of each token of each profile, float32 ``[T]`` per profile in the order of the rows.

    Args:
        model: the causal language model, without wrappers of the adapter or of several processes.
        temperature: divides the logits.
        forward: called instead of the model if processes exchange gradients; None: the model itself.
        entropy: whether the entropy is computed.

    Returns:
        The log-probabilities, and the sum of the entropies over all tokens (0 if not computed).
    """
    device, width = model.device, max(row.width for row in rows)
    ids, segments, positions, index, wanted = [], [], [], [], []
    for number, row in enumerate(rows):
        size = len(row.prompt)
        own, owner, at = list(row.prompt), [0] * size, list(range(size))
        for segment, profile in enumerate(row.profiles, 1):
            base = number * width
            index += [base + size - 1, *range(base + len(own), base + len(own) + len(profile) - 1)]
            wanted += profile
            own += profile[:-1]
            owner += [segment] * (len(profile) - 1)
            at += range(size, size + len(profile) - 1)
        pad = width - len(own)
        ids.append(own + [0] * pad)
        segments.append(owner + [NOBODY] * pad)
        positions.append(at + [0] * pad)
    ids, segments, positions = (torch.tensor(value, device=device) for value in (ids, segments, positions))
    if all(len(row.profiles) == 1 for row in rows):
        mask = (segments != NOBODY).long()
    else:
        mask = as_mask(model, visible(segments, positions, segments, positions), positions, positions)
    with only_at(model, torch.tensor(index, device=device)):
        out = (forward or model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    found, spread = chosen_logprobs(out.logits[0], torch.tensor(wanted, device=device), temperature, entropy)
    return list(found.split([len(profile) for row in rows for profile in row.profiles])), spread.sum()


class FrozenTrunk:
    """Caches the output of the frozen layers below the first trained one, for further passes over the same rows.

    Only the hidden state that enters the first trained layer is stored. During replay the lower layers return their
    input unchanged, and the stored state replaces it at the first trained layer; everything else (masks, rotary
    embeddings) is computed by the model as usual.
    """

    def __init__(self, model: PreTrainedModel, cut: int):
        """``cut``: the number of frozen lower layers."""
        layers = decoder_layers(model)
        self._frozen, self._first = list(layers[:cut]), layers[cut]

    @contextlib.contextmanager
    def recording(self, store: list[torch.Tensor]) -> Iterator[None]:
        """Append the hidden states ``[B, L, H]`` of each forward pass to ``store``."""

        def keep(_: Any, args: tuple, kwargs: dict) -> None:
            store.append((args[0] if args else kwargs["hidden_states"]).detach())

        handle = self._first.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def replaying(self, hidden: torch.Tensor) -> Iterator[None]:
        """Forward passes start from ``hidden`` at the first trained layer."""

        def swap(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        forwards = [layer.forward for layer in self._frozen]
        for layer in self._frozen:
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        handle = self._first.register_forward_pre_hook(swap, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            for layer, forward in zip(self._frozen, forwards, strict=True):
                layer.forward = forward
