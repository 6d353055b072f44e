"""The callback of both trainers: it validates, selects the best state, stops early, and records the curve.

It also handles SIGTERM: all processes stop after the same step, with a checkpoint. A resumed run continues from its
``state``, which the seal of every checkpoint contains (``langptune.training.checkpoints``).
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from langptune.config.recipes import Recipe
from langptune.errors import UserError
from langptune.files import write_lines
from langptune.training.checkpoints import Checkpoints
from langptune.training.distributed import agreed, anywhere
from langptune.training.guard import gains


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


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
