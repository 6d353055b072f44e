"""The training loop of RLSO: generate profiles, score them, make several passes, step.

A batch is ``sessions_per_batch`` train sessions with ``samples`` profiles each, divided over the processes. The current
policy (pi_t) generates the profiles, they are scored once, and ``epochs`` passes of ``minibatches`` optimiser steps
follow. The algorithms differ in two functions only (``langptune.training.algorithms``).

Each session's prompt is computed once per pass, with its profiles side by side after it (``rows_of``), and the frozen
lower layers once per batch (``FrozenTrunk``). If pi_t itself makes the first pass (no KL term, one optimiser step per
pass), its log-probabilities are those of that pass. Otherwise a pass without gradients computes them.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import get_peft_model
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from langptune.config.recipes import ReinforcementRecipe
from langptune.errors import UserError
from langptune.gpus import refuse_several
from langptune.launch import join
from langptune.profiles.generate import Profile, Reader, generate_batch, plan_batches
from langptune.randomness import seed_torch, stream_seed
from langptune.training.algorithms import algorithm, standardised
from langptune.training.batch import Batch
from langptune.training.checkpoints import Checkpoints
from langptune.training.guard import Guard, examined
from langptune.training.memory import halved, is_out_of_memory
from langptune.training.policy import (
    FrozenTrunk,
    adapter_config,
    first_trained_layer,
    row_logprobs,
    save_adapter,
    start_from,
)
from langptune.training.reward import Reward, Sessions
from langptune.training.trainer import Resumable, row_order, training_arguments
from langptune.training.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROLLOUTS = "rollouts-{process}-of-{processes}.safetensors"
"""The profiles of an unfinished batch in a checkpoint, one file per process."""


class PolicyTrainer(Resumable, Trainer):
    """Trains a causal language model on ``Sessions`` by a reinforcement recipe."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        train: Sessions,
        validation: Sessions,
        reward: Reward,
        recipe: ReinforcementRecipe,
        checkpoints: Checkpoints,
        max_tokens: int,
        seed: int,
        phase: str,
        bf16: bool,
        log: Callable[[str], None],
        start: Path | None = None,
        validation_batch: int = 32,
        starts: str = "",
    ):
        """Set up the training of an adapter of ``model``, the initial encoder.

        Args:
            max_tokens: limit on a profile in validation, and in training unless the recipe sets another.
            seed, phase: (``Phase.stream``) determine the random streams.
            bf16: matrix products in bfloat16.
            start: the adapter of an earlier phase to continue from.
            validation_batch: profiles per generation batch in validation.
            starts: the beginning of the reply, with which every prompt's token ids end.

        Raises:
            UserError: the recipe does not fit the model or the number of processes.
        """
        self._train, self._validation, self._reward, self._recipe = train, validation, reward, recipe
        self._seed, self._phase, self._validation_batch, self._starts = seed, phase, validation_batch, starts
        self._tokenizer, self._max_tokens, self._limit = tokenizer, max_tokens, recipe.max_tokens or max_tokens
        self._algorithm = algorithm(recipe.algorithm, {"eta": recipe.eta, **recipe.settings})
        self._micro = recipe.micro_batch
        self._steps = recipe.epochs * recipe.minibatches
        self._batch: tuple[int, Batch] | None = None
        self.checkpoints = checkpoints

        join(cpu=model.device.type == "cpu")
        arguments = TrainingArguments(
            **training_arguments(recipe, checkpoints, recipe.batches * self._steps, bf16, seed, phase),
            per_device_train_batch_size=1,  # the inputs of a step are its number, from which the sessions follow
            ignore_data_skip=True,
            use_cpu=model.device.type == "cpu",
        )
        refuse_several(arguments.n_gpu)
        if (each := recipe.sessions_per_batch // recipe.minibatches) % arguments.world_size:
            raise UserError(
                f"{recipe.title}: {each} sessions per optimiser step do not divide over {arguments.world_size} "
                "processes; change sessions_per_batch or minibatches"
            )
        cut = first_trained_layer(recipe.train, model)
        self._read = Reader(model, tokenizer, starts)
        seed_torch(arguments.seed)  # torch's global generator initialises LoRA
        policy = get_peft_model(model, adapter_config(model, recipe.train), autocast_adapter_dtype=False)
        start_from(policy, start)
        for module in policy.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # dropout would make pi_t and pi_theta differ
        super().__init__(
            model=policy,
            args=arguments,
            train_dataset=list(range(recipe.batches * self._steps * arguments.world_size)),
            data_collator=lambda steps: {"step": torch.tensor(steps)},
        )
        needed = recipe.batches * recipe.sessions_per_batch
        self._order = row_order(len(train.sessions), needed, seed, phase).tolist()
        self._trunk = FrozenTrunk(self.model.get_base_model(), cut) if cut and recipe.cache_frozen else None
        self._vllm = self._engine() if recipe.vllm else None
        main = self.accelerator.is_main_process
        guard = Guard(recipe.guard)
        self.watch = Watch(recipe, self._steps, checkpoints, self.validate, self._save_best, log, main, guard)
        self.add_callback(self.watch)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return inputs

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the inputs of a step are its number."""
        return 0

    # One optimiser step

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute the gradients of one optimiser step; before a batch's first step, write and score its profiles.

        Raises:
            UserError: the run was resumed within a batch whose profiles are lost.
        """
        model.eval()  # disables any dropout
        number, step = divmod(self.state.global_step, self._steps)
        row: dict[str, float] = {}
        if self._batch is None or self._batch[0] != number:
            batch, row = self._write_and_score(number)
            self._batch = number, batch
        batch = self._batch[1]
        if not batch.rows:
            batch.arrange(self._plain)
        started = time.monotonic()
        each = len(batch.prompts) // self._recipe.minibatches
        first = step % self._recipe.minibatches * each
        loss, entropy = self._fitting_pass(batch, range(first, first + each), model, entropy=step == 0)
        row = {"loss": float(loss)} | row | {"update_seconds": time.monotonic() - started}
        if step == 0:
            row.setdefault("entropy", entropy)
        # Every process has the same number of sessions, so the mean of their means is that of the batch.
        values = torch.tensor(list(row.values()), dtype=torch.float64, device=self.accelerator.device)
        shared = self.accelerator.gather(values[None]).mean(0).tolist()
        self.watch.record(**dict(zip(row, shared, strict=True)))
        return loss

    def _write_and_score(self, number: int) -> tuple[Batch, dict[str, float]]:
        """This process's part of a batch, and the means over the whole batch."""
        recipe, clock = self._recipe, [time.monotonic()]
        drawn = self._order[number * recipe.sessions_per_batch :][: recipe.sessions_per_batch]
        share = len(drawn) // self.accelerator.num_processes
        here = slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)
        prompts = [self._train.prompts[row] for row in drawn[here]]
        every = slice(here.start * recipe.samples, here.stop * recipe.samples)
        written = self._written(prompts, self._seeds(number, drawn)[every])
        clock.append(time.monotonic())

        columns, distinct = self._measured(written, [row for row in drawn[here] for _ in range(recipe.samples)])
        combined = self._reward.combine(columns, [self._train.sessions[row] for row in drawn], number)
        rewards = torch.tensor(combined).view(-1, recipe.samples)
        means = {name: float(values.mean()) for name, values in columns.items()} | {"distinct": distinct}
        clock.append(time.monotonic())

        batch = Batch(prompts, [profile.ids for profile in written], torch.empty(0)).arrange(self._plain)
        if recipe.kl or (self._algorithm.ratio and recipe.minibatches > 1):
            _, means["entropy"] = self._fitting_pass(batch, range(share), entropy=True)
        if recipe.kl:
            kl = self._kl(batch)
            means["kl"] = float(kl.mean())
            rewards = rewards - recipe.kl * kl.view(rewards.shape)
        rewards = standardised(rewards, recipe.standardise)
        finished, tokens = (torch.tensor(columns[name]).view(rewards.shape) for name in ("finished", "tokens"))
        weights = self._algorithm.weigh(rewards, finished > 0, tokens)
        batch.weights = weights.flatten()[every].float()
        clock.append(time.monotonic())
        parts = ("generate_seconds", "reward_seconds", "score_seconds")
        means |= {name: float(spent) for name, spent in zip(parts, np.diff(clock), strict=True)}
        return (batch.best().arrange(self._plain) if self._algorithm.best else batch), means

    def _measured(self, written: list[Profile], rows: list[int]) -> tuple[dict[str, np.ndarray], float]:
        """The columns of the whole batch (reward, its terms, finished, tokens), and the share of distinct profiles."""
        texts, finished = [profile.text for profile in written], np.array([profile.finished for profile in written])
        columns = self._reward.columns(texts, self._train, rows, finished, [profile.tokens for profile in written])
        columns |= {"finished": finished.astype(float), "tokens": np.array([float(p.tokens) for p in written])}
        values = torch.tensor(np.stack(list(columns.values()), 1), device=self.accelerator.device)
        gathered = self.accelerator.gather(values).cpu().numpy()
        everywhere = gather_object(texts)
        return dict(zip(columns, gathered.T, strict=True)), len(set(everywhere)) / len(everywhere)

    def _kl(self, batch: Batch) -> torch.Tensor:
        """log pi_t - log pi_0 of each profile of the whole batch, float64 ``[B]``."""
        initial = Batch(batch.prompts, batch.profiles, batch.weights, states=batch.states, rows=batch.rows)
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            self._fitting_pass(initial, range(len(batch.prompts)))
        kl = [float((batch.old[at] - initial.old[at]).sum()) for at in range(len(batch.profiles))]
        return self.accelerator.gather(torch.tensor(kl, device=self.accelerator.device)).double().cpu()

    def _fitting_pass(
        self, batch: Batch, sessions: Sequence[int], model: Any = None, entropy: bool = False
    ) -> tuple[torch.Tensor, float]:
        """``_pass`` with as many profiles in memory as fit; those of a session stay together."""
        rows = len(sessions) * batch.samples
        return self.fitting(lambda: self._pass(batch, sessions, model, entropy), rows, batch.samples)

    def _pass(
        self, batch: Batch, sessions: Sequence[int], model: Any = None, entropy: bool = False
    ) -> tuple[torch.Tensor, float]:
        """Process sessions in micro-batches: add the gradients of the loss to ``model``; return loss and mean entropy.

        Without ``model`` only log-probabilities are computed. After a complete pass, ``batch`` stores the
        log-probabilities of pi_t and the states of the frozen layers: a pass that does not fit is repeated.
        """
        learn, algorithm = model is not None, self._algorithm
        order = sorted(sessions, key=lambda at: sum(row.width for row in batch.rows[at]))
        size = max(1, self._micro // batch.samples)
        chunks = [order[at : at + size] for at in range(0, len(order), size)]
        loss, spread, tokens = torch.zeros((), device=self.accelerator.device), 0.0, 0
        old, states = {}, {}
        for chunk in chunks:
            with self.synchronised(model, chunk is chunks[-1]) if learn else torch.no_grad():
                found, total, kept = self._logprobs(batch, chunk, model, entropy)
                states |= kept
                numbers = [at * batch.samples + k for at in chunk for k in range(batch.samples)]
                spread, tokens = spread + float(total), tokens + sum(len(found[at]) for at in numbers)
                if learn:
                    change = [found[at] for at in numbers]
                    if algorithm.ratio:
                        change = [found[at] - batch.old.get(at, found[at].detach()) for at in numbers]
                    change = pad_sequence(change, batch_first=True)
                    mask = pad_sequence([torch.ones(len(found[at])) for at in numbers], batch_first=True)
                    weights = batch.weights[numbers].to(change.device)
                    value = algorithm.loss(change, mask.to(change), weights, batch.samples)
                    part = value * (len(chunk) / len(order))
                    self.accelerator.backward(part)
                    loss += part.detach()
                if algorithm.ratio or not learn:
                    old |= {at: found[at].detach() for at in numbers if at not in batch.old}
        batch.old |= old
        batch.states |= states
        return loss, spread / max(1, tokens)

    def _logprobs(
        self, batch: Batch, chunk: Sequence[int], model: Any, entropy: bool
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor, dict[int, torch.Tensor]]:
        """Log-probabilities of these sessions' profiles, the sum of entropies, and new states of the frozen layers."""
        first = np.cumsum([0, *map(len, batch.rows)]).tolist()
        rows = [row for at in chunk for row in batch.rows[at]]
        numbers = [first[at] + k for at in chunk for k in range(len(batch.rows[at]))]
        kept: list[torch.Tensor] = []
        context = contextlib.nullcontext()
        if self._trunk and numbers[0] in batch.states:
            context = self._trunk.replaying(
                pad_sequence([batch.states[number] for number in numbers], batch_first=True)
            )
        elif self._trunk and (self._recipe.epochs > 1 or model is None):
            context = self._trunk.recording(kept)
        # The hooks of the wrapped model exchange gradients between processes. With one process, the model itself is
        # called: accelerate's wrapper would copy the logits to float32.
        wrapped = self.model_wrapped if self.accelerator.num_processes > 1 else None
        with context, self.accelerator.autocast():
            found, total = row_logprobs(self._plain, rows, self._recipe.temperature, wrapped, entropy)
        states = {}
        if kept:
            states = {number: kept[0][at, : rows[at].width].clone() for at, number in enumerate(numbers)}
        return dict(zip([at for row in rows for at in row.numbers], found, strict=True)), total, states

    @property
    def _plain(self) -> PreTrainedModel:
        """The language model without wrappers, including its adapter."""
        return self.accelerator.unwrap_model(self.model).get_base_model()

    # Writing

    def _seeds(self, number: int, drawn: Sequence[int]) -> list[int]:
        """The seeds of all profiles of a batch.

        A seed depends on the number of earlier profiles of the same session in the batch: a session that occurs twice
        in a batch has twice as many different profiles.
        """
        before: Counter[int] = Counter()
        seeds = []
        for row in [row for row in drawn for _ in range(self._recipe.samples)]:
            seeds.append(
                stream_seed(self._seed, self._phase, "profiles", number, self._train.sessions[row], before[row])
            )
            before[row] += 1
        return seeds

    def _written(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Profile]:
        """``samples`` profiles of each prompt, adjacent."""
        repeated = [prompt for prompt in prompts for _ in range(self._recipe.samples)]
        if self._vllm is None:
            return self._write(repeated, seeds, self._limit, self._recipe.temperature, len(repeated))
        self._vllm.sync_weights()
        _, ids, _, _ = self._vllm.generate(repeated, images=None, num_generations=self._recipe.samples)
        return [self._read(tokens) for tokens in ids]

    def _engine(self) -> Any:
        """vLLM in this process, which receives the policy's weights before each batch (TRL's colocate mode)."""
        from trl.generation.vllm_generation import VLLMGeneration

        return VLLMGeneration(
            model=self.model,
            accelerator=self.accelerator,
            processing_class=self._tokenizer,
            mode="colocate",
            gpu_memory_utilization=0.3,  # the rest is for training
            max_num_seqs=self._recipe.sessions_per_batch * self._recipe.samples // self.accelerator.num_processes,
            temperature=self._recipe.temperature,
            max_completion_length=self._limit,
            logprobs=None,
            # By default vLLM uses only the end tokens of the generation config.
            generation_kwargs={"stop_token_ids": sorted(self._read.ends)},
        )

    def _write(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], limit: int, temperature: float, size: int
    ) -> list[Profile]:
        """Profiles in the order of the prompts; a batch that does not fit is repeated in halves."""
        out: list[Profile | None] = [None] * len(prompts)
        with self.whole() as policy:
            policy.eval()
            model = policy.get_base_model()
            todo = plan_batches([len(prompt) for prompt in prompts], size)
            while todo:
                rows = todo.pop(0)
                part, own = [prompts[row] for row in rows], [seeds[row] for row in rows]
                try:
                    with self.accelerator.autocast():
                        batch = generate_batch(model, self._tokenizer, part, own, limit, temperature, self._starts)
                except Exception as error:
                    if not is_out_of_memory(error) or len(rows) == 1:
                        raise
                    half = halved(len(rows), 1, self.watch.log)
                    todo[:0] = [rows[start : start + half] for start in range(0, len(rows), half)]
                    continue
                for row, profile in zip(rows, batch, strict=True):
                    out[row] = profile
        return out

    # Validation and saving

    def validate(self) -> dict[str, Any]:
        """Measure greedy profiles of the current policy on the validation sessions."""
        chosen = range(self.accelerator.process_index, len(self._validation.sessions), self.accelerator.num_processes)
        prompts = [self._validation.prompts[row] for row in chosen]
        written = self._write(prompts, [0] * len(prompts), self._max_tokens, 0.0, self._validation_batch)
        return examined(self._reward, self._validation, list(chosen), written, gather_object)

    def _save_best(self, folder: Path) -> None:
        with self.whole() as model:
            if self.accelerator.is_main_process:
                save_adapter(model, folder)

    def save_extra(self, folder: Path) -> None:
        """Save the profiles of a batch with remaining passes."""
        if self.state.global_step % self._steps:
            self._batch[1].save(folder / self._rollouts)

    def resume_extra(self, folder: Path, step: int) -> None:
        """Load the interrupted batch.

        Raises:
            UserError: the checkpoint was written by another number of processes.
        """
        if not step % self._steps:
            return
        path = folder / self._rollouts
        if not path.is_file():
            raise UserError(
                f"{path}: missing: the checkpoint is within a batch of another number of processes (launch); continue "
                f"with that number, or delete {folder}"
            )
        self._batch = step // self._steps, Batch.load(path, self.accelerator.device)

    @property
    def _rollouts(self) -> str:
        state = self.accelerator
        return ROLLOUTS.format(process=state.process_index, processes=state.num_processes)
