"""Tiny stand-ins for the paper's models: same architectures, tokenizers and chat templates, few and random weights.

``write_hub`` writes them in the layout of the Hugging Face hub's cache, at the revisions of ``config/models.yaml``, so
that everything from prefetching on runs as with the real models (``HF_HOME``, ``HF_HUB_OFFLINE=1``). Only their sizes
in the registry differ: ``write_registries`` copies ``config/`` with the stand-ins' ``dimensions`` and ``parameters``; a
config names that folder under ``registries``. Limits (``context``, ``max_tokens``) are unchanged.

``python -m langptune.models.tiny FOLDER`` runs both, into ``FOLDER/hub-home`` and ``FOLDER/registries``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import string
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from langptune.provenance import ROOT
from langptune.randomness import seed_torch

ENCODERS = ("gemma-2b-it", "llama-3-8b-instruct")
DECODER = "mxbai-embed-large-v1"
HIDDEN = 32
LAYERS = 2
SIZES = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": LAYERS}
WORDS = [
    "A user has rated (out of 5.0) and reviewed the following movies and TV shows, oldest first:",
    "A user has rated (out of 5.0) and reviewed the following books, oldest first:",
    "Title: Description: (average rating: 4.5) Category: Price: The user's rating: The user's review: none unknown",
    "Give a high-level summary of the user's preference in detail. user model assistant system",
    "drama comedy western horror musical romance space crime war cartoon quiet loud old new film series story",
]

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_gemma(folder: Path, seed: int = 0) -> Path:
    """A ``GemmaForCausalLM``: BPE with "▁" for spaces and byte fallback, tied embeddings, sharded weights.

    As on the hub, ``<end_of_turn>`` ends a turn in the chat template and is not among the end tokens of
    ``generation_config.json``.
    """
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    letters = [*string.ascii_letters, *string.digits, *".,:()'-", "\n", "▁"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=letters, show_progress=False)
    trained.train_from_iterator(WORDS, trainer)
    state = json.loads(trained.to_str())
    vocab = state["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    state["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    state["pre_tokenizer"]["invert"] = False
    words = Tokenizer.from_str(json.dumps(state))
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    words.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", 2)])
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": GEMMA_TEMPLATE,
        "tokenizer_class": "GemmaTokenizer",
    }
    _write_tokenizer(folder, words, config, special)
    seed_torch(seed)
    model = GemmaForCausalLM(
        GemmaConfig(
            vocab_size=len(vocab),
            **SIZES,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=8192,
        )
    )
    return _write_encoder(folder, model, bos=2, ends=1, pad=0)


def write_llama(folder: Path, seed: int = 0) -> Path:
    """A ``LlamaForCausalLM`` like Llama-3: byte-level BPE, no padding token, two end tokens, untied head."""
    words = Tokenizer(models.BPE(ignore_merges=True))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(LLAMA_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    words.add_special_tokens(special)
    begin = words.token_to_id(special[0])
    words.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                f"{special[0]} $A", f"{special[0]} $A {special[0]} $B", [(special[0], begin)]
            ),
        ]
    )
    config = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "chat_template": LLAMA_TEMPLATE,
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_tokenizer(folder, words, config, special)
    seed_torch(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words.get_vocab_size(),
            **SIZES,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            bos_token_id=begin,
            eos_token_id=begin + 1,
            tie_word_embeddings=False,
        )
    )
    return _write_encoder(folder, model, bos=begin, ends=[begin + 1, words.token_to_id("<|eot_id|>")], pad=None)


def write_mxbai(folder: Path, seed: int = 0) -> Path:
    """A ``BertModel`` with WordPiece and CLS pooling, as sentence-transformers saves it."""
    size = _write_wordpiece(folder)
    seed_torch(seed)
    config = BertConfig(
        vocab_size=size,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=512,
    )
    BertModel(config).save_pretrained(folder)
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"},
    ]
    pooling: dict[str, Any] = {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": True}
    others = ("mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling |= {f"pooling_mode_{other}": False for other in others}
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    _write_json(folder / "1_Pooling" / "config.json", pooling | {"include_prompt": True})
    return folder


def write_verifier(folder: Path, labels: tuple[str, ...], seed: int = 0) -> Path:
    """A ``DebertaV2ForSequenceClassification`` with the output names ``labels``, like verifiers on the hub."""
    size = _write_wordpiece(folder)
    seed_torch(seed)
    config = DebertaV2Config(
        vocab_size=size,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        id2label=dict(enumerate(labels)),
        label2id={label: at for at, label in enumerate(labels)},
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        # With the default range, random weights give the same output for every pair.
        initializer_range=0.5,
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def _write_wordpiece(folder: Path) -> int:
    """Write BERT's tokenizer, and return the size of its vocabulary."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.decoder = decoders.WordPiece()
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words.train_from_iterator(
        WORDS,
        trainers.WordPieceTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False
        ),
    )
    words.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["pad", "unk", "cls", "sep", "mask"]
    config = {f"{name}_token": token for name, token in zip(names, special, strict=True)}
    config |= {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    _write_tokenizer(folder, words, config, special)
    by_id = sorted(words.get_vocab().items(), key=lambda pair: pair[1])
    (folder / "vocab.txt").write_text("\n".join(word for word, _ in by_id) + "\n", encoding="utf-8")
    return len(by_id)


WRITERS = {"gemma-2b-it": write_gemma, "llama-3-8b-instruct": write_llama, DECODER: write_mxbai}


def write_hub(home: Path) -> Path:
    """Write a hub cache with all stand-ins; set ``HF_HOME`` to the returned path, and ``HF_HUB_OFFLINE=1``."""
    registry = yaml.safe_load((ROOT / "config" / "models.yaml").read_text())
    for name, write in WRITERS.items():
        source = registry[name]["source"]
        with tempfile.TemporaryDirectory() as folder:
            into_cache(write(Path(folder)), home / "hub", source["hub"], source["revision"])
    return home


def into_cache(folder: Path, cache: Path, repo: str, revision: str) -> Path:
    """Store a folder as a snapshot in a hub cache: files named by hash in ``blobs``, with relative links to them."""
    base = cache / f"models--{repo.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text(revision)
    (base / "blobs").mkdir()
    snapshot = base / "snapshots" / revision
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = base / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def write_registries(folder: Path) -> Path:
    """Copy ``config/*.yaml`` with the sizes of the stand-ins."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("datasets", "models", "methods", "recipes", "prompts", "judges"):
        shutil.copyfile(ROOT / "config" / f"{name}.yaml", folder / f"{name}.yaml")
    registry = yaml.safe_load((folder / "models.yaml").read_text())
    stood_in = {registry[name]["source"]["hub"] for name in WRITERS}
    for entry in registry.values():
        if entry["source"].get("hub") in stood_in:
            entry["parameters"] = 100_000
            if entry["role"] == "decoder":
                entry["dimensions"] = HIDDEN
    (folder / "models.yaml").write_text(yaml.safe_dump(registry, sort_keys=False))
    return folder


def _write_tokenizer(folder: Path, words: Tokenizer, config: dict[str, Any], special: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "tokenizer.json"))
    facts = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(words.token_to_id(token)): {"content": token, **facts} for token in special}
    _write_json(folder / "tokenizer_config.json", {**config, "added_tokens_decoder": added})
    named = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    _write_json(folder / "special_tokens_map.json", named)


def _write_encoder(folder: Path, model: Any, bos: int, ends: int | list[int], pad: int | None) -> Path:
    model.generation_config.update(bos_token_id=bos, eos_token_id=ends, pad_token_id=pad)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="40KB")
    return folder


def _write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write hub cache and registries into the named folder, and print how to use them; return 2 if it cannot."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m langptune.models.tiny FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    if (folder / "hub-home").exists():
        print(f"error: {folder / 'hub-home'} already exists; name another folder, or remove it", file=sys.stderr)
        return 2
    home, registries = write_hub(folder / "hub-home"), write_registries(folder / "registries")
    print(f"in the shell:  export HF_HOME={shlex.quote(str(home.resolve()))} HF_HUB_OFFLINE=1")
    print(f"in the config: registries: {json.dumps(str(registries.resolve()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
