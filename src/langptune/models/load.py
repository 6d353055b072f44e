"""Loads encoders and decoders from materialised folders, on the device and in the dtype that are fastest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from langptune.config.models import DecoderEntry, VerifierEntry
from langptune.errors import UserError
from langptune.models.check import adapter_settings, check_reach
from langptune.prompts import require_chat_template

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Progress bars of loaded tensors hide the progress of the job.
transformers.utils.logging.disable_progress_bar()

_SAFE = {"use_safetensors": True, "weights_only": True}
"""Arguments that a module's config could otherwise override to read pickles, which run code."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(asked: str, device: torch.device) -> torch.dtype:
    """The dtype for ``auto``: bfloat16 if the hardware multiplies it natively, else float16 on GPUs, float32 on CPUs.

    On a CPU with AVX512-BF16 or AMX, bfloat16 is several times faster than float32; on others it is emulated and
    slower (benchmarks/profiles.py measures it).
    """
    if asked != "auto":
        return DTYPES[asked]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a materialised model, which treats special-token strings in texts as plain text.

    Raises:
        UserError: the model folder is missing, truncated or of another kind.
    """
    from transformers import AutoTokenizer

    check_reach(Path(folder), str(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise _broken(Path(folder), error) from None
    tokenizer.split_special_tokens = True
    return tokenizer


def load_encoder(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode and its tokenizer, left-padded.

    Raises:
        UserError: the model folder is missing, truncated or of another kind, or its tokenizer has no chat template.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    tokenizer.split_special_tokens = False  # langptune.prompts decides this for each text
    require_chat_template(tokenizer, str(folder))
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise _broken(folder, error) from None
    if report["missing_keys"]:
        # transformers would initialise them at random and continue.
        raise UserError(
            f"{folder}: {len(report['missing_keys'])} weights are missing, first "
            f"'{sorted(report['missing_keys'])[0]}'; the files are incomplete: delete the folder and rerun the "
            "prefetch rule"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return model.to(device).eval(), tokenizer


def load_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The encoder with a trained adapter (PEFT), in evaluation mode.

    The adapter is not merged: the sum of a bfloat16 weight and a small change would be rounded, which changes the
    policy. The adapter stays in float32, so run the model under autocast if the model has another dtype.

    Raises:
        UserError: the adapter is missing, truncated, or of another model.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    settings = adapter_settings(Path(folder))
    try:
        policy = get_peft_model(model, LoraConfig(**settings))
        # Before the values are loaded: copies of bfloat16 layers would round them.
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        report = set_peft_model_state_dict(policy, load_file(Path(folder) / "adapter_model.safetensors"))
    except Exception as error:
        raise _broken(folder, error) from None
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    if report.unexpected_keys or set(trained) & set(report.missing_keys):
        raise UserError(f"{folder}: not a whole adapter of {type(model).__name__}; delete it and rerun its training")
    policy.requires_grad_(False)
    return policy.eval().get_base_model()


def load_decoder(folder: Path, entry: DecoderEntry, device: torch.device) -> SentenceTransformer:
    """A sentence-transformers model with normalised output, whose tokenizer treats special tokens as plain text.

    It is loaded in float32: ranks of near-equal items should not depend on rounding, and embedders are small. Only the
    registry entry's prefixes are put before a text: the model's own ``default_prompt_name`` is disabled, also in a
    decoder that is trained and saved from here.

    Raises:
        UserError: the model folder is missing, truncated or of another kind.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    check_reach(Path(folder), str(folder))
    # Without these, it asks whether to run the folder's code.
    ours = {"local_files_only": True, "trust_remote_code": False}
    try:
        if (Path(folder) / "modules.json").is_file():
            model = SentenceTransformer(
                str(folder), device=str(device), local_files_only=True, trust_remote_code=False, model_kwargs=_SAFE
            )
        else:
            safe = {"local_files_only": True, "trust_remote_code": False, **_SAFE}
            body = Transformer(str(folder), model_kwargs=safe, processor_kwargs=ours, config_kwargs=ours)
            pooling = Pooling(entry.dimensions, pooling_mode={"last": "lasttoken"}.get(entry.pooling, entry.pooling))
            model = SentenceTransformer(modules=[body, pooling, Normalize()], device=str(device))
    except Exception as error:
        raise _broken(folder, error) from None
    # ``encode`` alone would put this prompt before every text.
    model.default_prompt_name = None
    model.max_seq_length = entry.max_tokens
    model.tokenizer.split_special_tokens = True
    model.tokenizer.padding_side = entry.padding
    if entry.padding == "left":
        model[0].register_forward_hook(_first_position)
    return model.float().eval()


def load_verifier(
    folder: Path, entry: VerifierEntry, device: torch.device, batch_size: int = 32
) -> Callable[[list[tuple[str, str]]], np.ndarray]:
    """A model of natural-language inference, as a function from pairs (premise, hypothesis) to P(entailment) ``[P]``.

    Raises:
        UserError: the folder is missing, truncated or of another kind, or the model has no label for entailment.
    """
    from sentence_transformers import CrossEncoder

    check_reach(Path(folder), str(folder))
    try:
        model = CrossEncoder(
            str(folder),
            device=str(device),
            max_length=entry.max_tokens,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs=_SAFE,
        )
    except Exception as error:
        raise _broken(folder, error) from None
    labels = {str(label).lower(): at for at, label in model.config.id2label.items()}
    if "entailment" not in labels:
        raise UserError(f"{folder}: labels {', '.join(labels)}: none is 'entailment'; choose a model trained on NLI")
    place = int(labels["entailment"])

    def score(pairs: list[tuple[str, str]]) -> np.ndarray:
        logits = model.predict(pairs, batch_size=batch_size, apply_softmax=True, show_progress_bar=False)
        return np.asarray(logits)[:, place]

    return score


def _first_position(_: Any, args: tuple, features: dict[str, torch.Tensor]) -> None:
    """Make pooling ``cls`` use the first position even if it is padding, which pooling would skip by itself."""
    features["cls_token_embeddings"] = features["token_embeddings"][:, 0]


def _broken(folder: Path, error: Exception) -> UserError:
    text = " ".join(str(error).split())[:200]
    return UserError(
        f"model folder {folder}: cannot be loaded ({type(error).__name__}: {text}); the files are truncated or not a "
        "model of this kind: delete the folder and rerun the prefetch rule"
    )
