"""CL and RLSO learn a planted signal, and RLSO with shuffled rewards does not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from langptune.metrics import from_ranks
from langptune.models.load import load_decoder
from langptune.training.reward import Reward
from tests import planted as p
from tests.unit.test_models import decoder_entry

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def world(real_models):
    """Planted data, a warm-started tiny encoder, and the real MiniLM as the frozen decoder."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    data = p.planted(train=3000, val=300)
    encoder = p.tiny_encoder()
    p.warm_start(encoder, data, p.tokenizer())
    decoder = load_decoder(real_models / "minilm-l6", decoder_entry({"folder": "x"}), torch.device("cpu"))
    yield data, encoder, decoder, p.scoring(decoder, data.items)
    torch.set_num_threads(before)


def interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Ratio of the means and its 95% percentile bootstrap interval over sessions."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(before), (2000, len(before)))
    ratios = after[rows].mean(1) / before[rows].mean(1)
    return after.mean() / before.mean(), *np.quantile(ratios, [0.025, 0.975])


def greedy_ndcg(trainer, data, reward) -> np.ndarray:
    """NDCG of each validation session by greedy profiles of the policy."""
    words = p.sessions_of(data, "val", p.tokenizer())
    written = trainer._write(words.prompts, [0] * len(words.prompts), 6, 0.0, 300)
    return ndcg_of(reward, [profile.text for profile in written], words.targets, words.seen)


def ndcg_of(reward, texts, targets, seen) -> np.ndarray:
    return from_ranks("ndcg", reward.ranks(texts, targets, seen))


def trained(tmp_path, world, shuffled=False):
    data, encoder, decoder, scoring = world
    recipe = p.reinforcement(
        batches=25,
        sessions_per_batch=64,
        micro_batch=128,
        validate_every=100,
        select="last",
        shuffle_rewards=shuffled,
        train={"lora_rank": 32, "lora_alpha": 64},
    )
    reward = Reward(decoder, scoring, recipe=recipe)
    trainer = p.policy_trainer(tmp_path, recipe, data=data, model=copy.deepcopy(encoder), reward=reward)
    before = greedy_ndcg(trainer, data, reward)
    trainer.run()
    return before, greedy_ndcg(trainer, data, reward), data.best


def test_rlso_finds_the_planted_signal(tmp_path, world):
    before, after, best = trained(tmp_path, world)
    ratio, low, _ = interval(before, after)
    print(f"RLSO: NDCG {before.mean():.3f} -> {after.mean():.3f} of {best:.3f} possible; x{ratio:.2f}, from {low:.2f}")
    assert ratio >= 1.5 and low > 1
    assert after.mean() <= best + 0.02


def test_rlso_with_shuffled_rewards_does_not(tmp_path, world):
    before, after, _ = trained(tmp_path, world, shuffled=True)
    ratio, low, _ = interval(before, after)
    print(f"shuffled rewards: NDCG {before.mean():.3f} -> {after.mean():.3f}; x{ratio:.2f}, from {low:.2f}")
    assert ratio < 1.2 and low <= 1.02


def test_cl_finds_the_planted_signal(tmp_path):
    """Profiles name a taste by a word that no item text contains, so only training can connect the two."""
    data = p.planted(train=1000, val=300)
    taste = {item: text.split()[0] for item, text in enumerate(data.items)}
    code = {word: f"n{number}" for number, word in enumerate(p.TASTES)}
    texts = {split: [f"likes {code[taste[t]]}" for t in data.target[split]] for split in ("train", "val")}
    data.items[:] = [f"{text.split()[0]} film" for text in data.items]
    decoder = p.tiny_decoder()

    def ndcg():
        reward = Reward(decoder.eval(), p.scoring(decoder, data.items))
        return ndcg_of(reward, texts["val"], data.target["val"], data.history["val"])

    before = ndcg()
    recipe = p.contrastive(batches=60, batch_size=64, micro_batch=512, uniform_negatives=32, learning_rate=3e-3)
    p.decoder_trainer(tmp_path, recipe, data=data, model=decoder, texts=texts).run()
    after = ndcg()
    ratio, low, _ = interval(before, after)
    print(f"CL: NDCG {before.mean():.3f} -> {after.mean():.3f}; x{ratio:.2f}, from {low:.2f}")
    assert ratio >= 1.5 and low > 1
