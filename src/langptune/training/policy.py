"""The encoder as a policy: which of its weights train, and the log-probabilities of what it wrote.

Whatever trains is a PEFT adapter: LoRA, or copies of whole layers (``modules_to_save``). So the initial policy is the
same model with the adapter switched off, and what is saved is a plain adapter folder that ``peft`` loads.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file

from langptune.config.recipes import Trained
from langptune.errors import UserError
from langptune.provenance import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 1 << 25
"""Logits (positions x vocabulary) whose log-softmax is taken at a time, in float32: 128 MiB."""


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
    config = json.loads(path.read_text(encoding="utf-8"))
    # PEFT writes sets in the order of this process's string hashes.
    write_json(path, {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()})
    (Path(folder) / "README.md").unlink(missing_ok=True)


def token_logprobs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of the last ``keep`` tokens of each row, float32 ``[B, keep]`` each.

    Args:
        input_ids: ``[B, L]``, prompts padded on the left, completions on the right.
        attention_mask: ``[B, L]``. Positions count from the first real token, so padding changes nothing.
        temperature: logits are divided by it.
    """
    positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    # As indices, not as a number: a slice of the hidden states would be copied row by row in the product with the head.
    last = torch.arange(input_ids.shape[1] - keep - 1, input_ids.shape[1], device=input_ids.device)
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions,
        logits_to_keep=last,
        use_cache=False,
    ).logits[:, :-1]
    return chosen_logprobs(logits, input_ids[:, -keep:], temperature)


def chosen_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token, and entropy where it stood, float32 ``[B, L]`` each.

    Args:
        logits: ``[B, L, V]``, as the model itself returns them (Gemma-2 caps them after its head).
        tokens: ``[B, L]``.
    """
    keep = tokens.shape[1]
    rows, vocabulary = logits.shape[0] * keep, logits.shape[-1]
    flat, wanted = logits.reshape(rows, vocabulary), tokens.reshape(rows, 1)
    found, entropies = [], []
    for start in range(0, rows, max(1, CHUNK // vocabulary)):
        end = start + max(1, CHUNK // vocabulary)
        logs = torch.log_softmax(flat[start:end].float() / temperature, dim=-1)
        found.append(logs.gather(1, wanted[start:end])[:, 0])
        with torch.no_grad():
            entropies.append(-(logs.exp() * logs).sum(-1))
    return torch.cat(found).view(-1, keep), torch.cat(entropies).view(-1, keep)


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
