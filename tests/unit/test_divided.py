"""Weights sharded over processes (FSDP): trained, ranked with, saved, stopped and resumed, on two CPU processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

RECORDED = yaml.safe_load((Path(__file__).parent / "trajectories.yaml").read_text())
WORKER = """
import json, os, sys, torch
sys.path[:0] = [{root!r}]
torch.set_num_threads(1)
from pathlib import Path

import accelerate.state
from accelerate.utils import DistributedType

# accelerate divides weights on accelerators only. What divides them (torch's fully_shard) runs on a CPU as well.
made = accelerate.state.PartialState.__init__
def on_cpu(self, *args, **kwargs):
    made(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
accelerate.state.PartialState.__init__ = on_cpu

from torch.distributed.tensor import DTensor
from langptune.errors import Interrupted
from tests import planted as p
from tests.unit.test_training import losses

out, first = Path(sys.argv[1]), os.environ["RANK"] == "0"
recorded = {{}}
# Made before the processes know each other: transformers lets the first one alone write files then.
decoders, judge = [p.tiny_decoder() for _ in range(4)], p.tiny_decoder()
KINDS = {{
    "cl": lambda folder: p.decoder_trainer(
        folder, p.contrastive(batches=4, checkpoint_every=1, select="last"), model=decoders.pop()
    ),
    "rlso": lambda folder: p.policy_trainer(
        folder,
        p.reinforcement(batches=3, epochs=2, kl=0.1, micro_batch=4, checkpoint_every=1, select="last"),
        decoder=judge,
    ),
}}


def gathered(trainer):
    return {{k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in trainer.model.state_dict().items()}}


for kind, make in KINDS.items():
    straight = make(out / kind / "straight")
    straight.run()
    stopped = make(out / kind / "stopped")
    on_end = stopped.watch.on_step_end

    def stop(args, state, control, **rest):
        # The signal reaches one process, within a batch of RLSO.
        if state.global_step == 3 and not first:
            stopped.watch._on_term()
        on_end(args, state, control, **rest)

    stopped.watch.on_step_end = stop
    try:
        stopped.run()
        interrupted = False
    except Interrupted:
        interrupted = True
    resumed = make(out / kind / "stopped")
    resumed.run()
    ends = [gathered(trainer) for trainer in (straight, resumed)]
    curves = [
        [{{k: v for k, v in row.items() if "seconds" not in k}} for row in trainer.watch.state["curve"]]
        for trainer in (straight, resumed)
    ]
    recorded[kind] = {{
        "divided": sum(isinstance(weight, DTensor) for weight in straight.model.parameters()),
        "weights": len(list(straight.model.parameters())),
        "loss": losses(straight),
        "val_ndcg": [row["val_ndcg"] for row in straight.watch.state["curve"] if "val_ndcg" in row],
        "kept": str(straight.watch.best),
        "interrupted": interrupted,
        "resumed": resumed.watch.state["resumed"],
        "same weights": all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]),
        "curves": curves,
    }}

# Early stopping: each process measures other values, by which the second one would stop at once.
trainer = p.decoder_trainer(out / "early", p.contrastive(batches=4, validate_every=1, patience=1), model=decoders.pop())
calls = []
def measured():
    calls.append(1)
    return {{"ndcg": 0.1 + 0.01 * len(calls) * (1 if first else -1)}}
trainer.watch._validate = measured
trainer.run()
state = trainer.watch.state
recorded["early"] = {{"calls": len(calls), "best": state["best"], "batch": state["best_step"]}}
(out / f"recorded-{{os.environ['RANK']}}.json").write_text(json.dumps(recorded))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> list[dict]:
    """Results of each of the two processes."""
    out = tmp_path_factory.mktemp("divided")
    script = out / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT)))
    settings = yaml.safe_load((ROOT / "config" / "accelerate" / "fsdp.yaml").read_text())["fsdp_config"]
    environment = {key.upper(): str(value) for key, value in settings.items()}  # as `accelerate launch` passes them on
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(script), str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "ACCELERATE_USE_CPU": "1", "ACCELERATE_USE_FSDP": "true"},
        timeout=570,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"recorded-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["cl", "rlso"])
def test_divided_weights_follow_the_recorded_trajectory(recorded, kind):
    first = recorded[0][kind]
    assert first["divided"] == first["weights"] > 0
    assert first["loss"] == pytest.approx(RECORDED[kind]["loss"], rel=2e-3, abs=1e-5)
    assert first["val_ndcg"] == pytest.approx(RECORDED[kind]["val_ndcg"], rel=2e-3)


@pytest.mark.parametrize("kind", ["cl", "rlso"])
def test_a_run_with_divided_weights_resumes_to_the_same_weights(recorded, kind):
    for process in recorded:
        found = process[kind]
        assert found["interrupted"] and found["resumed"] == 1, "one process heard the signal, both stopped"
        assert found["same weights"] and found["curves"][0] == found["curves"][1]


def test_what_is_saved_of_divided_weights_is_the_whole_model(recorded):
    """The saved model loads like any other, has the initial shapes, and ranks as in validation."""
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer

    from langptune.models.load import load_adapter
    from langptune.training.reward import Reward, validation_metrics
    from tests import planted as p

    data = p.planted(train=40, val=10)
    model = SentenceTransformer(recorded[0]["cl"]["kept"], device="cpu")
    texts = [" ".join(data.items[item] for item in shown) for shown in data.history["val"]]
    reward = Reward(model, p.scoring(model, data.items))
    found = validation_metrics(reward.ranks(texts, data.target["val"], data.history["val"]))
    assert (
        found["ndcg"] == pytest.approx(recorded[0]["cl"]["val_ndcg"][-1], abs=1e-6)
        and "best-4" in recorded[0]["cl"]["kept"]
    )

    adapter = Path(recorded[0]["rlso"]["kept"])
    load_adapter(p.tiny_encoder(), adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    assert len(weights) == 28 and all(min(weight.shape) == 8 for weight in weights.values()), "LoRA of rank 8, whole"
    assert all(weight.any() for weight in weights.values()), "trained"


def test_early_stopping_is_decided_once(recorded):
    assert recorded[0]["early"] == recorded[1]["early"] == {"calls": 5, "best": pytest.approx(0.15), "batch": 4}
