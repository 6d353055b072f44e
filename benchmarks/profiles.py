"""Profile generation against a plain ``transformers`` loop on the same prompts, in one process.

    python benchmarks/profiles.py [--prompts 64] [--tokens 32] [--batch 16] [--float32]

Prints ratios (above 1: ours is faster) and writes benchmarks/out/profiles.json. Prompts are real MovieLens-100K
histories of 1 to 40 items, in session order. Needs `make prefetch` (results/models/smollm2-135m).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from langptune.config.datasets import DatasetEntry
from langptune.config.prompts import Prompt
from langptune.data import protocols, readers
from langptune.models.load import load_encoder, pick_device, pick_dtype
from langptune.profiles.generate import generate_batch, plan_batches
from langptune.prompts import PromptWriter

ROOT = Path(__file__).resolve().parents[1]


def real_prompts(tokenizer, count: int) -> list[list[int]]:
    """Token ids of the first ``count`` test sessions' prompts, histories of very different length."""
    entry = DatasetEntry.model_validate(yaml.safe_load((ROOT / "config/datasets.yaml").read_text())["ml-100k"])
    done = protocols.prepare(readers.read(entry, "ml-100k"), entry, "ml-100k")
    prompt = Prompt.model_validate(yaml.safe_load((ROOT / "config/prompts.yaml").read_text())["movies"])
    writer = PromptWriter(prompt, "movies", tokenizer, 2048)
    items = done.items.to_dicts()
    lengths = np.random.default_rng(0).integers(1, 41, count)
    rows = done.sessions.filter(done.sessions["split"] == "test").head(count).to_dicts()
    histories = [
        [{**items[i], "rating": f"{r:g}"} for i, r in zip(row["history"], row["ratings"], strict=True)][-length:]
        for row, length in zip(rows, lengths, strict=True)
    ]
    return [writer.encode(history, {}).ids for history in histories]


def plain(model, tokenizer, prompts: list[list[int]], batch: int, tokens: int) -> int:
    """What one would write first: batches in the given order, padded by the tokenizer, greedy ``generate``."""
    made = 0
    for start in range(0, len(prompts), batch):
        part = tokenizer.pad({"input_ids": prompts[start : start + batch]}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            out = model.generate(**part, do_sample=False, max_new_tokens=tokens)
        made += len(tokenizer.batch_decode(out[:, part["input_ids"].shape[1] :], skip_special_tokens=True))
    return made


def ours(model, tokenizer, prompts: list[list[int]], batch: int, tokens: int) -> int:
    """The library's path: batches of similar length, own stopping and log-probabilities."""
    made = 0
    for indices in plan_batches([len(p) for p in prompts], batch):
        part = [prompts[i] for i in indices]
        made += len(generate_batch(model, tokenizer, part, [0] * len(part), tokens, 0.0))
    return made


def main() -> None:
    """Time each path on the same prompts, once after a warm-up batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--float32", action="store_true", help="time float32 too (minutes on a CPU)")
    args = parser.parse_args()
    device = pick_device()
    found = {"prompts": args.prompts, "tokens": args.tokens, "batch": args.batch, "seconds": {}}
    fast = pick_dtype("auto", device)
    for dtype in dict.fromkeys([fast, torch.float32] if args.float32 else [fast]):
        model, tokenizer = load_encoder(ROOT / "results/models/smollm2-135m", device, dtype)
        prompts = real_prompts(tokenizer, args.prompts)
        ours(model, tokenizer, prompts[: args.batch], args.batch, 2)
        for work in (plain, ours):
            start = time.perf_counter()
            assert work(model, tokenizer, prompts, args.batch, args.tokens) == args.prompts
            name = f"{work.__name__} {str(dtype).removeprefix('torch.')}"
            found["seconds"][name] = round(time.perf_counter() - start, 2)
            print(f"{name:<16} {found['seconds'][name]:8.2f} s", flush=True)
    seconds, name = found["seconds"], str(fast).removeprefix("torch.")
    found["sorted batches against the plain loop"] = round(seconds[f"plain {name}"] / seconds[f"ours {name}"], 2)
    if args.float32 and fast is not torch.float32:
        found[f"{name} against float32"] = round(seconds["ours float32"] / seconds[f"ours {name}"], 2)
    print(json.dumps({key: value for key, value in found.items() if "against" in key}, indent=1))
    out = ROOT / "benchmarks" / "out" / "profiles.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
