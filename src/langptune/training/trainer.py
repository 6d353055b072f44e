"""What both trainers share besides the callback: saving and resuming, their arguments, and the order of rows.

They inherit from ``Resumable``, which also repeats a step that does not fit in memory and gathers weights that are
sharded over processes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback

from langptune.config.recipes import Recipe
from langptune.errors import Interrupted, UserError
from langptune.randomness import stream, stream_seed
from langptune.training.checkpoints import KEPT, Checkpoints, step_of
from langptune.training.distributed import placement
from langptune.training.memory import halved, is_out_of_memory
from langptune.training.watch import Watch

T = TypeVar("T")


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
            step = step_of(path)
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
