"""The guard: validation measures by hand, curves that are sound, and a run that collapses and keeps its best state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from langptune.config.recipes import GuardLimits
from langptune.profiles.generate import Profile
from langptune.training.guard import Guard, examined, gains
from langptune.training.reward import Reward
from tests import planted as p

START = {
    "batch": 0,
    "val_ndcg": 0.15,
    "val_distinct": 0.6,
    "val_finished": 0.9,
    "val_own": 0.3,
    "val_own_se": 0.04,
}


def row(**changes):
    return {"batch": 20, "entropy": 1.0, **{key: value for key, value in START.items() if key != "batch"}, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"entropy": 0.34, "val_own": 1.05, "val_distinct": 0.96, "val_finished": 1.0, "val_ndcg": 0.2},
        {"val_own": 0.119},  # a run of 40 steps without popularity in the score
        {"val_own": 0.0, "val_own_se": 0.1},  # few sessions: no conclusion is possible
        {"entropy": 0.001, "val_ndcg": 0.16},
        {"val_distinct": 0.2, "val_finished": 0.5},
    ],
)
def test_sound_runs_go_on(changes):
    assert Guard(GuardLimits())([START, row(**changes)]) is None


COLLAPSED = {
    "distinct": {"val_distinct": 0.01},
    "finished": {"val_finished": 0.3},
    "own": {"val_own": -0.02, "val_own_se": 0.03},
    "entropy": {"entropy": 0.001, "val_ndcg": 0.1},
}


@pytest.mark.parametrize("rule", COLLAPSED)
def test_each_rule_stops_and_can_be_switched_off(rule):
    curve = [START, row(), row(**COLLAPSED[rule])]
    assert f"guard.{rule}:" in Guard(GuardLimits())(curve)
    assert Guard(GuardLimits(**{rule: 0.0}))(curve) is None


def test_own_counts_only_where_the_start_had_it():
    weak = {**START, "val_own": 0.05}
    assert Guard(GuardLimits())([weak, row(val_own=-0.2)]) is None
    without = {key: value for key, value in START.items() if "own" not in key}
    assert Guard(GuardLimits())([without, row()]) is None


def test_gains_by_hand():
    found = gains([1, 8, 4], [1, 2, 8])
    steps = np.array([0, math.log(4), -math.log(2)])
    assert found["gain"] == pytest.approx(steps.mean())
    assert found["gain_se"] == pytest.approx(steps.std(ddof=1) / math.sqrt(3))
    moves = np.array([0, 1 / math.log2(3) - 1 / math.log2(9), 1 / math.log2(9) - 1 / math.log2(5)])
    assert found["ndcg_gain_se"] == pytest.approx(moves.std(ddof=1) / math.sqrt(3))


def written(texts):
    return [Profile(text, [1] * len(text.split()), at % 2 == 0, 0.0) for at, text in enumerate(texts)]


def test_what_validation_measures():
    data, decoder = p.planted(train=5, val=12), p.tiny_decoder()
    sessions = p.sessions_of(data, "val", p.tokenizer())
    reward = Reward(decoder, p.scoring(decoder, data.items))
    own = [data.items[target] for target in sessions.targets]
    measures = examined(reward, sessions, range(12), written(own))
    ranks = reward.ranks(own, sessions.targets, sessions.seen)
    assert measures["ranks"] == ranks.tolist() and measures["log_rank"] == pytest.approx(np.log(ranks).mean())
    assert measures["log_rank_se"] == pytest.approx(np.log(ranks).std(ddof=1) / math.sqrt(12))
    assert measures["own"] > 2 * measures["own_se"] > 0, "each profile is its target's own text"
    assert measures["finished"] == 0.5 and measures["tokens"] == np.mean([len(text.split()) for text in own])
    assert measures["distinct"] == len(set(own)) / 12 and measures["repetition"] == 0

    same = examined(reward, sessions, range(12), written(["comedy comedy comedy"] * 12))
    assert (same["own"], same["own_se"]) == (0, 0) and same["distinct"] == 1 / 12
    assert same["repetition"] == pytest.approx(1 / 2)


def test_own_profiles_are_shuffled_among_users_and_processes_agree():
    data, decoder = p.planted(train=5, val=6), p.tiny_decoder()
    sessions = p.sessions_of(data, "val", p.tokenizer())
    reward = Reward(decoder, p.scoring(decoder, data.items))
    texts = written([data.items[target] for target in sessions.targets])
    whole = examined(reward, sessions, range(6), texts)

    # Two processes take turns: the values that they pass to gather are joined, as gather_object does.
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier, handed = Barrier(2), [None, None]

    def process(at):
        def gather(own):
            handed[at] = own
            barrier.wait()
            joined = [*handed[0], *handed[1]]
            barrier.wait()
            return joined

        rows = range(at, 6, 2)
        return examined(reward, sessions, rows, [texts[row] for row in rows], gather)

    with ThreadPoolExecutor(2) as pool:
        for measures in pool.map(process, range(2)):
            assert measures == whole
    one_user = type(sessions)(**{**vars(sessions), "users": ["a"] * 4 + ["b"] * 2})
    assert "own" not in examined(reward, one_user, range(6), texts), "nobody else's to deal"


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_collapses_stops_and_keeps_its_best(tmp_path):
    """A learning rate that destroys the weights: profiles no longer end."""
    lines = []
    recipe = p.reinforcement(
        batches=12, learning_rate=0.3, validate_every=1, select="last", guard={"finished": 0.99, "distinct": 0.99}
    )
    data, encoder = p.planted(train=40, val=10), p.tiny_encoder()
    p.warm_start(encoder, data, p.tokenizer(), steps=60)
    trainer = p.policy_trainer(tmp_path, recipe, data=data, model=encoder, log=lines.append)
    trainer.run()
    state = trainer.watch.state
    assert state["done"] and state["collapsed"] and len(state["curve"]) < 13
    batch = state["curve"][-1]["batch"]
    (line,) = [line for line in lines if line.startswith("collapsed")]
    assert line.startswith(f"collapsed at batch {batch}: ") and "best state before" in line
    best = max(state["curve"][:-1], key=lambda row: row["val_ndcg"])
    assert trainer.watch.best.name == f"best-{best['batch']}", "not the last, though select says so"
    assert [row["batch"] for row in state["curve"] if row.get("collapsed")] == [batch]
    assert state["curve"][-1]["collapsed"] == state["collapsed"]
    assert trainer.watch.best.is_dir() and torch.isfinite(torch.tensor(state["best"]))


@pytest.mark.usefixtures("one_thread")
def test_the_curve_has_the_paired_gain_with_its_error(tmp_path):
    trainer = p.policy_trainer(tmp_path, p.reinforcement(batches=2, validate_every=1, learning_rate=0.05))
    trainer.run()
    start, *rest = trainer.watch.state["curve"]
    assert "val_gain" not in start and len(trainer.watch.state["start_ranks"]) == 10
    for row in rest:
        assert {"val_gain", "val_gain_se", "val_ndcg_gain_se", "val_own", "val_distinct", "val_repetition"} <= set(row)
        assert row["val_gain"] == pytest.approx(start["val_log_rank"] - row["val_log_rank"])
