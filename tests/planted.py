"""Data with a planted signal, and models small enough to learn it within a test.

Each user has one hidden taste out of ``len(TASTES)``. Item texts name a taste. A history shows the user's taste with
noise. The target is an unseen item of the taste, drawn uniformly. So the best possible ranking puts the unseen items of
the taste first, in any order, and its expected NDCG is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from langptune.language.claims import Titles
from langptune.language.tastes import Tastes

TASTES = ["western", "horror", "musical", "war", "romance", "space", "crime", "cartoon", "sports", "drama"]
PER_TASTE = 16
HISTORY = 5
NOISE = 0.3
WORDS = [*TASTES, "film", "likes", "user", "watched", *(f"n{i}" for i in range(PER_TASTE))]


@dataclass
class Planted:
    """Sessions by split; ``best`` is the expected NDCG of a perfect recommender on the validation sessions."""

    items: list[str]
    history: dict[str, list[list[int]]]
    target: dict[str, list[int]]
    best: float


def planted(seed: int = 0, train: int = 400, val: int = 200) -> Planted:
    rng = np.random.default_rng(seed)
    items = [f"{taste} film n{i}" for taste in TASTES for i in range(PER_TASTE)]
    history, target, best = {}, {}, []
    for split, size in (("train", train), ("val", val)):
        history[split], target[split] = [], []
        for _ in range(size):
            taste = int(rng.integers(len(TASTES)))
            noisy = rng.random(HISTORY) < NOISE
            noisy[rng.permutation(HISTORY)[:3]] = False  # the taste is always the majority
            own = rng.permutation(PER_TASTE) + taste * PER_TASTE
            shown = [int(rng.integers(len(items))) if wild else int(own[i]) for i, wild in enumerate(noisy)]
            left = [item for item in own.tolist() if item not in shown]
            history[split].append(shown)
            target[split].append(int(rng.choice(left)))
            if split == "val":
                best.append(np.mean(1 / np.log2(1 + np.arange(1, len(left) + 1))))
    return Planted(items, history, target, float(np.mean(best)))


def tokenizer(padding: str = "left") -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, and with a chat template."""
    special = ["<pad>", "<unk>", "<end>", "<user>", "<bot>"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    out = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", padding_side=padding
    )
    out.chat_template = (
        "{% for m in messages %}<user> {{ m['content'] }} <end> {% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    return out


def tiny_encoder(seed: int = 0, layers: int = 2, hidden: int = 64) -> LlamaForCausalLM:
    """A Llama with about 100 thousand weights and the vocabulary of ``WORDS``."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def tiny_decoder(seed: int = 0):
    """A sentence-transformers model with about 30 thousand weights and the vocabulary of ``WORDS``."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        tokenizer("right").save_pretrained(folder)
        body = Transformer(folder)
    model = SentenceTransformer(modules=[body, Pooling(32, pooling_mode="mean")], device="cpu")
    model.max_seq_length = 64
    return model.eval()


LLAMA_SHAPE = {
    "vocab_size": 5 + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 4}
KINDS = {
    "llama": (transformers.LlamaConfig, {}),
    "gemma-2": (transformers.Gemma2Config, {**SLIDING, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "qwen-2": (transformers.Qwen2Config, {}),
    "qwen-3, sliding": (transformers.Qwen3Config, {**SLIDING, "use_sliding_window": True, "max_window_layers": 0}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 4}),
}


def model_of(kind: str, seed: int = 0, **changes):
    """A random model of three layers, with attention windows shorter than a row; Gemma-2 caps both kinds of logits."""
    config, fields = KINDS[kind]
    torch.manual_seed(seed)
    attention = "eager" if kind == "gemma-2" else "sdpa"
    made = config(**{**LLAMA_SHAPE, **fields, **changes}, attn_implementation=attention)
    return transformers.AutoModelForCausalLM.from_config(made, attn_implementation=attention).float().eval()


def prompt_ids(data: Planted, split: str, words: PreTrainedTokenizerFast) -> list[list[int]]:
    texts = [" ".join(data.items[item] for item in shown) for shown in data.history[split]]
    return [words(f"<user> watched {text} <end> <bot>").input_ids for text in texts]


def warm_start(model: LlamaForCausalLM, data: Planted, words: PreTrainedTokenizerFast, steps: int = 250) -> None:
    """Train a tiny encoder to write ``likes TASTE``: mostly ``drama`` for any user, sometimes a taste of the history.

    So its greedy profiles say nothing about the user, but sampling sometimes gives the profiles that RLSO has to find.
    """
    rng = np.random.default_rng(1)
    prompts = prompt_ids(data, "train", words)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for _ in range(steps):
        rows = rng.integers(0, len(prompts), 64)
        texts = []
        for row in rows:
            shown = data.items[rng.choice(data.history["train"][row])].split()[0]
            word = "drama" if rng.random() < 0.5 else shown if rng.random() < 0.5 else rng.choice(TASTES)
            texts.append(words(f"likes {word} <end>").input_ids)
        ids = torch.tensor([prompts[row] + text for row, text in zip(rows, texts, strict=True)])
        labels = ids.clone()
        labels[:, : -len(texts[0])] = -100
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()


def sessions_of(data: Planted, split: str, words: PreTrainedTokenizerFast):
    from langptune.training.reward import Sessions

    target, history = data.target[split], data.history[split]
    size = len(target)
    return Sessions(
        list(range(size)), prompt_ids(data, split, words), target, history, [[item] for item in target], history
    )


def scoring(decoder, items: list[str], weight: float = 0.0):
    """The scoring of items by a decoder; popularity is zero for every item."""
    from langptune.ranking.decoder import embed_items
    from langptune.ranking.scoring import Scoring

    return Scoring(embed_items(decoder, items)[0], np.zeros(len(items), dtype=np.float32), weight)


def reinforcement(**changes):
    """A recipe for the tiny encoder."""
    from langptune.config.recipes import ReinforcementRecipe

    fields = {
        "title": "RL",
        "kind": "reinforcement",
        "algorithm": "rebel",
        "learning_rate": 2e-3,
        "batches": 3,
        "sessions_per_batch": 8,
        "epochs": 2,
        "micro_batch": 16,
        "validate_every": 100,
        "checkpoint_every": 1000,
        "precision": "float32",
        "unfinished": "zero",
        "terms": {},
        "train": {"lora_rank": 8, "lora_alpha": 16},
    }
    return ReinforcementRecipe.model_validate({**fields, **changes})


def contrastive(**changes):
    """A recipe for the tiny decoder."""
    from langptune.config.recipes import ContrastiveRecipe

    fields = {
        "title": "CL",
        "kind": "contrastive",
        "learning_rate": 1e-2,
        "batches": 4,
        "batch_size": 16,
        "micro_batch": 64,
        "uniform_negatives": 8,
        "validate_every": 100,
        "checkpoint_every": 1000,
        "precision": "float32",
    }
    return ContrastiveRecipe.model_validate({**fields, **changes})


def tastes(data: Planted) -> Tastes:
    """The planted tastes of the items."""
    has = np.array([[item.split()[0] == taste for taste in sorted(TASTES)] for item in data.items])
    return Tastes(sorted(TASTES), has)


def policy_trainer(
    folder, recipe, data=None, model=None, decoder=None, reward=None, log=None, phase="reinforcement-1", **extra
):
    """A trainer of the tiny encoder on planted data, rewarded by the tiny decoder."""
    from langptune.training.checkpoints import Checkpoints
    from langptune.training.loop import PolicyTrainer
    from langptune.training.reward import Reward

    data, words = data or planted(train=40, val=10), tokenizer()
    if reward is None:
        decoder = decoder or tiny_decoder()
        reward = Reward(decoder, scoring(decoder, data.items), recipe=recipe)
    log, model = log or (lambda line: None), model or tiny_encoder()
    return PolicyTrainer(
        model=model,
        tokenizer=words,
        train=sessions_of(data, "train", words),
        validation=sessions_of(data, "val", words),
        reward=reward,
        recipe=recipe,
        checkpoints=Checkpoints(folder, {"recipe": recipe.model_dump(mode="json")}, log),
        max_tokens=6,
        seed=0,
        phase=phase,
        bf16=model.dtype == torch.bfloat16,
        log=log,
        **extra,
    )


def decoder_trainer(folder, recipe, data=None, model=None, texts=None, log=None, seed=0, phase="contrastive-1"):
    """A trainer of the tiny decoder on planted histories."""
    from langptune.training.checkpoints import Checkpoints
    from langptune.training.contrastive import ContrastiveTrainer, Kind, Pairs, with_edits
    from langptune.training.edits import Edits
    from langptune.training.reward import Reward, validation_metrics

    data, model = data or planted(train=40, val=10), model or tiny_decoder()
    texts = texts or {
        split: [" ".join(data.items[item] for item in shown) for shown in data.history[split]]
        for split in ("train", "val")
    }

    def validate(model):
        training = model.training
        model.eval()
        reward = Reward(model, scoring(model, data.items))
        measured = validation_metrics(reward.ranks(texts["val"], data.target["val"], data.history["val"]))
        model.train(training)
        return measured

    log = log or (lambda line: None)
    checkpoints = Checkpoints(folder, {"recipe": recipe.model_dump(mode="json")}, log)
    pairs = Pairs(texts["train"], np.array(data.target["train"]), data.items)
    if recipe.edited_share:
        pairs = replace(pairs, kinds=(Kind("histories", len(texts["train"]), 1.0),))
        edits = Edits(pairs.texts, pairs.targets, tastes(data), Titles([]), recipe.edits)
        pairs = with_edits(pairs, edits, recipe.edited_share)
    return ContrastiveTrainer(model, pairs, recipe, checkpoints, validate, seed, phase, False, log)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the trainable weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
