"""One training step: micro-batches, gradients, clipping, update. Knows the model's maths; the loop around it does not.

What is learned is an :class:`Objective`: the next token here, answers, preferences or classes in :mod:`owngpt.finetune`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from owngpt.data.batches import Batch
from owngpt.kernels import pool
from owngpt.kernels.memory import keep_freed_memory
from owngpt.model.attention import CausalContext
from owngpt.model.gpt import GPT
from owngpt.train.optimizer import Optimizer, OptimizerSettings


@dataclass(frozen=True)
class StepResult:
    """What happened; ``loss`` is the mean over what the objective counts (nats per target token), before the update."""

    loss: float
    gradient_norm: float
    skipped: bool
    tokens: int
    """Targets."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What else the objective saw."""


class Objective(Protocol):
    """What a model learns from a batch: a sum of losses, and how many there are to take the mean over."""

    def count(self, batch: Batch) -> int:
        """Losses in this batch: targets, pairs or texts."""
        ...

    def loss(self, model: GPT, batch: Batch, scale: float) -> Tensor:
        """scale * sum of the losses: a scalar with gradient, wherever the model lives.

        ``scale`` is 1 / (the number of losses of the whole step, over all passes and ranks).
        """
        ...

    def metrics(self) -> dict[str, float]:
        """What else was seen since the last call, by name; often nothing. Seeing begins anew."""
        ...


class NextToken:
    """Cross-entropy of each target given everything before it in its document."""

    def count(self, batch: Batch) -> int:
        """Targets."""
        return int((batch.targets >= 0).sum())

    def loss(self, model: GPT, batch: Batch, scale: float) -> Tensor:
        """scale * sum of the cross-entropies, nats, float32."""
        device = model.embedding.weight.device
        starts = None if batch.starts is None else batch.starts.to(device)
        context = CausalContext(starts, model.config.attention_dropout if model.training else 0.0)
        return model.loss(batch.inputs.to(device), batch.targets.to(device), context, scale=scale)

    def metrics(self) -> dict[str, float]:
        """Nothing: the loss says it all."""
        return {}


class Reducer(Protocol):
    """How ranks add up; a single process needs none."""

    def sum_number(self, value: float) -> float:
        """The sum of one number over ranks."""
        ...

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over ranks."""
        ...


class TrainModule:
    """A GPT under training: those of its parameters that require a gradient. The others are neither cast, kept nor saved."""

    def __init__(
        self, model: GPT, settings: OptimizerSettings, *, dtype: torch.dtype | None = torch.float32, clip: float = 1.0,
        seed: int = 0, reducer: Reducer | None = None, objective: Objective | None = None,
    ) -> None:  # fmt: skip
        """:param dtype: bfloat16 trains matrices in bfloat16 with float32 masters in the optimizer, float32 without;
            None leaves every parameter as it is (float32 adapters over frozen bfloat16 weights).
        :param objective: what is learned; the next token by default.
        """
        self.model, self.clip, self.seed, self.reducer = model, clip, seed, reducer
        self.dtype = dtype
        self.objective: Objective = NextToken() if objective is None else objective
        self.validation_metrics: dict[str, float] = {}
        """What the objective saw in the last validation."""
        keep_freed_memory()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        masters = {name: parameter.detach().float() for name, parameter in trained.items()}
        for parameter in trained.values() if dtype else ():
            parameter.data = parameter.data.to(dtype if parameter.dim() >= 2 else torch.float32)
        self.optimizer = Optimizer(model, settings)
        if dtype != torch.float32:
            for name, master in masters.items():
                self.optimizer.set_master(name, master)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.embedding.weight.device

    def run(
        self, batches: Sequence[Batch], rate_scale: float, *, loss_limit: float = math.inf, norm_limit: float = math.inf
    ) -> StepResult:
        """Learn from micro-batches as from one: the loss is the sum over all that counts divided by its number.

        The update is skipped when loss or gradient norm is not finite, or when both exceed their limits (a spike).
        """
        self.model.train()
        count = self._everywhere(sum(self.objective.count(batch) for batch in batches))
        tokens = self._everywhere(sum(int((batch.targets >= 0).sum()) for batch in batches))
        if not count:
            return StepResult(math.nan, math.nan, True, 0)
        loss, gradients = self._gradients(batches, 1.0 / count)
        if self.reducer:
            loss = self.reducer.sum_number(loss)
            self.reducer.sum_gradients(list(gradients.values()))
        norm = float(torch.stack(torch._foreach_norm(list(gradients.values()))).float().norm())
        skipped = not math.isfinite(loss) or not math.isfinite(norm) or (loss > loss_limit and norm > norm_limit)
        if not skipped:
            scale = min(1.0, self.clip / (norm + 1e-12)) if self.clip else 1.0
            self.optimizer.step(rate_scale, scale, gradients)
        return StepResult(loss, norm, skipped, int(tokens), self.objective.metrics())

    def _everywhere(self, number: float) -> float:
        """Its sum over ranks."""
        return self.reducer.sum_number(number) if self.reducer else number

    def _gradients(self, batches: Sequence[Batch], scale: float) -> tuple[float, dict[str, Tensor]]:
        """(mean loss, gradient by parameter name); several passes add up in float32."""
        trained = [(entry.name, entry.parameter) for entry in self.optimizer.entries]
        narrow = [(name, parameter) for name, parameter in trained if parameter.dtype != torch.float32]
        sums: dict[str, Tensor] = {}
        total = 0.0
        self.model.zero_grad(set_to_none=True)
        for index, batch in enumerate(batches):
            self.model.dropout.restart(self.seed * 1_000_003 + self.optimizer.step_count * 1009 + index)
            loss = self.objective.loss(self.model, batch, scale)
            loss.backward()  # adds up by itself what has float32
            total += float(loss.detach())
            if len(batches) > 1:
                _move_gradients(narrow, sums)
        found = {name: sums.get(name, parameter.grad) for name, parameter in trained}
        return total, {name: gradient for name, gradient in found.items() if gradient is not None}

    def rehearse(self, batches: Sequence[Batch]) -> float:
        """A step without its update, for timing: returns the loss and leaves no trace."""
        self.model.train()
        loss, _ = self._gradients(batches, 1.0 / max(1, sum(self.objective.count(batch) for batch in batches)))
        self.objective.metrics()
        self.model.zero_grad(set_to_none=True)
        return loss

    @torch.no_grad()
    def validate(self, batches: Sequence[Batch]) -> float:
        """Mean loss over all that counts in the batches: for tokens, in nats per token."""
        self.model.eval()
        count = sum(self.objective.count(batch) for batch in batches)
        loss = sum(float(self.objective.loss(self.model, batch, 1.0)) for batch in batches) / max(1, count)
        self.validation_metrics = self.objective.metrics()
        return loss

    def let_go(self) -> None:
        """Of the memory that steps take: gradients, and what the pool keeps for the next one."""
        self.model.zero_grad(set_to_none=True)
        pool.release()

    def weights(self) -> dict[str, Tensor]:
        """A float32 copy of every parameter that is trained, by the model's names."""
        return {entry.name: entry.master.detach().clone() for entry in self.optimizer.entries}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Put back what :meth:`weights` gave."""
        for name, value in weights.items():
            self.optimizer.set_master(name, value)

    def parameters(self) -> list[Tensor]:
        """What is trained, as the model computes with it; not copied."""
        return [entry.parameter.detach() for entry in self.optimizer.entries]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs of this part; tensors are not copied."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.optimizer.load_state_dict(state)


def _move_gradients(parameters: Sequence[tuple[str, Parameter]], sums: dict[str, Tensor]) -> None:
    """Add gradients to their sums in float32."""
    for name, parameter in parameters:
        if parameter.grad is None:
            continue
        if name in sums:
            sums[name].add_(parameter.grad)
        else:
            sums[name] = parameter.grad.float()
        parameter.grad = None
