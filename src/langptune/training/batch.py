"""The profiles of one batch of RLSO in one process, with their weights and what its passes computed.

All passes over a batch share it, and a checkpoint within a batch stores it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from langptune.training.policy import Row, rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Batch:
    """The profiles of this process in one batch, those of a session adjacent.

    prompts: token ids ``[S][*]``.
    profiles: token ids ``[S * k][*]``, k of each session.
    weights: float32 ``[S * k]``, the algorithm's weights from the rewards.
    old: profile -> log pi_t of each of its tokens, float32 ``[T]``, if known.
    states: row -> hidden state that enters the first trained layer, ``[width, H]``, if known.
    """

    prompts: list[list[int]]
    profiles: list[list[int]]
    weights: torch.Tensor
    old: dict[int, torch.Tensor] = field(default_factory=dict)
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    rows: list[list[Row]] = field(default_factory=list)
    """Rows of each session; set by ``arrange``."""

    @property
    def samples(self) -> int:
        """Profiles per session."""
        return len(self.profiles) // len(self.prompts)

    def arrange(self, model: PreTrainedModel) -> Batch:
        """Arrange the profiles in rows; deterministic for given profiles and model."""
        k = self.samples
        for session, prompt in enumerate(self.prompts):
            profiles = self.profiles[session * k : (session + 1) * k]
            self.rows.append(rows_of(model, prompt, profiles, session * k))
        return self

    def best(self) -> Batch:
        """The profile with the largest weight of each session."""
        chosen = self.weights.view(len(self.prompts), -1).argmax(1) + torch.arange(len(self.prompts)) * self.samples
        return Batch(self.prompts, [self.profiles[at] for at in chosen.tolist()], self.weights[chosen])

    def save(self, path: Path) -> None:
        """Write everything but the rows into one file."""
        tensors = {"weights": self.weights}
        for name, parts in (("prompts", self.prompts), ("profiles", self.profiles)):
            tensors[name] = torch.tensor([token for part in parts for token in part])
            tensors[f"{name}_lengths"] = torch.tensor([len(part) for part in parts])
        for name, known in (("old", self.old), ("states", self.states)):
            if known:
                tensors[name] = torch.cat(list(known.values()))
                tensors[f"{name}_lengths"] = torch.tensor([len(part) for part in known.values()])
                tensors[f"{name}_numbers"] = torch.tensor(list(known))
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Batch:
        """Load a batch that ``save`` wrote."""
        tensors = load_file(path)

        def parts(name: str) -> list[torch.Tensor]:
            return list(tensors[name].split(tensors[f"{name}_lengths"].tolist()))

        batch = cls(*([part.tolist() for part in parts(name)] for name in ("prompts", "profiles")), tensors["weights"])
        for name in ("old", "states"):
            if name in tensors:
                numbers = tensors[f"{name}_numbers"].tolist()
                setattr(batch, name, dict(zip(numbers, (part.to(device) for part in parts(name)), strict=True)))
        return batch
