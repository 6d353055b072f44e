"""CL and RLSO against computations by hand, and against themselves cut up in other ways."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version

import numpy as np
import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer

from langptune.errors import UserError
from langptune.metrics import from_ranks
from langptune.models.load import load_adapter
from langptune.profiles.choose import best_rows, history_score
from langptune.ranking.decoder import embed, embed_items
from langptune.ranking.ranks import full_ranks
from langptune.ranking.scoring import Scoring
from langptune.training import algorithms, contrastive
from langptune.training.policy import FrozenTrunk, adapter_config, token_logprobs
from langptune.training.reward import Reward
from tests import planted as p
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


def run(trainer):
    trainer.run()
    return trainer


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.watch.state["curve"] if "loss" in row]


# Contrastive


def by_hand(queries, items, ids, positives, temperature, log_q, mask):
    total = 0.0
    for i, positive in enumerate(positives):
        logits = []
        for j in range(len(items)):
            if mask and j != positive and ids[j] == ids[positive]:
                continue
            logit = float(np.dot(queries[i], items[j])) / temperature - (log_q[j] if log_q is not None else 0.0)
            logits.append((j, logit))
        top = dict(logits)[positive]
        total += -top + np.log(sum(np.exp(value) for _, value in logits))
    return total / len(positives)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
def test_info_nce_is_the_formula(mask, corrected):
    rng = np.random.default_rng(0)
    queries, items = ((rows := rng.normal(size=(n, 6))) / np.linalg.norm(rows, axis=1, keepdims=True) for n in (4, 7))
    ids = np.array([3, 5, 3, 8, 1, 5, 3])
    log_q = np.log(rng.uniform(0.1, 2, 7)) if corrected else None
    found = contrastive.info_nce(
        torch.tensor(queries),
        torch.tensor(items),
        torch.tensor(ids),
        torch.arange(4),
        0.1,
        None if log_q is None else torch.tensor(log_q),
        mask,
    )
    assert float(found) == pytest.approx(by_hand(queries, items, ids, range(4), 0.1, log_q, mask), abs=1e-12)


def test_negatives_of_a_group_are_the_formula_group_by_group():
    """PAPER, defect 8: the loss is the mean of what devices with two rows each would compute for themselves."""
    rng = np.random.default_rng(0)
    queries, items = ((rows := rng.normal(size=(n, 6))) / np.linalg.norm(rows, axis=1, keepdims=True) for n in (6, 9))
    ids = np.array([3, 5, 3, 8, 5, 5, 1, 5, 3])  # six targets, then three candidates for all
    log_q = np.log(rng.uniform(0.1, 2, 9))
    for mask, corrected in ((False, None), (True, log_q)):
        found = contrastive.info_nce(
            torch.tensor(queries),
            torch.tensor(items),
            torch.tensor(ids),
            torch.arange(6),
            0.1,
            None if corrected is None else torch.tensor(corrected),
            mask,
            group=2,
        )
        parts = []
        for start in (0, 2, 4):
            rows = [start, start + 1, 6, 7, 8]
            own = None if corrected is None else corrected[rows]
            parts.append(by_hand(queries[start : start + 2], items[rows], ids[rows], range(2), 0.1, own, mask))
        assert float(found) == pytest.approx(np.mean(parts), abs=1e-12)


def test_one_group_is_the_batch_and_smaller_ones_are_not(tmp_path):
    first = {}
    for negatives in ("batch", 16, 8):
        recipe = p.contrastive(negatives=negatives, uniform_negatives=0, batches=1)
        first[negatives] = losses(run(p.decoder_trainer(tmp_path / str(negatives), recipe)))[0]
    assert first[16] == first["batch"] > first[8] > 0


def test_log_frequency_counts_both_sources_of_candidates():
    targets = np.array([0, 0, 0, 1])
    found = np.exp(contrastive.log_frequency(targets, 5, rows=8, uniform_negatives=10))
    assert found[0] == pytest.approx(8 * 3 / 4 + 10 / 5) and found[1] == pytest.approx(8 * 1 / 4 + 10 / 5)


@pytest.mark.parametrize("train", [5, 40, 300])
@pytest.mark.parametrize(
    "changes", [{}, {"uniform_negatives": 0}, {"uniform_negatives": 64}, {"negatives": 4}, {"batch_size": 64}]
)
def test_log_q_is_the_rate_at_which_the_trainer_draws_candidates(tmp_path, train, changes):
    """Of all items: those of few targets, and the many that are no train target, which uniform negatives alone draw."""
    recipe = p.contrastive(batches=1500, **changes)
    data = p.planted(train=train, val=2)
    trainer = p.decoder_trainer(tmp_path, recipe, data=data)
    rows = [trainer.train_dataset[at] for at in range(len(trainer.train_dataset))]
    targets = np.bincount(trainer._pairs.targets[rows], minlength=len(data.items))
    uniform = np.zeros(len(data.items))
    for step in range(recipe.batches):
        trainer.state.global_step = step
        uniform += np.bincount(trainer._uniform(), minlength=len(data.items))
    # Each row has its own group's targets as candidates, and all uniform negatives.
    found = targets / (len(rows) / recipe.rivals) + uniform / recipe.batches
    told = np.exp(trainer._log_q.double().numpy())
    drawn = found > 0
    assert np.isfinite(told).all() and (told > 0).all()
    assert np.abs(found - told)[drawn].max() == pytest.approx(0, abs=0.1)
    assert (np.abs(found - told) <= 5 * np.sqrt(told / recipe.batches))[drawn].all()
    if recipe.uniform_negatives:
        assert drawn.all() and (len(set(data.target["train"])) < len(data.items))
    else:
        assert set(np.flatnonzero(drawn)) == set(data.target["train"])


@pytest.mark.parametrize(("micro", "negatives"), [(1, "batch"), (5, "batch"), (7, "batch"), (5, 4)])
def test_micro_batches_do_not_change_contrastive_training(tmp_path, micro, negatives):
    whole = run(p.decoder_trainer(tmp_path / "a", p.contrastive(negatives=negatives)))
    cut = run(p.decoder_trainer(tmp_path / "b", p.contrastive(negatives=negatives, micro_batch=micro)))
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-4)
    for name, value in p.weights(whole.model).items():
        # Adam turns a rounding error in a tiny gradient into a step, so only nearly all weights agree
        other = p.weights(cut.model)[name]
        assert (other - value).abs().mean() < 1e-3 * max(1e-3, float(value.abs().mean())), name


def test_contrastive_repeats_a_step_that_did_not_fit(tmp_path, monkeypatch):
    straight = run(p.decoder_trainer(tmp_path / "a", p.contrastive(micro_batch=10)))
    embedded = contrastive.ContrastiveTrainer._embed

    def small_memory(self, model, texts):
        if len(texts) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embedded(self, model, texts)

    monkeypatch.setattr(contrastive.ContrastiveTrainer, "_embed", small_memory)
    lines = []
    small = run(p.decoder_trainer(tmp_path / "b", p.contrastive(micro_batch=40), log=lines.append))
    assert [line for line in lines if "repeating the step" in line]
    assert losses(small) == losses(straight)
    assert all(torch.equal(p.weights(small.model)[k], v) for k, v in p.weights(straight.model).items())
    monkeypatch.setattr(contrastive.ContrastiveTrainer, "_embed", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match="cannot be halved"):
        p.decoder_trainer(tmp_path / "c", p.contrastive()).run()


# Log-probabilities and the loss of REBEL


def alone(model, prompt, completion, temperature=1.0):
    """Sum of log-probabilities of one completion: no padding, no batch, full logits."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].float() / temperature
    logs = torch.log_softmax(logits, -1)
    return sum(logs[len(prompt) + k - 1, token] for k, token in enumerate(completion))


def padded(prompts, completions):
    left, right = max(map(len, prompts)), max(map(len, completions))
    ids = [[0] * (left - len(a)) + a + b + [0] * (right - len(b)) for a, b in zip(prompts, completions, strict=True)]
    mask = [
        [0] * (left - len(a)) + [1] * (len(a) + len(b)) + [0] * (right - len(b))
        for a, b in zip(prompts, completions, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask), right


PROMPTS = [[3, 9, 10, 11, 4], [3, 9, 10, 11, 4], [3, 12, 4], [3, 12, 4]]
COMPLETIONS = [[6, 7, 2], [8, 2], [13, 14, 15, 16], [17, 2]]  # the third did not end


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_ignore_padding_and_batch(temperature):
    model = p.tiny_encoder()
    ids, mask, keep = padded(PROMPTS, COMPLETIONS)
    found, entropy = token_logprobs(model, ids, mask, keep, temperature)
    sums = (found * mask[:, -keep:]).sum(1)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        assert float(sums[row]) == pytest.approx(float(alone(model, prompt, completion, temperature)), abs=2e-6)
    assert (entropy >= 0).all()


def test_rebel_loss_by_hand(tmp_path):
    """Two sessions, unequal lengths, left padding, an unfinished profile; policy and sampling policy differ."""
    old, new = p.tiny_encoder(), p.tiny_encoder()
    with torch.no_grad():
        for weight in new.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    rewards, eta = [0.8, 0.2, 0.0, 0.5], 1.3
    mean = sum(rewards) / 4
    spread = (sum((r - mean) ** 2 for r in rewards) / 4) ** 0.5
    scaled = [(r - mean) / spread for r in rewards]
    change = [
        float(alone(new, a, b).double() - alone(old, a, b).double()) for a, b in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    expected = 0.5 * sum(((change[i] - change[i + 1]) - eta * (scaled[i] - scaled[i + 1])) ** 2 for i in (0, 2))
    ids, mask, keep = padded(PROMPTS, COMPLETIONS)
    sums = [(token_logprobs(m, ids, mask, keep, 1.0)[0] * mask[:, -keep:]).sum(1) for m in (new, old)]
    found = algorithms.rebel_loss(sums[0] - sums[1], algorithms.standardised(torch.tensor(rewards)), eta)
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-6)

    trainer = p.policy_trainer(tmp_path, p.reinforcement(eta=eta, cache_frozen=False), model=old)
    trainer.model.load_state_dict({f"base_model.model.{k}": v for k, v in new.state_dict().items()}, strict=False)
    base = dict(new.named_parameters())
    with torch.no_grad():
        for name, weight in trainer.model.get_base_model().named_parameters():
            if name.replace(".base_layer", "") in base:
                weight.copy_(base[name.replace(".base_layer", "")])
    left = ids.shape[1] - keep
    rows = {
        "prompt_ids": ids[:, :left],
        "prompt_mask": mask[:, :left],
        "completion_ids": ids[:, left:],
        "completion_mask": mask[:, left:],
        "old_logps": sums[1].detach(),
        "advantages": algorithms.standardised(torch.tensor(rewards)),
    }
    assert float(trainer._compute_loss(trainer.model, rows).detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_standardised_rewards():
    found = algorithms.standardised(torch.tensor([1.0, 2.0, 4.0, 5.0]))
    assert float(found.mean()) == pytest.approx(0, abs=1e-7) and float(found.pow(2).mean()) == pytest.approx(1)
    assert (algorithms.standardised(torch.full((4,), 0.3)) == 0).all()


def test_reward_is_the_metric_of_the_written_ranks():
    data, decoder = p.planted(train=5, val=30), p.tiny_decoder()
    vectors, _ = embed_items(decoder, data.items)
    texts = [" ".join(data.items[item] for item in shown[:2]) for shown in data.history["val"]]
    targets, seen = data.target["val"], data.history["val"]
    popularity = np.random.default_rng(0).random(len(data.items), dtype=np.float32)
    found = []
    for weight in (0.0, 5.0):
        scoring = Scoring(vectors, popularity, weight)
        ranks = full_ranks(scoring.scores(embed(decoder, texts).vectors), targets, seen).rank
        for metric in ("ndcg", "mrr"):
            reward = Reward(decoder, scoring, metric=metric)
            assert np.array_equal(reward(texts, targets, seen), from_ranks(metric, ranks))
        found.append(ranks)
    assert not np.array_equal(*found), "popularity is part of the reward"


def test_no_reward_for_a_profile_that_did_not_end(tmp_path):
    trainer = p.policy_trainer(tmp_path, p.reinforcement())
    ended, cut = trainer._score([[6, 7, 2], [6, 7, 8, 9, 10, 11]], [0, 0])
    assert ended > 0 and cut == 0
    kept = p.policy_trainer(tmp_path, p.reinforcement(unfinished="score"))
    assert min(kept._score([[6, 7, 2], [6, 7, 8, 9, 10, 11]], [0, 0])) > 0


def test_kl_is_zero_at_the_start_and_enters_the_reward(tmp_path):
    trainer = run(p.policy_trainer(tmp_path, p.reinforcement(kl=0.5, batches=4)))
    told = [row["kl"] for row in trainer.watch.state["curve"] if "kl" in row]
    assert told[0] == pytest.approx(0, abs=1e-6) and abs(told[-1]) > 1e-4


def test_without_eta_and_kl_nothing_moves(tmp_path):
    recipe = p.reinforcement(kl=0.0, weight_decay=0.0).model_copy(update={"eta": 0.0})
    trainer = p.policy_trainer(tmp_path, recipe)
    before = p.weights(trainer.model)
    trainer.run()
    assert losses(trainer) == [0.0] * 3
    assert all(torch.equal(value, before[name]) for name, value in p.weights(trainer.model).items())


@pytest.mark.parametrize("rank", [8, None])
@pytest.mark.parametrize(
    "changes",
    [{"micro_batch": 5}, {"cache_frozen": False}, {"cache_frozen": False, "micro_batch": 4}],
)
def test_micro_batches_and_the_trunk_cache_do_not_change_rlso(tmp_path, changes, rank):
    base = {"kl": 0.1, "minibatches": 2, "train": {"lora_rank": rank, "lora_alpha": 16, "last_layers": 1}}
    whole = run(p.policy_trainer(tmp_path / "a", p.reinforcement(**base)))
    other = run(p.policy_trainer(tmp_path / "b", p.reinforcement(**base, **changes)))
    assert losses(other) == pytest.approx(losses(whole), rel=1e-3, abs=1e-6)
    for name, value in p.weights(whole.model).items():
        assert torch.allclose(p.weights(other.model)[name], value, atol=2e-4), name


def test_rlso_repeats_a_step_that_did_not_fit(tmp_path, monkeypatch):
    straight = run(p.policy_trainer(tmp_path / "a", p.reinforcement(micro_batch=4)))
    original = algorithms.token_logprobs

    def small_memory(model, ids, *rest):
        if len(ids) > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return original(model, ids, *rest)

    monkeypatch.setattr(algorithms, "token_logprobs", small_memory)
    small = run(p.policy_trainer(tmp_path / "b", p.reinforcement(micro_batch=16)))
    assert losses(small) == losses(straight)


def test_frozen_trunk_replays_the_forward_pass_exactly():
    model = p.tiny_encoder(layers=3)
    ids, mask, keep = padded(PROMPTS, COMPLETIONS)
    kept = []
    trunk = FrozenTrunk(model, 2)
    with trunk.recording(kept):
        before = token_logprobs(model, ids, mask, keep, 1.0)[0]
    with torch.no_grad():
        for weight in model.model.layers[0].parameters():
            weight.zero_()
    with trunk.replaying(kept[0]):
        assert torch.equal(token_logprobs(model, ids, mask, keep, 1.0)[0], before)
    assert not torch.equal(token_logprobs(model, ids, mask, keep, 1.0)[0], before), "lower layers run again"


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_trl_algorithms_share_everything_but_the_loss(tmp_path, algorithm):
    recipe = p.reinforcement(algorithm=algorithm, samples=4, sessions_per_batch=4)
    trainer = p.policy_trainer(tmp_path / "a", recipe)
    before = p.weights(trainer.model)
    trainer.run()
    assert any(not torch.equal(value, before[name]) for name, value in p.weights(trainer.model).items())
    cut = run(p.policy_trainer(tmp_path / "b", recipe.model_copy(update={"micro_batch": 3})))
    assert losses(cut) == pytest.approx(losses(trainer), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    "train",
    [
        {"lora_rank": 4, "lora_alpha": 8},
        {"lora_rank": 4, "lora_alpha": 8, "last_layers": 1, "modules": ["q_proj", "up_proj", "lm_head"]},
        {"lora_rank": None, "last_layers": 1},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_scores_the_same(tmp_path, train, dtype):
    trainer = run(
        p.policy_trainer(
            tmp_path, p.reinforcement(train=train, select="last", batches=6), model=p.tiny_encoder().to(dtype)
        )
    )
    again = load_adapter(p.tiny_encoder().to(dtype), trainer.watch.best)
    ids, mask, keep = padded(PROMPTS, COMPLETIONS)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), torch.no_grad():
        trained = token_logprobs(trainer.model.eval(), ids, mask, keep, 1.0)[0]
        start = token_logprobs(p.tiny_encoder().to(dtype), ids, mask, keep, 1.0)[0]
        loaded = token_logprobs(again, ids, mask, keep, 1.0)[0]
    assert torch.equal(loaded, trained)
    assert not torch.equal(start, trained)
    if dtype == torch.float32 and train["lora_rank"] and "modules" not in train:
        # lm_head is tied to the embedding here, which a merge would change too: unmerged is how adapters are used
        from peft import PeftModel

        merged = PeftModel.from_pretrained(p.tiny_encoder(), str(trainer.watch.best)).merge_and_unload()
        assert torch.allclose(token_logprobs(merged, ids, mask, keep, 1.0)[0], trained, atol=1e-5)


def test_an_adapter_of_other_weights_is_refused(tmp_path):
    trainer = run(p.policy_trainer(tmp_path / "a", p.reinforcement()))
    with pytest.raises(UserError, match="must have the same 'train'"):
        other = p.reinforcement(train={"lora_rank": 4, "lora_alpha": 8, "last_layers": 1})
        p.policy_trainer(tmp_path / "b", other, start=trainer.watch.best)
    with pytest.raises(UserError, match="has 2 layers"):
        adapter_config(p.tiny_encoder(), p.reinforcement(train={"last_layers": 5}).train)


# TRL's private hooks


def test_trl_is_the_pinned_one_and_has_the_hooks():
    pinned = re.search(r"^trl==(.+)$", (ROOT / "envs/lock.txt").read_text(), re.M)[1]
    assert version("trl") == pinned, "the hooks of langptune.training.algorithms were checked on the pinned TRL only"
    named = re.findall(r"^``(\w+)``", algorithms.__doc__, re.M)
    assert len(named) == 8
    for trainer in (RLOOTrainer, GRPOTrainer):
        for name in named:
            assert callable(getattr(trainer, name)), name
        assert "self._step % self.args.steps_per_generation" in inspect.getsource(trainer._prepare_inputs)
        source = inspect.getsource(trainer._generate_and_score_completions)
        assert "self._calculate_rewards(" in source and "self._get_per_token_logps_and_entropies(" in source
        assert "self._tokenize_prompts(prompts)" in inspect.getsource(trainer._generate)
        assert '"advantages"' in source
    assert '"old_logps": old_logps' in inspect.getsource(RLOOTrainer._generate_and_score_completions)


# Best of n


def test_best_of_n_finds_the_history_again_and_never_the_target():
    scores = np.array([0.9, 0.1, 0.5, 0.4, 0.3])
    assert history_score(scores, [0], [0, 1]) == 1.0
    assert history_score(scores, [1], [0, 1]) == pytest.approx(1 / np.log2(1 + 4))
    good, bad = scores, scores[::-1].copy()
    assert best_rows([np.stack([bad, good])], [[1, 0]], [[0, 1]], shown=1) == [1]
    assert best_rows([np.stack([good, good])], [[1, 0]], [[0, 1]], shown=1) == [0]
