"""One RLSO update against the naive procedure of the public implementation, as its description goes.

    python benchmarks/rlso_update.py [--sessions 4] [--prompt-tokens 1024] [--tokens 512] [--epochs 4]

Same model, sessions, limits, trained weights, and number of profiles; each side in a process of its own. The naive
side pads prompts to the limit, writes every profile to the full length and cuts it afterwards, computes full logits of
all positions in separate passes for policy and reference, and sorts the whole catalogue for the reward. Prints the
ratios (above 1: ours is better) and writes benchmarks/out/rlso_update.json. Needs `make prefetch`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
import yaml

from langptune.config.datasets import DatasetEntry
from langptune.config.recipes import ReinforcementRecipe
from langptune.data import protocols, readers
from langptune.models.load import load_encoder, pick_device, pick_dtype
from langptune.prompts import PromptWriter, encode_sessions

ROOT = Path(__file__).resolve().parents[1]


def setting(args: argparse.Namespace) -> dict:
    """Real sessions, prompts, models and the recipe that both sides train by."""
    from langptune.config.workflow import load
    from langptune.models.load import load_decoder
    from langptune.ranking.decoder import embed_items
    from langptune.ranking.scoring import Scoring
    from langptune.training.reward import Reward, Sessions

    entry = DatasetEntry.model_validate(yaml.safe_load((ROOT / "config/datasets.yaml").read_text())["ml-100k"])
    done = protocols.prepare(readers.read(entry, "ml-100k"), entry, "ml-100k")
    registry = load(yaml.safe_load((ROOT / "config/config.yaml").read_text()), ROOT)
    device = pick_device()
    dtype = pick_dtype("auto", device)
    model, tokenizer = load_encoder(ROOT / "results/models/smollm2-135m", device, dtype)
    decoder = load_decoder(ROOT / "results/models/minilm-l6", registry.models["minilm-l6"], device)
    writer = PromptWriter(registry.prompts["movies"], "movies", tokenizer, args.prompt_tokens)
    rows = done.sessions.filter(pl.col("split") == "train").sample(args.sessions, seed=0).sort("session")
    prompts = [prompt.ids for prompt in encode_sessions(writer, rows, done.items, done.users, 10)]
    recipe = registry.recipes["rlso"].model_copy(
        update={"sessions_per_batch": args.sessions, "epochs": args.epochs, "batches": 1, "kl": 0.1, "micro_batch": 2}
    )
    recipe = ReinforcementRecipe.model_validate(recipe.model_dump())
    vectors, _ = embed_items(decoder, done.items["text"].to_list())
    return {
        "model": model,
        "tokenizer": tokenizer,
        "sessions": Sessions(
            sessions=rows["session"].to_list(),
            prompts=prompts,
            targets=rows["target"].to_list(),
            seen=rows["seen"].to_list(),
            futures=[[target] for target in rows["target"].to_list()],
            histories=rows["history"].to_list(),
        ),
        "reward": Reward(decoder, Scoring(vectors, np.zeros(len(done.items), dtype=np.float32)), recipe=recipe),
        "recipe": recipe,
        "bf16": dtype == torch.bfloat16,
        "tokens": args.tokens,
    }


def ours(told: dict, args: argparse.Namespace) -> dict[str, float]:
    """The library's trainer: one batch, all its passes."""
    from langptune.training.algorithms import ALGORITHMS
    from langptune.training.checkpoints import Checkpoints

    with tempfile.TemporaryDirectory() as folder:
        trainer = ALGORITHMS["rebel"](
            model=told["model"],
            tokenizer=told["tokenizer"],
            train=told["sessions"],
            validation=told["sessions"],
            reward=told["reward"],
            recipe=told["recipe"],
            checkpoints=Checkpoints(Path(folder), {}, print),
            max_tokens=told["tokens"],
            seed=0,
            phase="reinforcement-1",
            bf16=told["bf16"],
            log=lambda line: None,
        )
        trainer.watch._validate = lambda: {"ndcg": 0.0}  # not part of an update
        start = time.perf_counter()
        trainer.run()
        seconds = time.perf_counter() - start
    row = trainer.watch.state["curve"][-1]
    return {
        "seconds": seconds,
        "generate": row["generate_seconds"],
        "log-probs": row["score_seconds"],
        "reward": row["reward_seconds"],
        "update": row["update_seconds"] * args.epochs,
        "mean profile tokens": row["tokens"],
    }


def naive(told: dict, args: argparse.Namespace) -> dict[str, float]:
    """The procedure of the public implementation, from its description."""
    from peft import get_peft_model
    from transformers import GenerationConfig

    from langptune.training.policy import adapter_config, start_from

    recipe, tokenizer, sessions = told["recipe"], told["tokenizer"], told["sessions"]
    policy = get_peft_model(told["model"], adapter_config(told["model"], recipe.train))
    start_from(policy, None)
    optimiser = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad], recipe.learning_rate, eps=recipe.adam_epsilon
    )
    autocast = torch.autocast(policy.device.type, torch.bfloat16, enabled=told["bf16"])
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    prompts = [prompt for prompt in sessions.prompts for _ in range(2)]
    width = args.prompt_tokens
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    parts: dict[str, float] = {}
    begun = mark = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal mark
        now = time.perf_counter()
        parts[name], mark = now - mark, now

    torch.manual_seed(0)
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=args.tokens,
        min_new_tokens=args.tokens,
        pad_token_id=pad,
        eos_token_id=end,
    )
    with torch.no_grad(), autocast:
        out = policy.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    completions = out[:, width:]
    ended = completions == end
    first = torch.where(ended.any(1), ended.int().argmax(1), args.tokens - 1)
    kept = (torch.arange(args.tokens, device=out.device)[None] <= first[:, None]).long()
    full = torch.cat([mask, kept], 1)
    lap("generate")

    def logps() -> torch.Tensor:
        with autocast:
            logits = policy(input_ids=out, attention_mask=full, use_cache=False).logits[:, :-1]
        logs = torch.log_softmax(logits.float(), -1).gather(2, out[:, 1:, None])[:, :, 0]
        return (logs[:, -args.tokens :] * kept).sum(1)

    with torch.no_grad():
        old = logps()
        with policy.disable_adapter():
            reference = logps()
    lap("log-probs")
    texts = [
        tokenizer.decode(row[: int(stop) + 1], skip_special_tokens=True).strip()
        for row, stop in zip(completions, first, strict=True)
    ]
    reward = told["reward"]
    vectors, row_of_item = reward._vectors, reward._row_of_item
    values = []
    for at, text in enumerate(texts):
        query = reward._decoder.encode(
            [text], normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        )
        scores = (query @ vectors.T)[0][row_of_item]
        scores[torch.tensor(sessions.seen[at // 2])] = -2.0
        order = torch.argsort(scores, descending=True)
        rank = int((order == sessions.targets[at // 2]).nonzero()) + 1
        values.append(1 / np.log2(1 + rank))
    values = torch.tensor(values) * ended.any(1).float() - recipe.kl * (old - reference)
    values = (values - values.mean()) / (values.std() + 1e-8)
    lap("reward")
    for _ in range(recipe.epochs):
        change = logps() - old
        loss = ((change[0::2] - change[1::2] - recipe.eta * (values[0::2] - values[1::2])) ** 2).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    lap("update")
    return {"seconds": time.perf_counter() - begun, **parts, "mean profile tokens": float(kept.sum(1).float().mean())}


def main() -> None:
    """Run both sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--side", choices=["ours", "naive"], help="run one side and print its JSON")
    args = parser.parse_args()
    if args.side:
        found = {"ours": ours, "naive": naive}[args.side](setting(args), args)
        found["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("RESULT " + json.dumps({key: round(value, 2) for key, value in found.items()}))
        return
    results = {}
    for side in ("ours", "naive"):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        results[side] = json.loads(line.removeprefix("RESULT "))
        print(f"{side:<6}", results[side], flush=True)
    results["times faster"] = round(results["naive"]["seconds"] / results["ours"]["seconds"], 2)
    results["times less memory"] = round(results["naive"]["peak_memory_mb"] / results["ours"]["peak_memory_mb"], 2)
    print("times faster:", results["times faster"], " times less memory:", results["times less memory"])
    out = ROOT / "benchmarks" / "out" / "rlso_update.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"arguments": vars(args), **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
