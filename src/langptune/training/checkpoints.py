"""Checkpoints of trainings on clusters: sealed by hash, pruned, refused if they belong to another run.

They are outside the declared outputs (Snakemake deletes those of a failed job), in a folder named by the hash of the
run's identity, and are removed when the phase is finished. A checkpoint is valid only if its seal, written last, agrees
with its files; an incomplete or damaged one is skipped in favour of the previous one.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from langptune.config.recipes import Recipe
from langptune.errors import Interrupted, UserError
from langptune.files import own_folder, write_lines
from langptune.provenance import file_hash, write_json
from langptune.randomness import stream, stream_seed
from langptune.reading import read_json
from langptune.training.guard import gains

T = TypeVar("T")
SEAL = "seal.json"
KEPT = 2
"""Number of checkpoints on disk: the newest and, in case it is damaged, the previous one."""


def identity_hash(identity: dict[str, Any]) -> str:
    """A short hash of what defines a training run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Checkpoints:
    """The sealed checkpoints of one training run."""

    def __init__(self, folder: Path, identity: dict[str, Any], log: Callable[[str], None]):
        """``folder`` may be shared by runs; this run has a sub-folder named by the hash of ``identity``."""
        self.name = identity_hash(identity)
        # Private to this account: the trainer writes files there under its own names, and loads them again.
        self.folder = own_folder(Path(folder) / self.name)
        self._log = log

    def seal(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Mark a checkpoint as complete: store the hashes of its files, and the state of the run."""
        files = {p.relative_to(checkpoint).as_posix(): file_hash(p) for p in _files(checkpoint)}
        write_json(checkpoint / SEAL, {"run": self.name, "files": files, "state": state})

    def intact(self, checkpoint: Path) -> dict[str, Any] | None:
        """The state in a checkpoint's seal; None if it is missing or does not agree with the files.

        Raises:
            UserError: the checkpoint belongs to another run.
        """
        try:
            seal = read_json(checkpoint / SEAL)
            run, files, state = seal["run"], seal["files"], seal["state"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if run != self.name:
            raise UserError(
                f"{checkpoint}: a checkpoint of another run ({run}, this one is {self.name}); recipe, data or start "
                "have changed: move it away to train anew"
            )
        found = {p.relative_to(checkpoint).as_posix() for p in _files(checkpoint)}
        if found != set(files) or any(file_hash(checkpoint / name) != value for name, value in files.items()):
            return None
        return state

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest intact checkpoint and its state; damaged ones are removed and logged."""
        for path in sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True):
            state = self.intact(path)
            if state is not None:
                return path, state
            self._log(f"checkpoint {path.name} is incomplete or damaged; going back to the one before it")
            shutil.rmtree(path)
        return None

    def clear(self) -> None:
        """Remove everything of this run."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Watch(TrainerCallback):
    """Shared by both trainers: validation, selection, early stopping, the curve, progress, and SIGTERM.

    The seal of every checkpoint contains ``state``, so that a resumed run continues exactly.
    """

    def __init__(
        self,
        recipe: Recipe,
        steps_per_batch: int,
        checkpoints: Checkpoints,
        validate: Callable[[], dict[str, Any]],
        save_model: Callable[[Path], None],
        log: Callable[[str], None],
        main: bool = True,
        guard: Callable[[list[dict[str, Any]]], str | None] | None = None,
    ):
        """``validate`` returns at least ``ndcg``; ``save_model`` writes the trained model into a folder.

        Args:
            validate: may also return ``ranks``, int ``[S]``, of the same sessions every time: the curve then has the
                paired gain since the start (``langptune.training.guard.gains``).
            guard: returns why a run must stop, given its curve; None to continue.
        """
        self.recipe, self.checkpoints, self.log, self.main, self._guard = recipe, checkpoints, log, main, guard
        self._steps_per_batch, self._validate, self._save_model = steps_per_batch, validate, save_model
        self.state: dict[str, Any] = {
            "curve": [],
            "best": None,
            "best_step": 0,
            "bad": 0,
            "done": False,
            "seconds": 0.0,
            "resumed": 0,
            "pending": [],
            "start_ranks": None,
            "collapsed": None,
        }
        self.interrupted = False
        self._previous: Any = None
        self._started = time.monotonic()
        self._spent = 0.0
        self._training_began = self._started
        self._validations, self._validation_seconds = 0, 0.0
        self._sealed_best = 0

    @property
    def best(self) -> Path:
        """The folder of the selected state: the best so far; at the end of ``select: last``, the last."""
        return self._best(self.state["best_step"])

    def _best(self, batch: int) -> Path:
        return self.checkpoints.folder / f"best-{batch}"

    def snapshot(self) -> dict[str, Any]:
        """The current state, with the time spent in all resumed parts."""
        return {**self.state, "seconds": round(self._spent + time.monotonic() - self._started, 3)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state.

        Raises:
            UserError: the selected model beside the checkpoint is missing.
        """
        self.state = {**state, "resumed": state["resumed"] + 1}
        if not self.best.is_dir():
            raise UserError(f"{self.best}: missing, though a checkpoint names it; delete {self.best.parent} and rerun")
        self._spent = state["seconds"]
        self._sealed_best = state["best_step"]

    def record(self, **row: float) -> None:
        """Add measurements of one optimiser step to the curve; they are sealed: a batch may have several steps."""
        self.state["pending"].append(row)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Catch SIGTERM; validate the initial model."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._on_term)
        self._first_step = state.global_step
        self._training_began = time.monotonic()
        if state.global_step == 0:
            self._judge(0, args.device)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the handler of SIGTERM; after an interruption, ``Resumable.run`` does it later."""
        if not self.interrupted:
            self.release()

    def release(self) -> None:
        """Restore the handler of SIGTERM."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Update curve and progress, validate, and decide whether to save or stop."""
        step = state.global_step
        interrupted = anywhere(self.interrupted, args.device)
        batch, rest = divmod(step, self._steps_per_batch)
        if rest == 0:
            self._note(batch, state)
            if batch % self.recipe.validate_every == 0 or step == state.max_steps:
                self._judge(batch, args.device)
                if self.recipe.patience and self.state["bad"] >= self.recipe.patience:
                    self.log(f"no better validation NDCG in {self.state['bad']} validations: stopping early")
                    control.should_training_stop = True
                if self.state["collapsed"]:
                    self.log(
                        f"collapsed at batch {batch}: {self.state['collapsed']}; stopping, the best state before, of "
                        f"batch {self.state['best_step']}, is kept"
                    )
                    control.should_training_stop = True
        self.state["done"] = step == state.max_steps or control.should_training_stop
        last = self.recipe.select == "last" and not self.state["collapsed"]
        if self.state["done"] and last and self.state["best_step"] != batch:
            # Before the seal that says done: if the job is killed after that seal, its rerun does not train again.
            self.state["best_step"] = batch
            self._keep()
        if step % self.recipe.checkpoint_every == 0 or self.state["done"] or interrupted:
            control.should_save = True
        if interrupted:
            self.interrupted = control.should_training_stop = True

    def _on_term(self, *_: Any) -> None:
        if not self.interrupted:  # a scheduler may signal a process both directly and through its launcher
            self.log("SIGTERM: saving a checkpoint at the end of this step, then stopping")
        self.interrupted = True

    def _note(self, batch: int, state: TrainerState) -> None:
        rows, self.state["pending"] = self.state["pending"], []
        means: dict[str, Any] = {"batch": batch, "seconds": self.snapshot()["seconds"]}
        for key in rows[0] if rows else ():
            means[key] = sum(row[key] for row in rows if key in row) / sum(key in row for row in rows)
        self.state["curve"].append(means)
        left = self._seconds_left(batch, state)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in means.items() if key not in ("batch", "seconds"))
        total = state.max_steps // self._steps_per_batch
        self.log(f"{self.recipe.title} batch {batch}/{total}: {shown}; {_minutes(left)} left")
        self._write_curve()

    def _seconds_left(self, batch: int, state: TrainerState) -> float:
        """Estimated time of the remaining steps and validations, from their times so far in this process."""
        steps = state.global_step - self._first_step
        step_seconds = (time.monotonic() - self._training_began - self._validation_seconds) / steps
        validation_seconds = self._validation_seconds / max(1, self._validations)
        total = state.max_steps // self._steps_per_batch
        validations = math.ceil(total / self.recipe.validate_every) - (batch - 1) // self.recipe.validate_every
        return (state.max_steps - state.global_step) * step_seconds + validations * validation_seconds

    def _judge(self, batch: int, device: torch.device) -> None:
        # Rounding differs between processes: if each decided by its own values, one might stop while the others wait.
        began = time.monotonic()
        values = agreed(self._validate(), device)
        self._validations += 1
        self._validation_seconds += time.monotonic() - began
        ranks = values.pop("ranks", None)
        if batch == 0:
            self.state["start_ranks"] = ranks
        elif ranks is not None:
            values |= gains(self.state["start_ranks"], ranks)
        value = values["ndcg"]
        if batch == 0:
            self.state["curve"].append({"batch": 0, "seconds": self.snapshot()["seconds"]})
        self.state["curve"][-1].update({f"val_{key}": measured for key, measured in values.items()})
        # A collapsed state is not selected even if its NDCG is high: one text may suit many users.
        self.state["collapsed"] = self._guard(self.state["curve"]) if self._guard and batch else None
        if self.state["collapsed"]:
            self.state["curve"][-1]["collapsed"] = self.state["collapsed"]
        if self.state["best"] is None or (value > self.state["best"] and not self.state["collapsed"]):
            self.state.update(best=value, best_step=batch, bad=0)
            self._keep()
        else:
            self.state["bad"] += 1
        shown = ", ".join(
            f"{key} {measured:.4f}" + (f" ± {values[f'{key}_se']:.4f}" if f"{key}_se" in values else "")
            for key, measured in values.items()
            if not key.endswith("_se")
        )
        self.log(
            f"{self.recipe.title} batch {batch}: validation {shown} (best NDCG at batch {self.state['best_step']})"
        )
        self._write_curve()

    def _keep(self) -> None:
        """Store the current model as the selected one, atomically.

        The selected state of the newest checkpoint is kept until a newer checkpoint replaces it.
        """
        part = self.checkpoints.folder / "best.part"
        if self.main:
            shutil.rmtree(part, ignore_errors=True)
        self._save_model(part)
        if self.main:
            shutil.rmtree(self.best, ignore_errors=True)
            part.rename(self.best)

    def forget(self) -> None:
        """Remove best states that no checkpoint needs any more; called after a checkpoint is sealed."""
        for path in self.checkpoints.folder.glob("best-*"):
            if path not in (self.best, self._best(self._sealed_best)):
                shutil.rmtree(path, ignore_errors=True)
        self._sealed_best = self.state["best_step"]

    def _write_curve(self) -> None:
        """Write the curve so far for monitoring; the declared file is written at the end."""
        if self.main:
            write_lines(self.checkpoints.folder / "curve.jsonl", self.state["curve"])


class Resumable:
    """Mixin for ``transformers.Trainer``: sealed checkpoints and automatic resumption.

    The trainer sets ``watch``, ``checkpoints`` and ``_micro`` (the recipe's micro-batch) before ``run``.
    """

    watch: Watch
    checkpoints: Checkpoints
    _micro: int

    def fitting(self, work: Callable[[], T], rows: int, group: int = 1) -> T:
        """The result of ``work``, which is repeated with half the micro-batch whenever memory runs out.

        Args:
            rows: number of rows in this work; if it is smaller than the micro-batch, it is halved instead.
            group: number of rows that a micro-batch must keep together.

        Several processes would have to halve together: with them the error is raised, and the job restarts from its
        newest checkpoint.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error) or self.accelerator.num_processes > 1:
                    raise
                self._micro = halved(max(group, min(self._micro, rows)), group, self.watch.log)
                self.model.zero_grad()

    @contextlib.contextmanager
    def whole(self) -> Iterator[Any]:
        """The current model with all its weights in this process, for generation, ranking and saving.

        If training shards the weights over processes (FSDP), it is a copy into which they are gathered, so all
        processes must enter together.
        """
        if not self.is_fsdp_enabled:
            yield self.accelerator.unwrap_model(self.model)
            return
        copied = self._copy.state_dict()
        for name, value in self.model.state_dict().items():
            copied[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)
        yield self._copy

    def divisible(self) -> None:
        """Prepare for weights that are sharded over processes, or refuse the kinds that were never tested.

        Raises:
            UserError: DeepSpeed ZeRO-3, or the first version of FSDP.
        """
        state = self.accelerator.state
        if getattr(state, "deepspeed_plugin", None) is not None and state.deepspeed_plugin.zero_stage == 3:
            raise UserError("launch: zero_stage: 3 shards the weights and was never tested; use fsdp.yaml")
        if self.is_fsdp_enabled:
            if state.fsdp_plugin.fsdp_version != 2:
                raise UserError(f"launch: fsdp_version: set it to 2 (found {state.fsdp_plugin.fsdp_version})")
            self._copy = copy.deepcopy(self.model).requires_grad_(False)
            for module in self._copy.modules():
                module.__dict__.pop("forward", None)  # a wrapper's method, bound to the original

    def synchronised(self, model: Any, last: bool) -> Any:
        """A context in which processes exchange gradients only with the last micro-batch."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(model)

    def run(self) -> None:
        """Train to the end, from the newest intact checkpoint if there is one.

        Raises:
            Interrupted: SIGTERM was received; a checkpoint is saved.
        """
        if line := placement():
            self.watch.log(line)
        self.divisible()
        found = self.checkpoints.latest()
        self.remove_callback(PrinterCallback)
        if found:
            path, state = found
            self.watch.restore(state)
            step = _step(path)
            self.watch.log(f"resuming from {path.name}")
            if not state["done"]:
                self.resume_extra(path, step)
                self.train(resume_from_checkpoint=str(path))
        else:
            self.train()
        stopped = self.watch.interrupted and not self.watch.state["done"]
        if stopped:
            self.accelerator.wait_for_everyone()  # a process that exits before the seal would end the others
        self.watch.release()
        if stopped:
            raise Interrupted(
                f"stopped by SIGTERM at step {self.state.global_step}; the same command goes on from there"
            )

    def save_extra(self, folder: Path) -> None:
        """Save further data of a trainer in a checkpoint."""

    def resume_extra(self, folder: Path, step: int) -> None:
        """Load the data that ``save_extra`` wrote."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        super()._save_checkpoint(model, trial)
        self.save_extra(folder)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.checkpoints.seal(folder, self.watch.snapshot())
            self.watch.forget()


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process: signals may arrive in different steps, but all must stop in the same."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    shared = torch.tensor(int(flag), device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared.item())


def agreed(value: T, device: torch.device) -> T:
    """The first process's value, in every process; ``value`` itself if there is only one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=device)
    return values[0]


def placement() -> str | None:
    """The number of processes and their nodes, as a line for the log; None for a single process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    names = list(dict.fromkeys(hosts))
    return f"{len(hosts)} processes on {len(names)} node{'s' * (len(names) > 1)}: {', '.join(names)}"


def training_arguments(
    recipe: Recipe, checkpoints: Checkpoints, steps: int, bf16: bool, seed: int, phase: str
) -> dict[str, Any]:
    """Arguments of ``transformers`` for both trainers.

    Gradient accumulation stays at 1: our trainers get all rows of an optimiser step at once and split them into
    micro-batches themselves, so that a step that does not fit can be repeated with smaller ones.

    Args:
        phase: ``Phase.stream``. The libraries' random numbers (LoRA's initial weights) depend on it too.
    """
    own = stream_seed(seed, phase, "libraries") % 2**31  # transformers also seeds numpy, which allows no more
    return {
        "output_dir": str(checkpoints.folder),
        "max_steps": steps,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "adam_epsilon": recipe.adam_epsilon,
        "warmup_steps": round(recipe.warmup * steps),
        "lr_scheduler_type": "linear",
        "max_grad_norm": recipe.max_grad_norm,
        "gradient_accumulation_steps": 1,
        "bf16": bf16,
        "seed": own,
        "data_seed": own,
        "save_strategy": "no",  # Watch asks for saves
        "save_total_limit": KEPT,
        "logging_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
    }


def row_order(rows: int, needed: int, seed: int, phase: str) -> np.ndarray:
    """int64 ``[needed]``: rows for all batches of a phase (``Phase.stream``), as concatenated permutations."""
    rng = stream(seed, phase, "order of sessions")
    return np.concatenate([rng.permutation(rows) for _ in range(-(-needed // rows))])[:needed]


def halved(micro: int, group: int, log: Callable[[str], None]) -> int:
    """The next smaller micro-batch, a multiple of ``group``.

    Raises:
        UserError: it cannot be smaller.
    """
    smaller = micro // 2 // group * group
    if smaller < group:
        raise UserError(
            f"out of memory with a micro-batch of {micro}, which cannot be halved; use shorter texts, a smaller model "
            "or a machine with more memory"
        )
    log(f"out of memory with a micro-batch of {micro}: repeating the step with {smaller}")
    return smaller


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and p.name != SEAL and not p.name.startswith(".")]


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
