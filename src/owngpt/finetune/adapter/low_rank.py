"""The layer that LoRA trains: a frozen linear layer and low-rank updates of the matrices that are fused in it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from owngpt.kernels.activation import gated
from owngpt.kernels.dropout import Dropout, seed_of
from owngpt.kernels.frozen import FrozenWeight, can_freeze, freeze
from owngpt.kernels.low_rank import Spans, frozen_linear, frozen_low_rank_linear, low_rank_linear, low_rank_product
from owngpt.model.gpt import DropoutSource
from owngpt.model.linear import Linear

USES_OF_THE_MODEL = 1 << 20
"""Dropout of adapters is numbered from here: below are the model's own uses."""


class FrozenLinear(nn.Module):
    """A linear layer that is not trained, its weight packed for the kernels of training."""

    def __init__(self, weight: FrozenWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.packed, self.bias = weight, bias

    @property
    def weight(self) -> Tensor:
        """(out, in) bfloat16, made anew."""
        return self.packed.unpacked()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) bfloat16 → (..., out)"""
        return frozen_linear(x, self.packed, self.bias)

    def merged(self) -> Linear:
        """The plain layer."""
        return plain_linear(self.weight, self.bias)


def frozen(base: Linear, *, int8: bool = False) -> Linear | FrozenLinear:
    """A layer that will not be trained, packed where this machine's kernels take it, in int8 if wanted."""
    return FrozenLinear(freeze(base.weight, int8=int8), base.bias) if can_freeze(base.weight) else base


def plain_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """A layer of these values."""
    plain = Linear.__new__(Linear)
    nn.Module.__init__(plain)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = None if bias is None else nn.Parameter(bias.data, requires_grad=False)
    return plain


class LowRankLinear(nn.Module):
    """y = x W^T + b + scale * (x A^T) B^T (LoRA, arXiv 2106.09685); with DoRA (arXiv 2402.09353) each output of W + scale B A
    has a length of its own that is learned. W and b are frozen."""

    def __init__(
        self, base: Linear | FrozenLinear, spans: Spans, rank: int, scale: float, *, magnitude: bool, generator: torch.Generator
    ) -> None:
        """
        :param spans: rows of the output that have an update, one span for each matrix of the Hugging Face layout.
        :param magnitude: learn lengths (DoRA).
        :param generator: draws A; B is zero, so that the layer begins as its base.
        """
        super().__init__()
        self.base, self.spans, self.rank, self.scale = base, spans, rank, scale
        weight = base.weight
        self.outputs, inputs = weight.shape
        bound = inputs**-0.5  # as PEFT: Kaiming's uniform distribution with a = sqrt(5)
        down = torch.empty(len(spans) * rank, inputs).uniform_(-bound, bound, generator=generator)
        self.lora_down = nn.Parameter(down.to(weight.device))
        self.lora_up = nn.Parameter(torch.zeros(sum(last - first for first, last in spans), rank, device=weight.device))
        self.lora_magnitude = nn.Parameter(row_lengths(weight)[self.rows]) if magnitude else None
        self.off = False
        """Compute as the base does."""
        self._probability, self._source, self._number = 0.0, DropoutSource(0.0), 0

    def drop(self, probability: float, source: DropoutSource, number: int) -> None:
        """Zero a share of the updates' inputs while training, by the seed of the model's own dropout and this layer's number."""
        self._probability, self._source, self._number = probability, source, number

    @property
    def rows(self) -> Tensor:
        """Indices of the outputs that have an update, in the order of ``lora_up``."""
        return torch.cat([torch.arange(first, last, device=self.lora_down.device) for first, last in self.spans])

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)"""
        if self.off:
            return self.base(x)  # type: ignore[no-any-return]
        dropout = self._dropout()
        return self._rescaled(self._sum(x) if dropout is None else self.base(x) + self._update(dropout(x)))

    def of_gated(self, gate_up: Tensor, kind: str) -> Tensor:
        """The same of what :func:`owngpt.kernels.activation.gated` gives, (..., 2 * in) → (..., out), by itself if it can."""
        if kind != "swiglu" or self.off or self._dropout() is not None or not isinstance(self.base, FrozenLinear):
            return self(gated(gate_up, kind))  # type: ignore[no-any-return]
        return self._rescaled(self._sum(gate_up, is_gate=True))  # hooks on this layer do not see it pass

    def _rescaled(self, y: Tensor) -> Tensor:
        """With the learned lengths of DoRA."""
        if self.lora_magnitude is None:
            return y
        factors = self._factors().to(y.dtype)
        if self.base.bias is None:
            return y * factors
        bias = self.base.bias.to(y.dtype)
        return (y - bias) * factors + bias  # type: ignore[no-any-return]

    def _sum(self, x: Tensor, *, is_gate: bool = False) -> Tensor:
        update = self.lora_down, self.lora_up, self.spans, self.scale
        if isinstance(self.base, FrozenLinear):
            return frozen_low_rank_linear(x, self.base.packed, self.base.bias, *update, gated=is_gate)
        return low_rank_linear(x, self.base.weight, self.base.bias, *update)

    def _update(self, x: Tensor) -> Tensor:
        return low_rank_product(x, self.lora_down, self.lora_up, self.spans, self.scale, self.outputs)

    def _dropout(self) -> Dropout | None:
        if not self._probability or not self.training:
            return None
        return Dropout(self._probability, seed_of(self._source.seed, USES_OF_THE_MODEL + self._number))

    def _factors(self) -> Tensor:
        """(out,): learned length / length of the rows of W + scale B A, which counts as a constant (section 4.3 of the paper)."""
        assert self.lora_magnitude is not None
        with torch.no_grad():
            lengths = row_lengths(self.base.weight.float() + self.delta())
            whole = torch.ones_like(lengths)
        return whole.index_put((self.rows,), self.lora_magnitude / lengths[self.rows])

    @torch.no_grad()
    def weaken(self, strength: float) -> None:
        """Keep a share of the update; with DoRA, lengths come as much closer to those of the base."""
        self.lora_up.mul_(strength)
        if self.lora_magnitude is not None:
            self.lora_magnitude.copy_(torch.lerp(row_lengths(self.base.weight)[self.rows], self.lora_magnitude, strength))

    @torch.no_grad()
    def update_of(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """One update: A (R, in), B (rows, R) without the scale, and the rows' lengths (rows,) or None."""
        sizes = [last - first for first, last in self.spans]
        magnitude = None if self.lora_magnitude is None else self.lora_magnitude.split(sizes)[index]
        return self.lora_down.split(self.rank)[index], self.lora_up.split(sizes)[index], magnitude

    @torch.no_grad()
    def take(self, down: Tensor, up: Tensor, magnitude: Tensor | None) -> None:
        """The inverse, of all at once: A (P * R, in); scaled B (out, P * R), diagonal by blocks; lengths (out,) or None."""
        self.lora_down.copy_(down)
        parts = [up[first:last, index * self.rank : (index + 1) * self.rank] for index, (first, last) in enumerate(self.spans)]
        self.lora_up.copy_(torch.cat(parts) / self.scale)
        if self.lora_magnitude is not None and magnitude is not None:
            self.lora_magnitude.copy_(magnitude.to(self.lora_magnitude.device)[self.rows])

    @torch.no_grad()
    def delta(self) -> Tensor:
        """scale * B A as (out, in) float32, zero in rows without an update."""
        delta = torch.zeros(self.outputs, self.lora_down.shape[1], device=self.lora_down.device)
        ups = self.lora_up.float().split([last - first for first, last in self.spans])
        for (first, last), up, down in zip(self.spans, ups, self.lora_down.float().split(self.rank), strict=True):
            torch.mm(up, down, out=delta[first:last])
        return delta.mul_(self.scale)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer that computes the same; its weight is rounded once, to the type of W."""
        weight = self.base.weight
        merged = weight.float() + self.delta()
        if self.lora_magnitude is not None:
            merged *= self._factors()[:, None]
        return plain_linear(merged.to(weight.dtype), self.base.bias)


def row_lengths(weight: Tensor) -> Tensor:
    """Euclidean length of each row, (out,) float32."""
    return torch.linalg.vector_norm(weight.detach().float(), dim=1)


def typical_row_length(matrices: Iterable[Tensor]) -> float:
    """The median length of their rows: how much larger an output is than an input, whatever a model's width. (out, in) each."""
    return float(torch.cat([row_lengths(matrix) for matrix in matrices]).median())
