"""CL and RLSO against computations by hand, and against the same work divided in other ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from langptune.errors import UserError
from langptune.models.load import load_adapter
from langptune.models.logprobs import token_logprobs
from langptune.profiles.best_of import best_rows, history_score
from langptune.training import algorithms, contrastive, loop
from langptune.training.algorithms import rebel, sft
from langptune.training.batch import Batch
from langptune.training.policy import FrozenTrunk, Row, adapter_config, row_logprobs, rows_of
from langptune.training.reward import Reward
from tests import planted as p
from tests.unit.test_checkpoints import spec_of, write_files
from tests.unit.test_scoring import work

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
    """PAPER, defect 8: the loss is the mean of the losses that devices with two rows each would compute."""
    rng = np.random.default_rng(0)
    queries, items = ((rows := rng.normal(size=(n, 6))) / np.linalg.norm(rows, axis=1, keepdims=True) for n in (6, 9))
    ids = np.array([3, 5, 3, 8, 5, 5, 1, 5, 3])  # six targets, then three candidates for all rows
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
    """This covers all items: those with few targets, and the many without, which only uniform negatives draw."""
    recipe = p.contrastive(batches=1500, **changes)
    data = p.planted(train=train, val=2)
    trainer = p.decoder_trainer(tmp_path, recipe, data=data)
    rows = trainer.order
    targets = np.bincount(trainer._pairs.targets[rows], minlength=len(data.items))
    uniform = np.zeros(len(data.items))
    for step in range(recipe.batches):
        trainer.state.global_step = step
        uniform += np.bincount(trainer._uniform(), minlength=len(data.items))
    # Each row has its group's targets and all uniform negatives as candidates.
    found = targets / (len(rows) / recipe.rivals) + uniform / recipe.batches
    expected = np.exp(trainer._log_q.double().numpy())
    drawn = found > 0
    assert np.isfinite(expected).all() and (expected > 0).all()
    assert np.abs(found - expected)[drawn].max() == pytest.approx(0, abs=0.1)
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected / recipe.batches))[drawn].all()
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
    straight = run(p.decoder_trainer(tmp_path / "a", p.contrastive(micro_batch=8)))
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
    """Sum of log-probabilities of one completion, without padding or batching, from full logits."""
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
COMPLETIONS = [[6, 7, 2], [8, 2], [13, 14, 15, 16], [17, 2]]  # the third one did not end


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_ignore_padding_and_batch(temperature):
    model = p.tiny_encoder()
    ids, mask, keep = padded(PROMPTS, COMPLETIONS)
    found, entropy = token_logprobs(model, ids, mask, keep, temperature)
    sums = (found * mask[:, -keep:]).sum(1)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        assert float(sums[row]) == pytest.approx(alone(model, prompt, completion, temperature).item(), abs=2e-6)
    assert (entropy >= 0).all()


GROUPS = [
    ([3, 9, 10, 11, 12, 5, 4], [[6, 7, 2], [8, 20, 21, 22, 23, 2], [2]]),
    ([3, 12, 4], [[13, 14, 15, 16], [17, 2]]),
]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", p.KINDS)
def test_profiles_side_by_side_are_computed_as_if_alone(kind, temperature):
    """Values and gradients agree, for rows of unequal length with windows shorter than the rows."""
    model = p.model_of(kind)
    rows, first = [], 0
    for prompt, profiles in GROUPS:
        rows.append(Row(prompt, profiles, list(range(first, first + len(profiles)))))
        first += len(profiles)
    found, entropy = row_logprobs(model, rows, temperature, entropy=True)
    sums = torch.stack([part.sum() for part in found])
    weights = torch.linspace(-1, 1, len(sums))
    (sums * weights).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    separate = torch.stack([alone(model, row.prompt, own, temperature) for row in rows for own in row.profiles])
    (separate * weights).sum().backward()
    assert torch.allclose(sums, separate, atol=1e-5)
    for name, weight in model.named_parameters():
        assert torch.allclose(gradients[name], weight.grad, atol=1e-4, rtol=1e-4), name
    spread = 0.0
    for row in rows:
        for own in row.profiles:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.prompt + own])).logits[0, len(row.prompt) - 1 : -1]
            spread += float(torch.distributions.Categorical(logits=logits / temperature).entropy().sum())
    assert float(entropy) == pytest.approx(spread, rel=1e-5)


def test_rows_hold_what_costs_least():
    model = p.tiny_encoder()  # hidden size 64: a token costs as much as attending to 384 others
    sizes = lambda prompt, length, count: [  # noqa: E731
        len(row.profiles) for row in rows_of(model, [5] * prompt, [[6] * length] * count, 0)
    ]
    assert sizes(100, 10, 8) == [8], "short profiles share the prompt"
    assert sizes(10, 400, 4) == [1, 1, 1, 1], "long ones behind a short prompt would look at one another for nothing"
    assert sizes(500, 400, 4) == [2, 2]
    found = rows_of(model, [5, 6], [[7, 2], [8, 2], [9, 2]], 6)
    assert [row.numbers for row in found] == [[6, 7, 8]]
    model.config._attn_implementation = "flash_attention_2"
    assert sizes(100, 10, 8) == [1] * 8, "flash attention takes no mask"


def test_rebel_loss_by_hand():
    """Two sessions, unequal lengths, an unfinished profile; policy and sampling policy differ; groups of 2 and of 4."""
    old, new = p.tiny_encoder(), p.tiny_encoder()
    with torch.no_grad():
        for weight in new.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    rewards, eta = [0.8, 0.2, 0.0, 0.5], 1.3
    mean = sum(rewards) / 4
    spread = (sum((r - mean) ** 2 for r in rewards) / 4) ** 0.5
    scaled = [(r - mean) / spread for r in rewards]
    pairs = list(zip(PROMPTS, COMPLETIONS, strict=True))
    change = [(alone(new, *pair).double() - alone(old, *pair).double()).item() for pair in pairs]

    def pair(i, j):
        return ((change[i] - change[j]) - eta * (scaled[i] - scaled[j])) ** 2

    rows = [Row(PROMPTS[0], COMPLETIONS[:2], [0, 1]), Row(PROMPTS[2], COMPLETIONS[2:], [2, 3])]
    found, before = (row_logprobs(model, rows, 1.0)[0] for model in (new, old))
    token_change, mask = padded_parts([a - b for a, b in zip(found, before, strict=True)])
    weights = algorithms.standardised(torch.tensor(rewards).view(2, 2)).flatten()
    loss = rebel.loss(token_change, mask, weights, 2, {"eta": eta})
    assert float(loss) == pytest.approx(0.5 * (pair(0, 1) + pair(2, 3)), rel=1e-5, abs=1e-6)
    loss = rebel.loss(token_change, mask, weights, 4, {"eta": eta})
    every = [pair(i, j) for i in range(4) for j in range(i)]
    assert float(loss) == pytest.approx(sum(every) / 6, rel=1e-5, abs=1e-6)


def padded_parts(parts):
    """The input of a loss: values ``[B, T]``, padded with zeros, and the mask."""
    ones = [torch.ones(len(part)) for part in parts]
    return pad_sequence(parts, batch_first=True), pad_sequence(ones, batch_first=True)


def test_standardised_rewards():
    rewards = torch.tensor([[1.0, 2.0], [4.0, 5.0]])
    found = algorithms.standardised(rewards)
    assert float(found.mean()) == pytest.approx(0, abs=1e-7) and float(found.pow(2).mean()) == pytest.approx(1)
    assert (algorithms.standardised(torch.full((2, 2), 0.3)) == 0).all()
    each = algorithms.standardised(torch.tensor([[1.0, 2.0], [4.0, 4.0]]), "session")
    assert each.tolist() == [[-1.0, 1.0], [0.0, 0.0]]
    assert torch.equal(algorithms.standardised(rewards, "none"), rewards)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_losses_and_advantages_are_those_of_trl(tmp_path, algorithm):
    """TRL's own trainer on the same model and profiles gives the same advantages, loss and gradient."""
    config, trainer = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}[algorithm]
    rewards = [0.9, 0.1, 0.4, 0.2, 0.3, 0.3, 0.0, 0.8]
    reference = trainer(
        model=p.tiny_encoder(),
        reward_funcs=lambda completions, **_: rewards[: len(completions)],
        args=config(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=3,
            beta=0.0,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **({"loss_type": "grpo"} if algorithm == "grpo" else {}),
        ),
        train_dataset=Dataset.from_dict({"prompt": ["user watched", "likes film"]}),
        processing_class=p.tokenizer(),
    )
    prompts = [{"prompt": "user watched"}] * 4 + [{"prompt": "likes film"}] * 4
    told = reference._generate_and_score_completions(prompts)
    ours = algorithms.algorithm(algorithm, {})
    grouped = torch.tensor(rewards).view(2, 4)
    weights = ours.weigh(grouped, grouped > -1, grouped).flatten()
    assert torch.allclose(weights, told["advantages"], atol=1e-5)

    old, new = p.tiny_encoder(), p.tiny_encoder()
    with torch.no_grad():
        for weight in new.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    completions = [[6, 7, 2], [8, 2], [9, 9, 9, 2], [7, 2], [13, 14, 15, 16], [17, 2], [2], [6, 2]]
    ids, mask, keep = padded([PROMPTS[0]] * 4 + [PROMPTS[2]] * 4, completions)
    left = ids.shape[1] - keep
    rows = [Row(PROMPTS[0], completions[:4], [0, 1, 2, 3]), Row(PROMPTS[2], completions[4:], [4, 5, 6, 7])]
    before = row_logprobs(old, rows, 1.0)[0]
    tokens = padded_parts([part.detach() for part in before])[0]
    inputs = {
        "prompt_ids": ids[:, :left],
        "prompt_mask": mask[:, :left],
        "completion_ids": ids[:, left:],
        "completion_mask": mask[:, left:],
        "old_logps": tokens.sum(1),
        "old_per_token_logps": tokens,
        "advantages": weights,
        "num_items_in_batch": mask[:, left:].sum(),
    }
    reference.current_gradient_accumulation_steps = 1
    reference.model.load_state_dict(new.state_dict())
    theirs = reference._compute_loss(reference.model, inputs)
    theirs.backward()
    gradients = {name: weight.grad for name, weight in reference.model.named_parameters()}
    found = row_logprobs(new, rows, 1.0)[0]
    change, there = padded_parts([a - b.detach() for a, b in zip(found, before, strict=True)])
    value = ours.loss(change, there, weights, 4)
    value.backward()
    assert value.item() == pytest.approx(theirs.item(), rel=1e-4, abs=1e-6) and value.item() != 0
    for name, weight in new.named_parameters():
        assert torch.allclose(weight.grad, gradients[name], atol=1e-5, rtol=1e-3), name


def test_best_of_n_is_the_models_own_loss_on_the_best_profiles():
    rewards = torch.tensor([[0.1, 0.9, 0.3], [0.8, 0.2, 0.1], [0.3, 0.2, 0.7]])
    finished = torch.tensor([[True, True, True], [False, True, True], [True, True, True]])
    profiles = [[[6, 2], [7, 8, 2], [9, 2]], [[9, 10, 11], [6, 2], [7, 2]], [[6, 2], [9, 2], [10, 11, 12, 2]]]
    tokens = torch.tensor([[len(own) for own in group] for group in profiles])
    weights = sft.weigh(rewards, finished, tokens)
    assert (weights > 0).tolist() == [[False, True, False], [False] * 3, [False, False, True]]
    prompts = [PROMPTS[0], PROMPTS[2], PROMPTS[0]]
    batch = Batch(prompts, [own for group in profiles for own in group], weights.flatten())
    best = batch.best()
    assert [best.profiles[0], best.profiles[2]] == [[7, 8, 2], [10, 11, 12, 2]] and best.samples == 1
    model, pairs = p.tiny_encoder(), list(zip(prompts, best.profiles, strict=True))
    with torch.no_grad():
        found, _ = row_logprobs(model, [Row(prompt, [own], [0]) for prompt, own in pairs], 1.0)
        chosen = [
            float(model(torch.tensor([prompt + own]), labels=torch.tensor([[-100] * len(prompt) + own])).loss)
            for prompt, own in pairs
        ]
    loss = sft.loss(*padded_parts(found), best.weights, 1, {})
    assert float(loss) == pytest.approx((3 * chosen[0] + 4 * chosen[2]) / 7, rel=1e-5), "mean over the chosen tokens"
    assert (sft.weigh(rewards, ~torch.ones_like(finished), tokens) == 0).all()


def test_the_clip_is_a_setting():
    change, mask, weights = torch.tensor([[1.0], [0.0]]), torch.ones(2, 1), torch.tensor([1.0, 1.0])
    for name in ("rloo", "grpo"):
        default, wide = (algorithms.algorithm(name, given).loss for given in ({}, {"clip": 0.5}))
        assert default(change, mask, weights, 2).item() == pytest.approx(-(1.2 + 1) / 2)
        assert wide(change, mask, weights, 2).item() == pytest.approx(-(1.5 + 1) / 2)


@pytest.mark.parametrize("algorithm", ["rebel", "grpo"])
def test_the_first_pass_replaces_a_pass_of_the_policy_that_wrote(tmp_path, algorithm):
    """Without KL there is no pass for log pi_t; with a tiny KL weight there is one. Both trainings are the same."""
    base = {"algorithm": algorithm, "samples": 4, "epochs": 3, "train": {"lora_rank": 8, "last_layers": 1}}
    one, two = (run(p.policy_trainer(tmp_path / str(kl), p.reinforcement(kl=kl, **base))) for kl in (0.0, 1e-12))
    curves = [trainer.watch.state["curve"][1:] for trainer in (one, two)]
    assert all("kl" not in a and "kl" in b for a, b in zip(*curves, strict=True))
    for key in ("loss", "entropy", "reward", "distinct"):
        assert [row[key] for row in curves[0]] == pytest.approx([row[key] for row in curves[1]], rel=1e-4, abs=1e-7), (
            key
        )
    for name, value in p.weights(one.model).items():
        assert torch.allclose(p.weights(two.model)[name], value, atol=1e-4), name


def test_kl_is_zero_at_the_start_and_enters_the_reward(tmp_path):
    trainer = run(p.policy_trainer(tmp_path, p.reinforcement(kl=0.5, batches=4)))
    values = [row["kl"] for row in trainer.watch.state["curve"] if "kl" in row]
    assert values[0] == pytest.approx(0, abs=1e-6) and abs(values[-1]) > 1e-4


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
    [{"micro_batch": 5}, {"cache_frozen": False}, {"cache_frozen": False, "micro_batch": 1}],
)
def test_micro_batches_and_the_trunk_cache_do_not_change_rlso(tmp_path, changes, rank):
    train = {"lora_rank": rank, "lora_alpha": 16, "last_layers": 1}
    base = {"kl": 0.1, "minibatches": 2, "samples": 4, "sessions_per_batch": 4, "train": train}
    whole = run(p.policy_trainer(tmp_path / "a", p.reinforcement(**base)))
    other = run(p.policy_trainer(tmp_path / "b", p.reinforcement(**base, **changes)))
    assert losses(other) == pytest.approx(losses(whole), rel=1e-3, abs=1e-6)
    for name, value in p.weights(whole.model).items():
        assert torch.allclose(p.weights(other.model)[name], value, atol=2e-4), name


def test_rlso_repeats_a_step_that_did_not_fit(tmp_path, monkeypatch):
    straight = run(p.policy_trainer(tmp_path / "a", p.reinforcement(micro_batch=4)))
    original = loop.row_logprobs

    def small_memory(model, rows, *rest):
        if sum(len(row.profiles) for row in rows) > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return original(model, rows, *rest)

    monkeypatch.setattr(loop, "row_logprobs", small_memory)
    lines = []
    small = run(p.policy_trainer(tmp_path / "b", p.reinforcement(micro_batch=16), log=lines.append))
    assert losses(small) == losses(straight)
    assert sum("repeating the step" in line for line in lines) == 2


def test_memory_is_counted_in_the_profiles_of_a_pass(tmp_path, monkeypatch):
    """SFT trains on one profile of each session, so halving a micro-batch of all samples would have no effect."""
    original = loop.row_logprobs

    def small_memory(model, rows, *rest):
        if sum(len(row.profiles) for row in rows) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return original(model, rows, *rest)

    monkeypatch.setattr(loop, "row_logprobs", small_memory)
    recipe = p.reinforcement(algorithm="sft", samples=4, sessions_per_batch=8, micro_batch=32)
    trainer = run(p.policy_trainer(tmp_path / "a", recipe))
    assert trainer._micro == 2
    with pytest.raises(UserError, match="with a micro-batch of 4, which cannot be halved"):
        p.policy_trainer(tmp_path / "b", p.reinforcement(samples=4, micro_batch=2)).run()


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


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS.names())
@pytest.mark.parametrize("minibatches", [1, 2])
def test_every_algorithm_trains_and_no_micro_batch_changes_it(tmp_path, algorithm, minibatches):
    recipe = p.reinforcement(algorithm=algorithm, samples=4, sessions_per_batch=4, minibatches=minibatches)
    trainer = p.policy_trainer(tmp_path / "a", recipe)
    before = p.weights(trainer.model)
    trainer.run()
    assert any(not torch.equal(value, before[name]) for name, value in p.weights(trainer.model).items())
    cut = run(p.policy_trainer(tmp_path / "b", recipe.model_copy(update={"micro_batch": 3})))
    assert losses(cut) == pytest.approx(losses(trainer), rel=1e-3, abs=1e-6)
    row = trainer.watch.state["curve"][-1]
    assert {"reward", "finished", "tokens", "distinct", "entropy"} <= set(row) and 0 < row["distinct"] <= 1


def test_vllm_writes_where_a_recipe_says_so(tmp_path, monkeypatch):
    """TRL's own class with our arguments; only its engine, which needs a GPU, is replaced."""
    from trl.generation.vllm_generation import VLLMGeneration

    synced = []

    def generate(self, prompts, images, num_generations, profiler=None):
        assert num_generations == 2 and prompts[0] == prompts[1] != prompts[2] and synced
        return prompts, [[6, 7, 2] if at % 2 else [8, 9, 10, 11, 12, 13] for at in range(len(prompts))], None, None

    monkeypatch.setattr(VLLMGeneration, "_init_vllm", lambda self: None)
    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda self: synced.append(1))
    monkeypatch.setattr(VLLMGeneration, "generate", generate)
    trainer = run(p.policy_trainer(tmp_path, p.reinforcement(vllm=True, batches=2)))
    row = trainer.watch.state["curve"][-1]
    assert (row["tokens"], row["finished"]) == (4.5, 0.5) and len(synced) == 2
    assert trainer._vllm.generation_kwargs == {"stop_token_ids": [2]} and trainer._vllm.max_completion_length == 6


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
        # lm_head is tied to the embedding here, so a merge would change it too; adapters are used unmerged
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


# Best of n


def test_best_of_n_finds_the_history_again_and_never_the_target():
    scores = np.array([0.9, 0.1, 0.5, 0.4, 0.3])
    assert history_score(scores, [0], [0, 1]) == 1.0
    assert history_score(scores, [1], [0, 1]) == pytest.approx(1 / np.log2(1 + 4))
    good, bad = scores, scores[::-1].copy()
    assert best_rows([np.stack([bad, good])], [[1, 0]], [[0, 1]], shown=1) == [1]
    assert best_rows([np.stack([good, good])], [[1, 0]], [[0, 1]], shown=1) == [0]


def test_profiles_in_training_and_validation_begin_as_the_prompt_says(tmp_path, monkeypatch):
    """In the script itself, the text that the reward reads begins with ``starts``, which the encoder did not write."""
    data = write_files(tmp_path / "data")
    words = p.tokenizer()
    words.chat_template = words.chat_template.replace("<bot>", "<bot> ")
    words.save_pretrained(data / "encoder")
    read = []
    for name in ("columns", "ranks"):
        method = getattr(Reward, name)

        def reading(self, texts, *args, method=method, **kwargs):
            read.append(list(texts))
            return method(self, texts, *args, **kwargs)

        monkeypatch.setattr(Reward, name, reading)
    profiles = {}
    for starts in ("", "user likes"):
        spec = spec_of("rlso", data, tmp_path / (starts or "none"), batches=2, validate_every=1)
        work("train_encoder", spec | {"prompt_entry": {**spec["prompt_entry"], "starts": starts}})
        profiles[starts] = [text for texts in read for text in texts]
        read.clear()
    assert len(profiles[""]) == len(profiles["user likes"]) > 30
    assert all(text.split()[:2] == ["user", "likes"] for text in profiles["user likes"])
    assert not all(text.startswith("user likes") for text in profiles[""]), "the encoder does not begin so by itself"
