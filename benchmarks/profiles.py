"""Profile generation against a plain ``transformers`` loop on the same prompts, in one process.

    python benchmarks/profiles.py [--prompts 64] [--tokens 32] [--batch 16] [--float32]
    python benchmarks/profiles.py --prompts 8 --samples 8 --temperature 0.8 --batch 64 \\
        --prompt movies-sentence --items 5

With a temperature the procedure before prompts were shared (``former.py``) is timed too. Prints ratios (above 1: ours
is faster) and writes benchmarks/out/profiles.json. Prompts are real MovieLens-100K histories, of 1 to 40 items unless
`--items` says how many, in session order. Needs `make prefetch` (results/models/smollm2-135m).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from former import write

from langptune.config.datasets import DatasetEntry
from langptune.config.prompts import Prompt
from langptune.data import protocols, readers
from langptune.models.load import load_encoder, pick_device, pick_dtype
from langptune.profiles.generate import end_tokens, generate_batch, plan_batches
from langptune.prompts import PromptWriter

ROOT = Path(__file__).resolve().parents[1]


def real_prompts(tokenizer, args: argparse.Namespace) -> list[list[int]]:
    """Token ids of the first test sessions' prompts, each as often as it has samples."""
    entry = DatasetEntry.model_validate(yaml.safe_load((ROOT / "config/datasets.yaml").read_text())["ml-100k"])
    done = protocols.prepare(readers.read(entry, "ml-100k"), entry, "ml-100k")
    prompt = Prompt.model_validate(yaml.safe_load((ROOT / "config/prompts.yaml").read_text())[args.prompt])
    writer = PromptWriter(prompt, args.prompt, tokenizer, 2048)
    items = done.items.to_dicts()
    lengths = np.random.default_rng(0).integers(1, 41, args.prompts)
    if args.items:
        lengths = np.full(args.prompts, args.items)
    rows = done.sessions.filter(done.sessions["split"] == "test").head(args.prompts).to_dicts()
    histories = [
        [{**items[i], "rating": f"{r:g}"} for i, r in zip(row["history"], row["ratings"], strict=True)][-length:]
        for row, length in zip(rows, lengths, strict=True)
    ]
    return [ids for history in histories for ids in [writer.encode(history, {}).ids] * args.samples]


def plain(model, tokenizer, prompts: list[list[int]], args: argparse.Namespace) -> int:
    """What one would write first: batches in the given order, padded by the tokenizer, ``generate``."""
    made = 0
    how = {"do_sample": True, "temperature": args.temperature, "top_k": 0} if args.temperature else {"do_sample": False}
    for start in range(0, len(prompts), args.batch):
        part = tokenizer.pad({"input_ids": prompts[start : start + args.batch]}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            out = model.generate(**part, **how, max_new_tokens=args.tokens)
        made += len(tokenizer.batch_decode(out[:, part["input_ids"].shape[1] :], skip_special_tokens=True))
    return made


def before(model, tokenizer, prompts: list[list[int]], args: argparse.Namespace) -> int:
    """The library's procedure before prompts were shared: batches of similar length, noise over the vocabulary."""
    made, ends, pad = 0, end_tokens(model, tokenizer), tokenizer.pad_token_id
    for indices in plan_batches([len(p) for p in prompts], args.batch):
        part = [prompts[i] for i in indices]
        made += len(write(model, part, indices, args.tokens, args.temperature, ends, pad))
    return made


def ours(model, tokenizer, prompts: list[list[int]], args: argparse.Namespace) -> int:
    """The library's path: batches of similar length, each prompt once, own stopping and log-probabilities."""
    made = 0
    for indices in plan_batches([len(p) for p in prompts], args.batch):
        part = [prompts[i] for i in indices]
        made += len(generate_batch(model, tokenizer, part, indices, args.tokens, args.temperature))
    return made


def main() -> None:
    """Time each path on the same prompts, once after a warm-up batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=1, help="profiles of each prompt")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompt", default="movies", help="entry of config/prompts.yaml")
    parser.add_argument("--items", type=int, help="history items in a prompt; default: 1 to 40")
    parser.add_argument("--threads", type=int, help="default: torch's own number")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--float32", action="store_true", help="time float32 too (minutes on a CPU)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device()
    found = {"arguments": vars(args), "seconds": {}}
    fast = pick_dtype("auto", device)
    for dtype in dict.fromkeys([fast, torch.float32] if args.float32 else [fast]):
        model, tokenizer = load_encoder(ROOT / "results/models/smollm2-135m", device, dtype)
        prompts = real_prompts(tokenizer, args)
        ours(model, tokenizer, prompts[: args.batch], argparse.Namespace(**{**vars(args), "tokens": 2}))
        for work in (plain, before, ours) if args.temperature else (plain, ours):
            start = time.perf_counter()
            assert work(model, tokenizer, prompts, args) == len(prompts)
            name = f"{work.__name__} {str(dtype).removeprefix('torch.')}"
            found["seconds"][name] = round(time.perf_counter() - start, 2)
            print(f"{name:<16} {found['seconds'][name]:8.2f} s", flush=True)
    seconds, name = found["seconds"], str(fast).removeprefix("torch.")
    for other in ("plain", "before"):
        if f"{other} {name}" in seconds:
            found[f"ours against {other}"] = round(seconds[f"{other} {name}"] / seconds[f"ours {name}"], 2)
    if args.float32 and fast is not torch.float32:
        found[f"{name} against float32"] = round(seconds["ours float32"] / seconds[f"ours {name}"], 2)
    print(json.dumps({key: value for key, value in found.items() if "against" in key}, indent=1))
    out = ROOT / "benchmarks" / "out" / "profiles.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
