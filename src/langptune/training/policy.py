"""The encoder as a policy: which of its weights train, and the log-probabilities of what it wrote.

Whatever trains is a PEFT adapter: LoRA, or copies of whole layers (``modules_to_save``). So the initial policy is the
same model with the adapter switched off, and what is saved is a plain adapter folder that ``peft`` loads.
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
from langptune.files import read_json
from langptune.models.logprobs import chosen_logprobs
from langptune.models.packed import NOBODY, as_mask, only_at, packs, visible
from langptune.provenance import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The transformer blocks of a causal language model.

    Raises:
        UserError: an architecture whose blocks are not where those of Llama, Gemma, Qwen and their kin are.
    """
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise UserError(f"{type(model).__name__}: has no 'layers'; choose lora_rank without last_layers for it")
    return layers


def adapter_config(model: PreTrainedModel, trained: Trained) -> LoraConfig:
    """The PEFT configuration of what a recipe trains. No dropout: it would break pi_theta against pi_t.

    Raises:
        UserError: more layers than the model has, or modules that it does not have.
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
    # PEFT's layers_to_transform would leave lm_head out.
    layers = "|".join(str(layer) for layer in range(total - trained.last_layers, total))
    inner = "|".join(name for name in trained.modules if name != "lm_head")
    return rf".*\.layers\.({layers})\..*\.({inner})" + (r"|.*lm_head" if "lm_head" in trained.modules else "")


def first_trained_layer(trained: Trained, model: PreTrainedModel) -> int:
    """How many lower layers stay as they are."""
    return 0 if trained.last_layers is None else model.config.get_text_config().num_hidden_layers - trained.last_layers


def start_from(policy: PeftModel, start: Path | None) -> None:
    """Give a policy's trainable weights float32, and the values of an adapter trained before.

    Raises:
        UserError: ``start`` holds an adapter of something else.
    """
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if start is None:
        return
    weights = load_file(Path(start) / "adapter_model.safetensors")
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    try:
        told = set_peft_model_state_dict(policy, weights)
        fits = not told.unexpected_keys and trained == sum(tensor.numel() for tensor in weights.values())
    except RuntimeError:
        fits = False
    if not fits:
        raise UserError(
            f"{start}: an adapter of other weights than this recipe trains; every reinforcement recipe of a method "
            "must have the same 'train'"
        )


def save_adapter(policy: PeftModel, folder: Path) -> None:
    """A plain PEFT adapter folder; the same weights give the same bytes."""
    # PEFT would add the whole embedding where lm_head, tied to it, has LoRA.
    policy.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    path = Path(folder) / "adapter_config.json"
    config = read_json(path)
    # PEFT writes sets in the order of this process's string hashes.
    write_json(path, {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()})
    (Path(folder) / "README.md").unlink(missing_ok=True)


@dataclass(frozen=True)
class Row:
    """A prompt and profiles of it that are computed side by side (``langptune.models.packed``).

    prompt: token ids.
    profiles: token ids ``[k][*]``, none empty.
    numbers: which profile of the batch each one is.
    """

    prompt: list[int]
    profiles: list[list[int]]
    numbers: list[int]

    @property
    def width(self) -> int:
        """Tokens that the model reads: a profile's last one predicts nothing."""
        return len(self.prompt) + sum(len(profile) - 1 for profile in self.profiles)


def rows_of(model: PreTrainedModel, prompt: list[int], profiles: list[list[int]], first: int) -> list[Row]:
    """A session's prompt and profiles in the rows that cost least; one a profile where the model does not pack.

    Per layer a row of L tokens costs about ``12 H^2 L + 2 H L^2`` products (H the hidden size): side by side, profiles
    share the prompt, and pay for looking at one another behind the mask. So short profiles stand in one row, and of
    long ones fewer.

    Args:
        first: the number of the session's first profile.
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
    """Log-probability of each token of each profile, float32 ``[T]`` a profile in the order of the rows.

    Args:
        model: the causal language model, without adapter's or processes' wrapping.
        temperature: logits are divided by it.
        forward: what is called in its place, where gradients travel between processes; None: the model itself.
        entropy: whether the second value is computed.

    Returns:
        The log-probabilities, and the sum of the entropies over all tokens (0 where it is not computed).
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
    """Keeps what the layers below the first trained one compute, for passes over the same rows.

    Only the hidden state that enters the first trained layer is kept. While replaying, the lower layers hand on their
    input unseen, and the kept state takes its place where the trained layers begin: everything between (masks,
    rotary embeddings) is the model's own doing.
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
