"""Cross-entropy of a linear head without the full logit matrix: a block of rows at a time, gradient made on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from owngpt.kernels import library, pool
from owngpt.kernels.frozen import FrozenWeight, forward_product, input_product
from owngpt.kernels.linear import weight_gradient

BLOCK_VALUES = 128 * 1024 * 1024
"""Logits held at once (256 MB in bfloat16): more blocks would each add to the weight gradient in float32."""
FROZEN_BLOCK_VALUES = 15 * 1024 * 1024
"""The same for a head that has no gradient (30 MB, which stay with the process, see memory.py)."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor | FrozenWeight, targets: Tensor, *, scale: float = 1.0) -> Tensor:
    """scale * sum over rows of -log softmax(hidden weight^T)[target], float32 scalar, nats.

    ``hidden``: (N, C); ``weight``: (V, C); ``targets``: (N,) int64, negative ones are ignored. ``scale`` belongs to the
    gradient that is computed in the forward pass: pass 1 / (global number of targets) so that no later pass rescales it.
    A frozen ``weight`` has no gradient computed.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, scale)  # type: ignore[no-any-return]


def block_gradient(logits: Tensor, targets: Tensor, scale: float, want_gradient: bool) -> tuple[Tensor, Tensor]:
    """(losses (n,) float32, gradient like ``logits``); ``logits`` may be overwritten."""
    if library.available(logits):
        losses = torch.empty(len(targets))
        library.call(
            "cross_entropy", logits, targets, losses, len(targets), logits.shape[1], logits.shape[1], scale, int(want_gradient)
        )
        return losses, logits
    wide = logits.float()
    seen = targets >= 0
    index = targets.clamp(min=0)[:, None]
    log_probabilities = wide.log_softmax(-1)
    losses = -log_probabilities.gather(1, index)[:, 0] * seen
    if not want_gradient:
        return losses, logits
    gradient = log_probabilities.exp()
    gradient.scatter_add_(1, index, torch.full_like(index, -1, dtype=gradient.dtype))
    return losses, (gradient * (scale * seen)[:, None]).to(logits.dtype)


def _rows_at_once(rows: int, most: int, trained: bool) -> int:
    """Of the head's products: as many as may be where a gradient is added up, else blocks of one size, whole tiles."""
    if trained or most < 32:
        return max(1, most)
    most = most // 32 * 32
    return -(-rows // (-(-rows // most) * 32)) * 32 if rows > most else most


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor | FrozenWeight, targets: Tensor, scale: float) -> Tensor:
        want_gradient, want_weight = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[1]
        rows = _rows_at_once(len(targets), (BLOCK_VALUES if want_weight else FROZEN_BLOCK_VALUES) // weight.shape[0], want_weight)
        blocks = range(0, len(targets), rows)
        total = torch.zeros((), dtype=torch.float64 if hidden.device.type != "mps" else torch.float32, device=hidden.device)
        d_hidden = pool.empty_like(hidden) if want_gradient else None
        d_weight: Tensor | None = None
        for first in blocks:
            part = hidden[first : first + rows]
            losses, gradient = block_gradient(
                forward_product(part, weight), targets[first : first + rows].contiguous(), scale, want_gradient
            )
            total += losses.sum(dtype=total.dtype)
            if d_hidden is not None:
                input_product(gradient, weight, d_hidden[first : first + rows])
            if want_weight:
                d_part = weight_gradient(gradient, part)
                d_weight = d_part if len(blocks) == 1 else d_part.float() if d_weight is None else d_weight.add_(d_part)
            del gradient  # before the next block's are made
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_type = weight.dtype
        return (total * scale).float()

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        d_hidden, d_weight = ctx.saved_tensors
        if d_loss.device.type != "cpu" or d_loss.item() != 1.0:
            d_hidden = d_hidden * d_loss.to(d_hidden.dtype)
            d_weight = None if d_weight is None else d_weight * d_loss.to(d_weight.dtype)
        return d_hidden, None if d_weight is None else d_weight.to(ctx.weight_type), None, None
