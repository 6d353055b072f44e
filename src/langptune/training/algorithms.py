"""RLSO: reinforcement learning of the profile encoder, on TRL's trainers.

REBEL (PAPER: Training; arXiv 2404.16767) is ours; RLOO and GRPO are TRL's own losses. All three share what surrounds
the loss: sampling with one random stream per profile, the reward, micro-batches, checkpoints, validation. For REBEL,
with two profiles p, p' of one session, d log p = log pi_theta(p) - log pi_t(p) summed over the sequence, and r the
standardised reward after the KL term::

    L = ( [d log p - d log p'] - eta * [r(p) - r(p')] )^2

TRL is pinned (envs/lock.txt): the hooks overridden here are private, and a test names them. What they are for:

=============================================  =======================================================================
``_tokenize_prompts``                          prompts are token ids already (user text is data)
``_generate_single_turn``                      our sampler: a profile depends on seed, phase, batch, session, sample
``_calculate_rewards``                         keeps the rewards of all processes, before TRL subtracts a baseline
``_generate_and_score_completions``            REBEL's KL term and standardisation
``_get_per_token_logps_and_entropies``         positions that ignore padding, logits of the completion only, and the
                                               frozen lower layers once per batch
``_prepare_inputs``                            pairs stay together (TRL shuffles rows), and a half-used batch survives
``_compute_loss``                              REBEL's loss
``training_step``                              micro-batches, repeated with smaller ones when memory runs out
=============================================  =======================================================================
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.torch import load_file, save_file
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer import grpo_trainer, rloo_trainer

from langptune.config.recipes import ReinforcementRecipe
from langptune.errors import UserError
from langptune.gpus import refuse_several
from langptune.profiles.generate import Profile, end_tokens, generate_batch, plan_batches
from langptune.randomness import stream_seed
from langptune.thinking import opens_thought, read_reply
from langptune.training.checkpoints import (
    Checkpoints,
    Resumable,
    Watch,
    halved,
    is_out_of_memory,
    row_order,
    training_arguments,
)
from langptune.training.policy import (
    FrozenTrunk,
    adapter_config,
    first_trained_layer,
    save_adapter,
    start_from,
    token_logprobs,
)
from langptune.training.reward import Reward, validation_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROLLOUTS = "rollouts-{process}.safetensors"
"""The profiles of a batch that a checkpoint interrupts, one file per process."""


@dataclass(frozen=True)
class Sessions:
    """What the policy reads and is rewarded by.

    prompts: token ids ``[S][*]``.
    """

    sessions: list[int]
    prompts: list[list[int]]
    targets: list[int]
    seen: list[list[int]]


class _Policy(Resumable):
    """What every algorithm shares; stands before a TRL trainer among the bases."""

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
        """``model`` is the initial encoder; ``start``, the adapter of an earlier phase to go on with.

        ``seed`` and ``phase`` (``Phase.stream``) name the random streams.
        """
        self._train, self._validation, self._reward, self._recipe = train, validation, reward, recipe
        self._seed, self._phase, self._validation_batch, self._starts = seed, phase, validation_batch, starts
        self._max_tokens, self._limit = max_tokens, recipe.max_tokens or max_tokens
        self._ends, self._opened = end_tokens(model, tokenizer), opens_thought(tokenizer)
        self._head = tokenizer(starts, add_special_tokens=False).input_ids if starts else []
        self._micro = recipe.micro_batch
        self._buffer: dict[str, torch.Tensor] | None = None
        self._buffer_batch = -1
        self._trunk: FrozenTrunk | None = None
        self._recorded: list[torch.Tensor] | None = None
        self._replayed: torch.Tensor | None = None
        self._clock: dict[str, float] = {}
        self.checkpoints = checkpoints

        rows = recipe.sessions_per_batch * recipe.samples // recipe.minibatches
        config = self._arguments(recipe, checkpoints, rows, bf16, model.device.type == "cpu")
        refuse_several(config.n_gpu)
        order = row_order(len(train.sessions), recipe.batches * recipe.sessions_per_batch, seed, phase).tolist()
        dataset = Dataset.from_dict({"prompt": [str(row) for row in order], "row": order})
        # TRL refuses LoRA on lm_head, because it multiplies by its weight directly; token_logprobs does not.
        module = rloo_trainer if isinstance(self, RLOOTrainer) else grpo_trainer
        with mock.patch.object(module, "BaseTunerLayer", ()):
            super().__init__(
                model=model,
                reward_funcs=self._score,
                args=config,
                train_dataset=dataset,
                processing_class=tokenizer,
                peft_config=adapter_config(model, recipe.train),
            )
        assert config.world_size * config.per_device_train_batch_size == rows, "processes and rows disagree"
        start_from(self.model, start)
        cut = first_trained_layer(recipe.train, model)
        if cut and recipe.cache_frozen:
            self._trunk = FrozenTrunk(self.model.get_base_model(), cut)
        steps = recipe.epochs * recipe.minibatches
        main = self.accelerator.is_main_process
        self.watch = Watch(recipe, steps, checkpoints, self.validate, self._save_best, log, main)
        self.add_callback(self.watch)

    _config: type
    _extra: dict[str, Any] = {}

    def _arguments(
        self, recipe: ReinforcementRecipe, checkpoints: Checkpoints, rows: int, bf16: bool, cpu: bool
    ) -> Any:
        """TRL's arguments. All rows of an optimiser step are one "device batch", cut up in ``training_step``."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # before TRL's arguments set the processes up
        if rows % (processes * recipe.samples):
            raise UserError(
                f"{recipe.title}: {recipe.sessions_per_batch // recipe.minibatches} sessions per optimiser step do not "
                f"divide over {processes} processes; change sessions_per_batch or minibatches"
            )
        steps = recipe.batches * recipe.epochs * recipe.minibatches
        return self._config(
            **training_arguments(recipe, checkpoints, steps, bf16, self._seed, self._phase),
            **self._extra,
            per_device_train_batch_size=rows // processes,
            steps_per_generation=recipe.minibatches,
            num_iterations=recipe.epochs,
            num_generations=recipe.samples,
            max_completion_length=self._limit,
            temperature=recipe.temperature,
            beta=self._beta(recipe),
            shuffle_dataset=False,
            disable_dropout=True,
            gradient_checkpointing=False,
            use_vllm=recipe.vllm,
            vllm_mode="colocate",
            # vLLM by itself knows the generation config's end tokens only.
            generation_kwargs={"stop_token_ids": sorted(self._ends)} if recipe.vllm else None,
            use_cpu=cpu,
        )

    def _beta(self, recipe: ReinforcementRecipe) -> float:
        """TRL's KL weight."""
        return recipe.kl

    # Sampling and reward

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
        self._rows = [int(prompt) for prompt in prompts]
        return [self._train.prompts[row] for row in self._rows], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        if self.use_vllm:
            out = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        else:
            written = self._write(prompt_ids, self._seeds(), self._limit, self._recipe.temperature, len(prompt_ids))
            out = [profile.ids for profile in written]
            out = (out, None) if isinstance(self, GRPOTrainer) else out
        self._clock["generate_seconds"] = time.monotonic() - started
        return out

    def _seeds(self) -> list[int]:
        """Of this process's profiles of the batch.

        A profile is told apart by how many of its session come before it in the whole batch: a session that the batch
        holds twice has twice as many different profiles.
        """
        batch = self._step // (self._recipe.epochs * self._recipe.minibatches)
        everywhere = gather_object(self._rows)
        before: Counter[int] = Counter()
        seeds = []
        for row in everywhere:
            session, place = self._train.sessions[row], before[row]
            seeds.append(stream_seed(self._seed, self._phase, "profiles", batch, session, place))
            before[row] += 1
        first = self.accelerator.process_index * len(self._rows)
        return seeds[first : first + len(self._rows)]

    def _write(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], limit: int, temperature: float, size: int
    ) -> list[Profile]:
        """Profiles in the order of the prompts; a batch that does not fit is repeated in halves."""
        out: list[Profile | None] = [None] * len(prompts)
        with self.whole() as policy:
            model, training = policy.get_base_model(), policy.training
            policy.eval()
            todo = plan_batches([len(prompt) for prompt in prompts], size)
            while todo:
                rows = todo.pop(0)
                try:
                    with self.accelerator.autocast():
                        batch = generate_batch(
                            model,
                            self._tokenizer,
                            [prompts[row] for row in rows],
                            [seeds[row] for row in rows],
                            limit,
                            temperature,
                            self._starts,
                        )
                except Exception as error:
                    if not is_out_of_memory(error) or len(rows) == 1:
                        raise
                    half = halved(len(rows), 1, self.watch.log)
                    todo[:0] = [rows[start : start + half] for start in range(0, len(rows), half)]
                    continue
                for row, profile in zip(rows, batch, strict=True):
                    out[row] = profile
            policy.train(training)
        return out

    def _score(self, completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        """TRL's reward function: of each completion, for the session in ``row``."""
        started = time.monotonic()
        replies = [read_reply(self._tokenizer, [*self._head, *ids], self._ends, self._opened) for ids in completion_ids]
        texts = [reply.text for reply in replies]
        values = self._reward(texts, [self._train.targets[r] for r in row], [self._train.seen[r] for r in row])
        finished = np.array([reply.finished for reply in replies])
        if self._recipe.unfinished == "zero":
            values = np.where(finished, values, 0.0)
        self._told = {
            "reward": float(values.mean()),
            "finished": float(finished.mean()),
            "tokens": float(np.mean([len(ids) for ids in completion_ids])),
        }
        self._clock["reward_seconds"] = time.monotonic() - started
        return values.tolist()

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    # Log-probabilities

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        if torch.is_grad_enabled():
            replay = contextlib.nullcontext() if self._replayed is None else self._trunk.replaying(self._replayed)
            with replay, self.accelerator.autocast():
                found = token_logprobs(model, input_ids, attention_mask, logits_to_keep, self._recipe.temperature)
            return *found, None

        def in_parts() -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
            parts, kept = [], []
            for start in range(0, len(input_ids), self._micro):
                rows = slice(start, start + self._micro)
                context = contextlib.nullcontext()
                if self._trunk and self._recorded is None:
                    context = self._trunk.recording(kept)
                elif self._trunk:
                    context = self._trunk.replaying(self._recorded[rows])
                with context, self.accelerator.autocast():
                    parts.append(
                        token_logprobs(
                            model, input_ids[rows], attention_mask[rows], logits_to_keep, self._recipe.temperature
                        )
                    )
            return parts, kept

        parts, kept = self.fitting(in_parts)
        if kept:
            self._recorded = torch.cat(kept)
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        started = time.monotonic()
        self._recorded = None
        self._clock = {}
        out = self._scored(super()._generate_and_score_completions(inputs))
        if self._recorded is not None:
            out["trunk"], self._recorded = self._recorded, None
        self._clock["score_seconds"] = time.monotonic() - started - sum(self._clock.values())
        return {key: value for key, value in out.items() if isinstance(value, torch.Tensor) and value.dim()}

    def _scored(self, out: dict[str, Any]) -> dict[str, Any]:
        """What an algorithm adds to a batch of profiles."""
        return out

    def _prepare_inputs(self, inputs: Any) -> dict[str, torch.Tensor]:
        """The rows of this optimiser step, profiles written where a new batch begins.

        Raises:
            UserError: resumed within a batch whose profiles are lost.
        """
        steps = self._recipe.epochs * self._recipe.minibatches
        batch, step = divmod(self._step, steps)
        if self._buffer_batch != batch:
            if step:
                raise UserError(f"{self.args.output_dir}: the checkpoint lacks its profiles; delete it to go on")
            self._buffer = self._generate_and_score_completions(inputs)
            self._buffer_batch = batch
        rows = len(self._buffer["prompt_ids"]) // self._recipe.minibatches
        start = step % self._recipe.minibatches * rows
        return {key: value[start : start + rows] for key, value in self._buffer.items()}

    # Updates

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One optimiser step's gradients, in micro-batches; repeated with smaller ones when memory runs out."""
        model.train()
        rows = self._prepare_inputs(inputs)
        started = time.monotonic()
        loss = self.fitting(lambda: self._backward(model, rows))
        self._step += 1
        first = (self._step - 1) % (self._recipe.epochs * self._recipe.minibatches) == 0
        told = {"loss": float(loss), "update_seconds": time.monotonic() - started}
        if first:
            told |= self._told | self._clock
        for name in ("entropy", "kl"):
            if values := self._metrics["train"].get(name):
                told[name] = float(np.mean(values))
        self._metrics["train"].clear()
        # Every process has equally many rows, so the mean of their means is that of the batch.
        values = torch.tensor(list(told.values()), dtype=torch.float64, device=self.accelerator.device)
        shared = self.accelerator.gather(values[None]).mean(0).tolist()
        self.watch.record(**dict(zip(told, shared, strict=True)))
        return loss

    def _backward(self, model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        total = len(rows["prompt_ids"])
        loss = torch.zeros((), device=self.accelerator.device)
        starts = range(0, total, max(self.group, self._micro // self.group * self.group))
        for start in starts:
            end = min(total, start + starts.step)
            part = {key: value[start:end] for key, value in rows.items()}
            self._replayed = part.pop("trunk", None)
            width = int(part["completion_mask"].sum(1).max())  # no more columns than the longest profile here
            for key in ("completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps"):
                if key in part:
                    part[key] = part[key][:, :width]
            if self._replayed is not None:
                self._replayed = self._replayed[:, : part["prompt_ids"].shape[1] + width]
            with self.synchronised(model, end == total):
                with self.compute_loss_context_manager():
                    share = self.compute_loss(model, part) * ((end - start) / total)
                self.accelerator.backward(share)
            loss += share.detach()
        self._replayed = None
        return loss

    # Validation and saving

    def validate(self) -> dict[str, float]:
        """Rank the validation sessions by greedy profiles of the policy as it is."""
        chosen = range(self.accelerator.process_index, len(self._validation.sessions), self.accelerator.num_processes)
        prompts = [self._validation.prompts[row] for row in chosen]
        written = self._write(prompts, [0] * len(prompts), self._max_tokens, 0.0, self._validation_batch)
        ranks = self._reward.ranks(
            [profile.text for profile in written],
            [self._validation.targets[row] for row in chosen],
            [self._validation.seen[row] for row in chosen],
        )
        told = gather_object(
            [(int(rank), profile.tokens, profile.finished) for rank, profile in zip(ranks, written, strict=True)]
        )
        return {
            **validation_metrics(np.array([rank for rank, _, _ in told])),
            "tokens": float(np.mean([tokens for _, tokens, _ in told])),
            "finished": float(np.mean([finished for _, _, finished in told])),
        }

    def _save_best(self, folder: Path) -> None:
        with self.whole() as model:
            if self.accelerator.is_main_process:
                save_adapter(model, folder)

    def save_extra(self, folder: Path) -> None:
        """The profiles of a batch that is not through with all its passes."""
        if self._step % (self._recipe.epochs * self._recipe.minibatches):
            kept = {key: value.contiguous() for key, value in self._buffer.items()}
            save_file(kept, folder / ROLLOUTS.format(process=self.accelerator.process_index))

    def resume_extra(self, folder: Path, step: int) -> None:
        """Counters, and the batch that was interrupted."""
        self._step = step
        path = folder / ROLLOUTS.format(process=self.accelerator.process_index)
        if path.is_file():
            self._buffer = {key: value.to(self.accelerator.device) for key, value in load_file(path).items()}
            self._buffer_batch = step // (self._recipe.epochs * self._recipe.minibatches)
        self._told = {}


class Rebel(_Policy, RLOOTrainer):
    """The paper's algorithm; see the module's formula."""

    group = 2
    _config = RLOOConfig

    def _beta(self, recipe: ReinforcementRecipe) -> float:
        return 0.0  # the KL term is taken off the reward below, before standardisation

    def _scored(self, out: dict[str, Any]) -> dict[str, Any]:
        rewards = self._rewards.sum(1)
        if self._recipe.kl:
            ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
            mask = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
            policy = self.accelerator.unwrap_model(self.model)
            with torch.no_grad(), policy.disable_adapter():
                initial, _, _ = self._get_per_token_logps_and_entropies(
                    self.model, ids, mask, out["completion_ids"].shape[1]
                )
            kl = out["old_logps"] - (initial * out["completion_mask"]).sum(1)
            kl = self.accelerator.gather(kl)
            self._told["kl"] = float(kl.mean())
            rewards = rewards - self._recipe.kl * kl
        if self._recipe.standardise:
            rewards = standardised(rewards)
        here = self.accelerator.process_index * len(out["prompt_ids"])
        return {**out, "advantages": rewards[here : here + len(out["prompt_ids"])]}

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        keep = inputs["completion_ids"].shape[1]
        logps, entropies, _ = self._get_per_token_logps_and_entropies(model, ids, mask, keep)
        completion = inputs["completion_mask"]
        self._metrics["train"]["entropy"].append(float((entropies * completion).sum() / completion.sum()))
        change = (logps * completion).sum(1) - inputs["old_logps"]
        return rebel_loss(change, inputs["advantages"], self._recipe.eta)


class Rloo(_Policy, RLOOTrainer):
    """TRL's RLOO: leave-one-out baseline, sequence-level ratio, clipped."""

    _config = RLOOConfig


class Grpo(_Policy, GRPOTrainer):
    """TRL's GRPO: rewards standardised per session, token-level ratio, clipped; mean over sequences."""

    _config = GRPOConfig
    _extra = {"loss_type": "grpo"}  # a mean over rows, so that micro-batches add up to the batch


ALGORITHMS: dict[str, type[_Policy]] = {"rebel": Rebel, "rloo": Rloo, "grpo": Grpo}
"""Values of a recipe's ``algorithm``. A new one is a class here and its name in ``ReinforcementRecipe``."""


def rebel_loss(change: torch.Tensor, rewards: torch.Tensor, eta: float) -> torch.Tensor:
    """REBEL's loss, mean over pairs.

    Args:
        change: ``[2 P]``, log pi_theta - log pi_t of each profile; the two of a session stand side by side.
        rewards: ``[2 P]``.
    """
    return ((change[0::2] - change[1::2] - eta * (rewards[0::2] - rewards[1::2])) ** 2).mean()


def standardised(rewards: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 over the whole batch (PAPER: Training); zeros where all rewards are equal."""
    centred = rewards - rewards.mean()
    spread = centred.pow(2).mean().sqrt()
    return centred / spread if spread > 0 else centred
