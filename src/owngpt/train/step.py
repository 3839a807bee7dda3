"""One training step: micro-batches, gradients, clipping, update. Knows the model's maths; the loop around it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from owngpt.data.batches import Batch
from owngpt.kernels.memory import keep_freed_memory
from owngpt.model.attention import CausalContext
from owngpt.model.gpt import GPT
from owngpt.train.optimizer import Optimizer, OptimizerSettings


@dataclass(frozen=True)
class StepResult:
    """What happened; ``loss`` in nats per target token, before the update."""

    loss: float
    gradient_norm: float
    skipped: bool
    tokens: int


class Reducer(Protocol):
    """How ranks add up; a single process needs none."""

    def sum_number(self, value: float) -> float:
        """The sum of one number over ranks."""
        ...

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over ranks."""
        ...


class TrainModule:
    """A GPT under training.

    ``dtype`` bfloat16 keeps matrices in bfloat16 with float32 masters in the optimizer; float32 trains the model as it is.
    """

    def __init__(
        self, model: GPT, settings: OptimizerSettings, *, dtype: torch.dtype = torch.float32, clip: float = 1.0, seed: int = 0,
        reducer: Reducer | None = None,
    ) -> None:  # fmt: skip
        self.model, self.clip, self.seed, self.reducer = model, clip, seed, reducer
        self.dtype = dtype
        keep_freed_memory()
        masters = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.data = parameter.data.to(dtype)
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
        """Learn from micro-batches as from one: the loss is the sum over all targets divided by their number.

        The update is skipped when loss or gradient norm is not finite, or when both exceed their limits (a spike).
        """
        self.model.train()
        tokens = sum(int((batch.targets >= 0).sum()) for batch in batches)
        everywhere = self.reducer.sum_number(tokens) if self.reducer else tokens
        if not everywhere:
            return StepResult(math.nan, math.nan, True, 0)
        loss, gradients = self._gradients(batches, 1.0 / everywhere)
        if self.reducer:
            loss = self.reducer.sum_number(loss)
            self.reducer.sum_gradients(list(gradients.values()))
        norm = float(torch.stack(torch._foreach_norm(list(gradients.values()))).float().norm())
        skipped = not math.isfinite(loss) or not math.isfinite(norm) or (loss > loss_limit and norm > norm_limit)
        if not skipped:
            scale = min(1.0, self.clip / (norm + 1e-12)) if self.clip else 1.0
            self.optimizer.step(rate_scale, scale, gradients)
        return StepResult(loss, norm, skipped, int(everywhere))

    def _gradients(self, batches: Sequence[Batch], scale: float) -> tuple[float, dict[str, Tensor]]:
        """(mean loss, gradient by parameter name); several passes add up in float32."""
        sums: dict[str, Tensor] = {}
        total = 0.0
        for index, batch in enumerate(batches):
            self.model.zero_grad(set_to_none=True)
            self.model.dropout.restart(self.seed * 1_000_003 + self.optimizer.step_count * 1009 + index)
            loss = self._loss(batch, scale)
            loss.backward()
            total += float(loss.detach())
            for name, parameter in self.model.named_parameters():
                if parameter.grad is None:
                    continue
                if len(batches) == 1:
                    sums[name] = parameter.grad
                elif name in sums:
                    sums[name].add_(parameter.grad)
                else:
                    sums[name] = parameter.grad.float()
        return total, sums

    def _loss(self, batch: Batch, scale: float) -> Tensor:
        device = self.device
        starts = None if batch.starts is None else batch.starts.to(device)
        context = CausalContext(starts, self.model.config.attention_dropout if self.model.training else 0.0)
        return self.model.loss(batch.inputs.to(device), batch.targets.to(device), context, scale=scale)

    @torch.no_grad()
    def validate(self, batches: Sequence[Batch]) -> float:
        """Mean loss over all targets of the batches, in nats per token."""
        self.model.eval()
        tokens = sum(int((batch.targets >= 0).sum()) for batch in batches)
        return sum(float(self._loss(batch, 1.0)) for batch in batches) / max(1, tokens)

    def weights(self) -> dict[str, Tensor]:
        """A float32 copy of every parameter, by the model's names."""
        return {entry.name: entry.master.detach().clone() for entry in self.optimizer.entries}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Put back what :meth:`weights` gave."""
        for name, value in weights.items():
            self.optimizer.set_master(name, value)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs of this part; tensors are not copied."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.optimizer.load_state_dict(state)
