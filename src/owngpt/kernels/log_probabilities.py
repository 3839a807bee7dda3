"""Log-probabilities of given tokens under a linear head without the full logit matrix, with gradient.

Unlike the cross-entropy of :mod:`owngpt.kernels.loss`, what each of them counts in the end is not known in the forward pass: a
preference weighs whole answers by how probable they turn out to be. Where the head is frozen, the forward pass keeps for each
row the gradient of its own log-probability (one vector as wide as the hidden state), and the backward pass scales it. Where
the head is trained, the backward pass computes each block's logits a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from owngpt.kernels import pool
from owngpt.kernels.frozen import FrozenWeight, forward_product, input_product
from owngpt.kernels.linear import product, weight_gradient
from owngpt.kernels.loss import block_gradient

BLOCK_VALUES = 32 * 1024 * 1024
"""Logits held at once (64 MB in bfloat16)."""


def linear_log_probabilities(hidden: Tensor, weight: Tensor | FrozenWeight, targets: Tensor) -> Tensor:
    """log softmax(hidden weight^T)[target] of each row: (N,) float32, nats.

    ``hidden``: (N, C); ``weight``: (V, C); ``targets``: (N,) int64, none negative.
    """
    return _LinearLogProbabilities.apply(hidden, weight, targets)  # type: ignore[no-any-return]


def _blocks(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, BLOCK_VALUES // vocabulary)
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


def _dot(hidden: Tensor, weight: Tensor | FrozenWeight, targets: Tensor) -> Tensor:
    """(n,) float32, the targets' logits."""
    chosen = weight[targets] if isinstance(weight, Tensor) else weight.rows(targets)
    return (hidden.float() * chosen.float()).sum(1)


def _exact(losses: Tensor, missing: Tensor) -> Tensor:
    """Log-probabilities as if the target's logit, here and in the sum over all, had been ``missing`` more.

    In bfloat16 a logit of 20 is off by up to 0.06, in each token by another amount, and the sum over an answer adds that up.
    """
    return (missing - losses - torch.log1p((-losses).exp() * torch.expm1(missing))).clamp(max=0.0)


class _LinearLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor | FrozenWeight, targets: Tensor) -> Tensor:
        result = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        ctx.head_is_frozen = not ctx.needs_input_grad[1]
        own = pool.empty_like(hidden) if ctx.head_is_frozen and ctx.needs_input_grad[0] else None
        for rows in _blocks(len(targets), len(weight)):
            wanted = targets[rows].contiguous()
            logits = forward_product(hidden[rows], weight)
            rounded = logits.gather(1, wanted[:, None])[:, 0].float()  # before the logits are overwritten
            losses, gradient = block_gradient(logits, wanted, -1.0, own is not None)
            result[rows] = _exact(losses, _dot(hidden[rows], weight, wanted) - rounded)
            if own is not None:
                input_product(gradient, weight, own[rows])
        ctx.save_for_backward(*((own,) if ctx.head_is_frozen else (hidden, weight, targets)))
        return result

    @staticmethod
    def backward(ctx: Any, d_result: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        if ctx.head_is_frozen:
            (own,) = ctx.saved_tensors
            return own * d_result[:, None].to(own.dtype), None, None
        hidden, weight, targets = ctx.saved_tensors
        d_hidden = pool.empty_like(hidden)
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for rows in _blocks(len(targets), len(weight)):
            logits = product(hidden[rows], weight.t())
            _, gradient = block_gradient(logits, targets[rows].contiguous(), -1.0, True)
            # Scaling the narrow factor of each product instead of the wide gradient.
            share = d_result[rows, None].to(hidden.dtype)
            product(gradient, weight, out=d_hidden[rows]).mul_(share)
            d_weight += weight_gradient(gradient, hidden[rows] * share)
        return d_hidden, d_weight.to(weight.dtype), None
