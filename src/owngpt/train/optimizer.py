"""Muon for the matrices of the blocks, AdamW for everything else; float32 masters under a bfloat16 model.

The model computes with its own (bfloat16) parameters. The optimizer owns a float32 master of each, updates the master and
refreshes the parameter, so nothing is cast in the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from owngpt.model.gpt import GPT
from owngpt.train.muon import orthogonalise
from owngpt.train.updates import adamw_update, apply_direction, nesterov_direction


@dataclass(frozen=True)
class OptimizerSettings:
    """Peak rates and their companions. Weight decay is decoupled: a step shrinks a weight by rate * decay."""

    kind: str = "muon"
    """"muon" (matrices by Muon, the rest by AdamW) or "adamw"."""
    matrix_rate: float = 0.02
    """Learning rate of the blocks' matrices, under Muon per unit of spectral norm."""
    embedding_rate: float = 0.01
    """AdamW's learning rate of embeddings, and of a head tied to them."""
    head_rate: float = 0.01
    """AdamW's learning rate of a head of its own, over tokens or classes."""
    vector_rate: float = 0.01
    """AdamW's learning rate of norms and biases."""
    matrix_decay: float = 0.0
    embedding_decay: float = 0.0
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-10


@dataclass
class _Entry:
    """One parameter with its master and moments."""

    name: str
    parameter: nn.Parameter
    master: Tensor
    rate: float
    decay: float
    parts: tuple[int, ...] = ()
    """Muon: rows of each logical matrix in a fused one; empty for AdamW."""
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def working(self) -> Tensor | None:
        """The model's copy, where it is not the master itself."""
        return None if self.master.data_ptr() == self.parameter.data_ptr() else self.parameter.data


def fused_rows(model: GPT, name: str, parameter: Tensor) -> tuple[int, ...]:
    """Rows of each logical matrix inside a parameter: Muon orthogonalises queries, keys, values, gate and up on their own,
    and each expert's."""
    config = model.config
    if name.endswith("query_key_value.weight"):
        head = config.head_size
        return (config.heads * head, config.key_value_heads * head, config.key_value_heads * head)
    stacked = parameter.shape[0] if parameter.dim() == 3 else 1
    if name.endswith("gate_up.weight"):
        return (config.intermediate_size, config.intermediate_size) * stacked
    return (parameter.shape[-2],) * stacked


class Optimizer:
    """Updates a GPT from its parameters' ``.grad``."""

    def __init__(self, model: GPT, settings: OptimizerSettings) -> None:
        self.settings, self.step_count = settings, 0
        self.entries = [
            self._entry(model, name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        ]

    def _entry(self, model: GPT, name: str, parameter: nn.Parameter) -> _Entry:
        settings = self.settings
        master = parameter.data if parameter.dtype == torch.float32 else parameter.detach().float()
        if parameter.dim() < 2 or name.endswith(".bias"):  # experts have their biases in one matrix
            entry = _Entry(name, parameter, master, settings.vector_rate, 0.0)
        elif name.startswith("blocks."):
            parts = fused_rows(model, name, parameter) if settings.kind == "muon" else ()
            entry = _Entry(name, parameter, master, settings.matrix_rate, settings.matrix_decay, parts)
        else:
            rate = settings.head_rate if name.startswith(("output_head.", "score.")) else settings.embedding_rate
            entry = _Entry(name, parameter, master, rate, settings.embedding_decay)
        names = ("momentum",) if entry.parts else ("mean", "square")
        entry.state = {key: torch.zeros_like(master) for key in names}
        return entry

    @torch.no_grad()
    def step(self, rate_scale: float, gradient_scale: float, gradients: dict[str, Tensor] | None = None) -> None:
        """One update. ``rate_scale`` multiplies every rate, ``gradient_scale`` every gradient (clipping).

        ``gradients``: float32 sums by parameter name, where several passes were accumulated; None reads ``.grad``.
        """
        self.step_count += 1
        groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        directions: dict[str, Tensor] = {}
        for entry in self.entries:
            gradient = entry.parameter.grad if gradients is None else gradients.get(entry.name)
            if gradient is None:
                continue
            if not entry.parts:
                self._adamw(entry, gradient, rate_scale, gradient_scale)
                continue
            direction = torch.empty_like(entry.parameter)
            nesterov_direction(
                entry.state["momentum"],
                gradient.contiguous(),
                direction,
                gradient_scale=gradient_scale,
                beta=self.settings.momentum,
            )
            result = torch.empty_like(direction)
            rows, targets = (matrix.flatten(0, -2).split(entry.parts) for matrix in (direction, result))
            for part, target in zip(rows, targets, strict=True):
                groups.setdefault(tuple(part.shape), []).append((part, target))
            directions[entry.name] = result
        for group in groups.values():
            self._orthogonalise(group)
        for entry in self.entries:
            if entry.name in directions:
                rate = entry.rate * rate_scale
                apply_direction(entry.master, directions[entry.name], entry.working, rate=rate, decay_rate=rate * entry.decay)

    def _adamw(self, entry: _Entry, gradient: Tensor, rate_scale: float, gradient_scale: float) -> None:
        settings = self.settings
        adamw_update(
            entry.master, entry.state["mean"], entry.state["square"], gradient.contiguous(), entry.working,
            gradient_scale=gradient_scale, rate=entry.rate * rate_scale, betas=settings.betas, epsilon=settings.epsilon,
            decay=entry.decay, step=self.step_count,
        )  # fmt: skip

    @staticmethod
    def _orthogonalise(group: list[tuple[Tensor, Tensor]]) -> None:
        """Matrices of one shape together; scaled by sqrt(max(1, rows/columns)), outputs move alike at any shape."""
        rows, columns = group[0][0].shape
        orthogonal = orthogonalise(torch.stack([part for part, _ in group]))
        orthogonal.mul_(max(1.0, rows / columns) ** 0.5)
        for (_, target), matrix in zip(group, orthogonal, strict=True):
            target.copy_(matrix)

    def state_dict(self) -> dict[str, Tensor]:
        """Masters (``model.NAME``) and moments (``optimizer.NAME.KEY``), the tensors themselves, and the step count."""
        state: dict[str, Tensor] = {"optimizer.step_count": torch.tensor(self.step_count)}
        for entry in self.entries:
            state[f"model.{entry.name}"] = entry.master
            state |= {f"optimizer.{entry.name}.{key}": value for key, value in entry.state.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over everything that :meth:`state_dict` gave, and refresh the model."""
        self.step_count = int(state["optimizer.step_count"])
        for entry in self.entries:
            for key in entry.state:
                entry.state[key].copy_(state[f"optimizer.{entry.name}.{key}"])
            self.set_master(entry.name, state[f"model.{entry.name}"], entry)

    @torch.no_grad()
    def set_master(self, name: str, value: Tensor, entry: _Entry | None = None) -> None:
        """Replace one parameter's value."""
        entry = entry or next(entry for entry in self.entries if entry.name == name)
        entry.master.copy_(value)
        if entry.working is not None:
            entry.working.copy_(entry.master)
