"""One RLSO update against the procedure before prompts were shared, and against that of the public implementation.

    python benchmarks/rlso_update.py [--sessions 4] [--samples 2] [--prompt-tokens 1024] [--tokens 512] [--epochs 4]
    python benchmarks/rlso_update.py --sessions 8 --samples 8 --temperature 0.8 --tokens 32 --kl 0 --epochs 2 \\
        --prompt movies-sentence --items 5 --micro 32 --naive-sessions 1

Same model, sessions, limits, trained weights, and number of profiles; each side in a process of its own. The former
side (``former.py``) writes every profile behind its own prompt with noise over the vocabulary, and computes one row a
profile. The naive side pads prompts to the limit, writes every profile to the full length and cuts it afterwards,
computes full logits of all positions in separate passes for policy and reference, and sorts the whole catalogue for the
reward; as its cost is linear in the sessions, it may do some of them, and its seconds are multiplied. Prints the ratios
(above 1: ours is better) and writes benchmarks/out/rlso_update.json. Needs `make prefetch`.
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
    from langptune.config.load import load
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
    writer = PromptWriter(registry.prompts[args.prompt], args.prompt, tokenizer, args.prompt_tokens)
    rows = done.sessions.filter(pl.col("split") == "train").sample(args.sessions, seed=0).sort("session")
    prompts = [prompt.ids for prompt in encode_sessions(writer, rows, done.items, done.users, args.items)]
    recipe = registry.recipes["rlso"].model_copy(
        update={
            "sessions_per_batch": args.sessions,
            "samples": args.samples,
            "temperature": args.temperature,
            "epochs": args.epochs,
            "batches": 1,
            "kl": args.kl,
            "micro_batch": args.micro,
            "terms": {},  # of form, which the other sides do not measure
        }
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
    from langptune.training.checkpoints import Checkpoints
    from langptune.training.loop import PolicyTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = PolicyTrainer(
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


def before(told: dict, args: argparse.Namespace) -> dict[str, float]:
    """The library's procedure before prompts were shared."""
    from former import logprobs, write
    from peft import get_peft_model

    from langptune.profiles.generate import Reader
    from langptune.training.algorithms import rebel, standardised
    from langptune.training.policy import FrozenTrunk, adapter_config, first_trained_layer, start_from

    recipe, sessions, pad = told["recipe"], told["sessions"], told["tokenizer"].pad_token_id
    read = Reader(told["model"], told["tokenizer"])
    policy = get_peft_model(told["model"], adapter_config(told["model"], recipe.train), autocast_adapter_dtype=False)
    start_from(policy, None)
    model = policy.get_base_model().eval()
    trunk = FrozenTrunk(model, first_trained_layer(recipe.train, model))
    optimiser = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad], recipe.learning_rate, eps=recipe.adam_epsilon
    )
    autocast = torch.autocast(policy.device.type, torch.bfloat16, enabled=told["bf16"])
    parts: dict[str, float] = {}
    begun = mark = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal mark
        now = time.perf_counter()
        parts[name], mark = now - mark, now

    prompts = [prompt for prompt in sessions.prompts for _ in range(args.samples)]
    with autocast:
        profiles = write(model, prompts, list(range(len(prompts))), args.tokens, recipe.temperature, read.ends, pad)
    lap("generate")
    written = [read(ids) for ids in profiles]
    rows = [at for at in range(args.sessions) for _ in range(args.samples)]
    finished = np.array([profile.finished for profile in written])
    rewards = torch.tensor(told["reward"].columns([p.text for p in written], sessions, rows, finished)["reward"])
    lap("reward")
    chunks = [slice(at, at + args.micro) for at in range(0, len(prompts), args.micro)]

    def found(chunk: slice) -> torch.Tensor:
        with autocast:
            return logprobs(model, prompts[chunk], profiles[chunk], recipe.temperature, pad)

    states, old = [], []
    with torch.no_grad():
        for chunk in chunks:
            with trunk.recording(states):
                old.append(found(chunk))
        if recipe.kl:
            with policy.disable_adapter():
                for number, chunk in enumerate(chunks):
                    with trunk.replaying(states[number]):
                        initial = found(chunk)
                    rewards[chunk] -= recipe.kl * (old[number] - initial).double()
    weights = standardised(rewards.view(-1, args.samples)).flatten().float()
    lap("log-probs")
    for _ in range(args.epochs):
        for number, chunk in enumerate(chunks):
            with trunk.replaying(states[number]):
                change = (found(chunk) - old[number])[:, None]
                loss = rebel.loss(change, torch.ones_like(change), weights[chunk], args.samples, {"eta": recipe.eta})
                (loss * len(change) / len(prompts)).backward()
        optimiser.step()
        optimiser.zero_grad()
    lap("update")
    tokens = float(np.mean([len(ids) for ids in profiles]))
    return {"seconds": time.perf_counter() - begun, **parts, "mean profile tokens": tokens}


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
    prompts = [prompt for prompt in sessions.prompts for _ in range(args.samples)]
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
        temperature=recipe.temperature,
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

    def logps(rows: slice = slice(None)) -> torch.Tensor:
        with autocast:
            logits = policy(input_ids=out[rows], attention_mask=full[rows], use_cache=False).logits[:, :-1]
        logs = torch.log_softmax(logits.float() / recipe.temperature, -1).gather(2, out[rows, 1:, None])[:, :, 0]
        return (logs[:, -args.tokens :] * kept[rows]).sum(1)

    groups = [slice(at, at + args.samples) for at in range(0, len(prompts), args.samples)]  # else memory runs out
    with torch.no_grad():
        old = torch.cat([logps(rows) for rows in groups])
        with policy.disable_adapter():
            reference = torch.cat([logps(rows) for rows in groups])
    lap("log-probs")
    texts = [
        tokenizer.decode(row[: int(stop) + 1], skip_special_tokens=True).strip()
        for row, stop in zip(completions, first, strict=True)
    ]
    reward = told["reward"]
    items = reward._scoring.items
    vectors, row_of_item = torch.from_numpy(items.vectors).to(policy.device), items.row_of_item
    values = []
    for at, text in enumerate(texts):
        query = reward._decoder.encode(
            [text], normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        )
        scores = (query @ vectors.T)[0][row_of_item]
        scores[torch.tensor(sessions.seen[at // args.samples])] = -2.0
        order = torch.argsort(scores, descending=True)
        rank = int((order == sessions.targets[at // args.samples]).nonzero()) + 1
        values.append(1 / np.log2(1 + rank))
    values = torch.tensor(values) * ended.any(1).float() - recipe.kl * (old - reference)
    values = (values - values.mean()) / (values.std() + 1e-8)
    lap("reward")
    for _ in range(recipe.epochs):
        for rows in groups:
            rest = logps(rows) - old[rows] - recipe.eta * values[rows]
            (2 * rest.var() / len(groups)).backward()  # the mean over all pairs
        optimiser.step()
        optimiser.zero_grad()
    lap("update")
    return {"seconds": time.perf_counter() - begun, **parts, "mean profile tokens": float(kept.sum(1).float().mean())}


def main() -> None:
    """Run both sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--micro", type=int, default=2, help="profiles in memory at once; the naive side: a session's")
    parser.add_argument("--prompt", default="movies", help="entry of config/prompts.yaml")
    parser.add_argument("--items", type=int, default=10, help="history items in a prompt")
    parser.add_argument("--naive-sessions", type=int, help="how many sessions the naive side does; default: all")
    parser.add_argument("--threads", type=int, help="default: torch's own number")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--side", choices=["ours", "before", "naive"], help="run one side and print its JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.side:
        times = 1.0
        if args.side == "naive" and args.naive_sessions:
            times, args.sessions = args.sessions / args.naive_sessions, args.naive_sessions
        found = {"ours": ours, "before": before, "naive": naive}[args.side](setting(args), args)
        found = {key: value if "token" in key else value * times for key, value in found.items()}
        found["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("RESULT " + json.dumps({key: round(value, 2) for key, value in found.items()}))
        return
    results = {}
    for side in ("ours", "before", "naive"):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        results[side] = json.loads(line.removeprefix("RESULT "))
        print(f"{side:<6}", results[side], flush=True)
    for side in ("before", "naive"):
        for key, what in (("seconds", "times faster"), ("peak_memory_mb", "times less memory")):
            name = f"{what} than {side}"
            results[name] = round(results[side][key] / results["ours"][key], 2)
            print(f"{name}: {results[name]}")
    out = ROOT / "benchmarks" / "out" / "rlso_update.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"arguments": vars(args), **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
