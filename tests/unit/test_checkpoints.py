"""Checkpoints are sealed, pruned or refused; a run that is stopped or killed ends with the same bytes."""

from __future__ import annotations

import errno
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerState

from langptune.data import contracts
from langptune.errors import EXIT_AGAIN, Interrupted, UserError
from langptune.provenance import Record, file_hash
from langptune.ranking.decoder import embed_items
from langptune.training.checkpoints import SEAL, Checkpoints
from tests import planted as p
from tests.conftest import ROOT, single_thread

pytestmark = pytest.mark.usefixtures("one_thread")


KINDS = {
    "rlso": lambda folder, log: p.policy_trainer(
        folder, p.reinforcement(batches=4, minibatches=2, checkpoint_every=1, validate_every=2, kl=0.1), log=log
    ),
    # Log pi_t and the states of the frozen layers come from the first of three passes.
    "groups": lambda folder, log: p.policy_trainer(
        folder,
        p.reinforcement(
            batches=4,
            samples=4,
            sessions_per_batch=4,
            epochs=3,
            checkpoint_every=1,
            validate_every=2,
            train={"lora_rank": 8, "last_layers": 1},
        ),
        log=log,
    ),
    "cl": lambda folder, log: p.decoder_trainer(
        folder, p.contrastive(batches=12, checkpoint_every=1, validate_every=4), log=log
    ),
    "cl-edited": lambda folder, log: p.decoder_trainer(
        folder,
        p.contrastive(batches=12, checkpoint_every=1, validate_every=4, edited_share=0.5, anchor=0.5),
        log=log,
    ),
}


def without_seconds(curve: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in curve]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [1, 6, 11])
def test_stopped_within_a_batch_then_resumed_is_bit_for_bit_the_same(tmp_path, kind, at):
    straight = KINDS[kind](tmp_path / "a", lambda line: None)
    straight.run()
    first = KINDS[kind](tmp_path / "b", lambda line: None)
    on_end = first.watch.on_step_end

    def stop(args, state, control, **rest):
        if state.global_step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        on_end(args, state, control, **rest)

    first.watch.on_step_end = stop
    with pytest.raises(Interrupted, match=f"step {at}"):
        first.run()
    lines = []
    second = KINDS[kind](tmp_path / "b", lines.append)
    second.run()
    assert f"resuming from checkpoint-{at}" in lines
    for name, value in p.weights(straight.model).items():
        assert torch.equal(p.weights(second.model)[name], value), name
    curves = [without_seconds(trainer.watch.state["curve"]) for trainer in (straight, second)]
    assert curves[0] == curves[1], "whole rows, also of the batch that was interrupted"
    if kind == "rlso":
        assert {"reward", "finished", "tokens", "kl", "entropy", "loss"} <= set(curves[1][-(-at // 4)])
    assert file_hash(straight.watch.best) == file_hash(second.watch.best)
    assert second.watch.state["resumed"] == 1
    kept = sorted(path.name for path in second.checkpoints.folder.glob("checkpoint-*"))
    assert len(kept) == 2, "old checkpoints are pruned"


def test_a_finished_run_is_not_trained_again(tmp_path):
    KINDS["cl"](tmp_path, lambda line: None).run()
    lines = []
    again = KINDS["cl"](tmp_path, lines.append)
    again.run()
    assert lines == ["resuming from checkpoint-12"] and again.watch.best.is_dir()


def test_damaged_checkpoints_are_passed_over(tmp_path):
    trainer = KINDS["cl"](tmp_path, lambda line: None)
    trainer.run()
    newest, before = trainer.checkpoints.folder / "checkpoint-12", trainer.checkpoints.folder / "checkpoint-11"
    with (newest / "optimizer.pt").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"garbage")
    lines = []
    checkpoints = Checkpoints(tmp_path, {"recipe": trainer._recipe.model_dump(mode="json")}, lines.append)
    assert checkpoints.latest()[0] == before
    assert "checkpoint-12 is incomplete or damaged" in lines[0] and not newest.exists()
    (before / SEAL).unlink()
    assert checkpoints.latest() is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    trainer = KINDS["cl"](tmp_path, lambda line: None)
    trainer.run()
    other = Checkpoints(tmp_path, {"recipe": "another"}, print)
    shutil.copytree(trainer.checkpoints.folder / "checkpoint-12", other.folder / "checkpoint-12")
    with pytest.raises(UserError, match="checkpoint of another run"):
        other.latest()


def test_a_batch_of_another_number_of_processes_is_refused(tmp_path):
    first = KINDS["rlso"](tmp_path, lambda line: None)
    on_end = first.watch.on_step_end

    def stop(args, state, control, **rest):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        on_end(args, state, control, **rest)

    first.watch.on_step_end = stop
    with pytest.raises(Interrupted):
        first.run()
    folder = first.checkpoints.folder / "checkpoint-1"
    (folder / "rollouts-0-of-1.safetensors").rename(folder / "rollouts-0-of-2.safetensors")
    with pytest.raises(UserError, match="within a batch of another number of processes"):
        KINDS["rlso"](tmp_path, print).resume_extra(folder, 1)


def test_early_stop_keeps_the_best(tmp_path):
    trainer = p.decoder_trainer(tmp_path, p.contrastive(batches=40, learning_rate=0.5, validate_every=1, patience=2))
    trainer.run()
    curve = trainer.watch.state["curve"]
    assert len(curve) < 41 and trainer.watch.state["bad"] == 2
    values = [row["val_ndcg"] for row in curve]
    assert trainer.watch.state["best"] == max(values) and trainer.watch.best.name == f"best-{values.index(max(values))}"


def test_the_time_left_counts_validations_apart(tmp_path):
    recipe = p.contrastive(batches=100, validate_every=50)
    trainer = p.decoder_trainer(tmp_path, recipe)
    watch, now = trainer.watch, time.monotonic()
    watch._first_step, watch._training_began = 0, now - 110
    watch._validations, watch._validation_seconds = 1, 60.0
    # What remains is 90 steps of 5 seconds and the validations of batches 50 and 100.
    left = watch._seconds_left(10, TrainerState(global_step=10, max_steps=100))
    assert left == pytest.approx(90 * 5 + 2 * 60, rel=0.01)
    assert watch._seconds_left(100, TrainerState(global_step=100, max_steps=100)) == pytest.approx(60, rel=0.01)


# The scripts themselves, killed


def write_files(folder: Path) -> Path:
    """Planted data in the files that the training scripts read, and tiny models in folders."""
    data = p.planted(train=40, val=10)
    folder.mkdir(parents=True, exist_ok=True)
    items = pl.DataFrame(
        {
            "item": range(len(data.items)),
            "item_id": [str(i) for i in range(len(data.items))],
            "title": data.items,
            "text": data.items,
            "first_seen": [0] * len(data.items),
        },
        schema=contracts.ITEMS,
    )
    rows = [
        (split, h, t)
        for split in ("train", "val")
        for h, t in zip(data.history[split], data.target[split], strict=True)
    ]
    sessions = pl.DataFrame(
        {
            "session": range(len(rows)),
            "user_id": [f"u{i}" for i in range(len(rows))],
            "split": [row[0] for row in rows],
            "history": [row[1] for row in rows],
            "ratings": [[4.0] * len(row[1]) for row in rows],
            "reviews": [None] * len(rows),
            "seen": [row[1] for row in rows],
            "target": [row[2] for row in rows],
            "target_time": [0] * len(rows),
        },
        schema=contracts.SESSIONS,
    )
    contracts.write(items, folder / "items.parquet", "items")
    contracts.write(sessions, folder / "sessions.parquet", "sessions")
    contracts.write(sessions.select("session", "split"), folder / "training.parquet", "evaluation")
    contracts.write(pl.DataFrame({"user_id": sessions["user_id"]}), folder / "users.parquet", "users")
    p.tiny_encoder().save_pretrained(folder / "encoder")
    p.tokenizer().save_pretrained(folder / "encoder")
    decoder = p.tiny_decoder()
    decoder.save_pretrained(str(folder / "decoder"), create_model_card=False)
    embed_items(decoder, data.items)[0].save(folder / "vectors.safetensors")
    return folder


MODEL = {"title": "tiny", "source": {"folder": "unset"}, "licence": "none", "parameters": 1}
DECODER = {**MODEL, "role": "decoder", "pooling": "mean", "dimensions": 32, "max_tokens": 64}
ENCODER = {**MODEL, "role": "encoder", "context": 128, "max_prompt_tokens": 64}


def spec_of(kind: str, data: Path, out: Path, **changes) -> dict:
    """The spec of one training script, single-threaded."""
    common = {
        "decoder": DECODER,
        "decoder_in": str(data / "decoder"),
        "items_in": str(data / "items.parquet"),
        "sessions_in": str(data / "sessions.parquet"),
        "training_in": str(data / "training.parquet"),
        "threads": 1,
        "base": "tiny",
        "phase": "test",
        "dataset": "Planted (none)",
        "checkpoints": str(out / "checkpoints"),
        "curve_out": str(out / "curve.jsonl"),
    }
    if kind == "cl":
        texts = {"texts": "history", "history_items": 5}
        recipe = p.contrastive(**{"batches": 40, "checkpoint_every": 4, "validate_every": 10, **texts, **changes})
        own = {"decoder_out": str(out / "model")}
    else:
        recipe = p.reinforcement(**{"batches": 20, "checkpoint_every": 3, "validate_every": 5, **changes})
        own = {
            "encoder": ENCODER,
            "encoder_in": str(data / "encoder"),
            "vectors_in": str(data / "vectors.safetensors"),
            "prompt": "p",
            "prompt_entry": {"template": "watched {% for item in history %}{{ item.title }} {% endfor %}"},
            "history_items": 5,
            "max_tokens": 6,
            "users_in": str(data / "users.parquet"),
            "encoder_out": str(out / "model"),
        }
    return {**common, **own, "recipe": recipe.model_dump(mode="json")}


def command(kind: str, spec: dict) -> list[str]:
    script = ROOT / "scripts" / ("train_decoder.py" if kind == "cl" else "train_encoder.py")
    return [sys.executable, str(script), "--spec", json.dumps(spec)]


def weights_file(out: Path) -> Path:
    return next(path for path in sorted((out / "model").rglob("*.safetensors")))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("kind", ["cl", "rlso"])
def test_killed_at_random_moments_gives_the_same_bytes(tmp_path, data, kind):
    """Kill after a random number of progress lines. KILLS=20 is the long version, which prints what it cost."""
    done = subprocess.run(command(kind, spec_of(kind, data, tmp_path / "a")), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rng = random.Random(int(os.environ.get("KILL_SEED", "0")))
    started, kills, wanted = time.monotonic(), 0, int(os.environ.get("KILLS", "2"))
    while kills < wanted:
        child = subprocess.Popen(
            command(kind, spec_of(kind, data, tmp_path / "b")),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        left = rng.randint(3, 9)
        for line in child.stderr:
            left -= "batch" in line
            if left <= 0:
                child.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                kills += 1
                break
        child.communicate()
        if child.returncode == 0:
            shutil.rmtree(tmp_path / "b")  # it finished before it was killed, so start again
    done = subprocess.run(command(kind, spec_of(kind, data, tmp_path / "b")), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert weights_file(tmp_path / "a").read_bytes() == weights_file(tmp_path / "b").read_bytes()
    assert not list((tmp_path / "b" / "checkpoints").glob("*/checkpoint-*")), "checkpoints go when the phase is done"
    notes = [json.loads((tmp_path / x / "model" / "manifest.json").read_text())["notes"] for x in "ab"]
    print(f"{kind}: {kills} kills in {time.monotonic() - started:.0f} s, resumed {notes[1]['resumed']} times")


KILLED = """
import importlib, json, os, signal, sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from langptune.provenance import Record
script = importlib.import_module(sys.argv[1])
script.whole_folder = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
spec = script.Spec.model_validate(json.loads(sys.argv[2]))
script.work(spec, Record(Path(script.__file__), spec.model_dump(mode="json")), lambda line: None)
"""


@pytest.mark.parametrize(("kind", "how"), [("cl", "disk full"), ("rlso", "disk full"), ("cl", "killed")])
def test_the_last_state_survives_between_the_last_seal_and_the_output(tmp_path, data, kind, how, monkeypatch):
    """Run the script itself, and stop it after the training is sealed as done but before the output is written."""
    name = f"scripts.{'train_decoder' if kind == 'cl' else 'train_encoder'}"
    script = importlib.import_module(name)
    # The best state on validation must not be the last one.
    changes = {"select": "last", "learning_rate": 0.05 if kind == "cl" else 2e-3, "batches": 6, "validate_every": 1}

    def work(out: Path) -> None:
        spec = script.Spec.model_validate(spec_of(kind, data, out, **changes))
        script.work(spec, Record(Path(script.__file__), spec.model_dump(mode="json")), lambda line: None)

    work(tmp_path / "a")
    curve = [json.loads(line) for line in (tmp_path / "a" / "curve.jsonl").read_text().splitlines()]
    values = [row["val_ndcg"] for row in curve]
    if how == "killed":
        spec = json.dumps(spec_of(kind, data, tmp_path / "b", **changes))
        done = subprocess.run([sys.executable, "-c", KILLED.format(root=str(ROOT)), name, spec], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        with monkeypatch.context() as patch:
            full = OSError(errno.ENOSPC, "No space left on device")
            patch.setattr(script, "whole_folder", lambda *_: (_ for _ in ()).throw(full))
            with pytest.raises(OSError, match="No space"):
                work(tmp_path / "b")
    assert not (tmp_path / "b" / "model").exists()
    work(tmp_path / "b")
    assert weights_file(tmp_path / "a").read_bytes() == weights_file(tmp_path / "b").read_bytes()
    start = data / "decoder" / "model.safetensors"
    if kind == "cl":
        assert weights_file(tmp_path / "b").read_bytes() != start.read_bytes() and values[-1] < max(values)
    else:
        trained = load_file(weights_file(tmp_path / "b"))
        assert any(value.any() for name, value in trained.items() if "lora_B" in name)
    again = [json.loads(line) for line in (tmp_path / "b" / "curve.jsonl").read_text().splitlines()]
    assert without_seconds(again) == without_seconds(curve)


def test_sigterm_exits_with_the_code_to_run_again(tmp_path, data):
    child = subprocess.Popen(command("rlso", spec_of("rlso", data, tmp_path)), stderr=subprocess.PIPE, text=True)
    seen = ""
    for line in child.stderr:
        seen += line
        if "batch 2/" in line:
            child.terminate()
            break
    rest = child.communicate()[1]
    assert child.returncode == EXIT_AGAIN, seen + rest
    assert "the same command goes on from there" in rest
    assert "Traceback" not in seen + rest
    assert not (tmp_path / "model").exists()


def test_model_card_and_plain_adapter(tmp_path, data):
    done = subprocess.run(command("rlso", spec_of("rlso", data, tmp_path, batches=3)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft" and "Planted (none)" in card and "40 train sessions" in card
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(p.tiny_encoder(), str(tmp_path / "model"))
    assert any("lora_" in name for name, _ in loaded.named_parameters())
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["batch"] for row in curve] == [0, 1, 2, 3] and {"reward", "tokens", "finished", "loss"} <= set(curve[1])


def test_the_script_gives_every_reward_and_term_what_it_needs(tmp_path, data):
    terms = dict.fromkeys(("unfinished", "repetition", "list", "length", "copied", "false_claims", "steering"), -0.1)
    changes = {"reward": {"log-rank": 1.0, "title": 0.1}, "targets": 3, "terms": terms, "unfinished": "score"}
    spec = spec_of("rlso", data, tmp_path, batches=2, validate_every=1, **changes)
    done = subprocess.run(command("rlso", spec), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    start, row, _ = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert {"reward", "log-rank", "title", *terms} <= row.keys() and {"val_own", "val_log_rank"} <= start.keys()
    assert row["reward"] == pytest.approx(row["log-rank"] + 0.1 * row["title"]) and row["title"] < 0
    assert 0 < row["copied"] < 1 and row["unfinished"] <= row["length"], "who is cut off is as long as can be"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| log_rank |" in card and "_se |" not in card


def test_bad_inputs_stop_before_training(tmp_path, data):
    empty = pl.read_parquet(data / "training.parquet").filter(pl.col("split") == "val")
    contracts.write(empty, tmp_path / "training.parquet", "evaluation")
    spec = {**spec_of("rlso", data, tmp_path), "training_in": str(tmp_path / "training.parquet")}
    done = subprocess.run(command("rlso", spec), capture_output=True, text=True)
    assert done.returncode == 2 and "no train session" in done.stderr and "Traceback" not in done.stderr


RECORDED = yaml.safe_load((Path(__file__).parent / "trajectories.yaml").read_text())


def trajectories(out: Path) -> dict[str, dict[str, list[float]]]:
    """Losses and validation NDCG of each kind of ``RECORDED``, trained in this process and those launched with it."""
    # All models are made first: once processes know each other, transformers lets only the first one write files.
    decoders = {kind: p.tiny_decoder() for kind in RECORDED}
    trainers = {
        "rlso": lambda folder, decoder: p.policy_trainer(
            folder, p.reinforcement(batches=3, epochs=2, kl=0.1, micro_batch=4), decoder=decoder
        ),
        "grpo": lambda folder, decoder: p.policy_trainer(
            folder, p.reinforcement(batches=3, algorithm="grpo", samples=4, sessions_per_batch=4), decoder=decoder
        ),
        "cl": lambda folder, decoder: p.decoder_trainer(folder, p.contrastive(batches=4), model=decoder),
        "cl-groups": lambda folder, decoder: p.decoder_trainer(
            folder, p.contrastive(batches=4, negatives=4), model=decoder
        ),
        "cl-edited": lambda folder, decoder: p.decoder_trainer(
            folder, p.contrastive(batches=4, edited_share=0.3, anchor=2.0), model=decoder
        ),
    }
    found = {}
    for kind in RECORDED:
        trainer = trainers[kind](out / kind, decoders[kind])
        trainer.run()
        curve = trainer.watch.state["curve"]
        found[kind] = {key: [row[key] for row in curve if key in row] for key in ("loss", "val_ndcg")}
    return found


LAUNCHED = """
import json, os, sys, torch
sys.path[:0] = [{root!r}]
torch.set_num_threads(1)
from pathlib import Path
from tests.unit.test_checkpoints import trajectories
found = trajectories(Path(sys.argv[1]))
if os.environ["RANK"] == "0":
    Path(sys.argv[1], "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> dict[int, dict[str, dict[str, list[float]]]]:
    """Number of processes -> the trajectories; two processes talk by gloo."""
    out = tmp_path_factory.mktemp("trajectories")
    (out / "two.py").write_text(LAUNCHED.format(root=str(ROOT)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(out / "two.py"), str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with single_thread():  # this fixture is set up before the functions' own
        one = trajectories(out / "one")
    return {1: one, 2: json.loads((out / "found.json").read_text())}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", RECORDED)
def test_one_process_and_two_follow_the_recorded_trajectory(followed, kind, processes):
    """On one process and on two, losses equal those of a recorded run: nothing is silently rescaled."""
    found = followed[processes][kind]
    assert found["val_ndcg"] == pytest.approx(RECORDED[kind]["val_ndcg"], rel=2e-3)
    assert found["loss"] == pytest.approx(RECORDED[kind]["loss"], rel=2e-3, abs=1e-5)
