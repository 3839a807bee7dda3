"""RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450) with the residual sum before them, fused where the kernels run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from owngpt.kernels import library, pool, tape
from owngpt.kernels.dropout import Dropout


def add_rms_norm(
    x: Tensor, update: Tensor | None, weight: Tensor, epsilon: float, dropout: Dropout | None = None
) -> tuple[Tensor, Tensor]:
    """Add a sub-layer's update to the residual stream and norm the sum.

    ``x``, ``update``: (..., C). ``weight``: (C,) float32. Returns (sum, normed), both like ``x``;
    normed = sum / sqrt(mean(sum²) + epsilon) * weight.
    """
    if tape.recording() is not None:
        return _recorded(x, update, weight, None, epsilon)
    if library.available(x):
        return _AddRMSNorm.apply(x.contiguous(), None if update is None else update.contiguous(), weight, epsilon, dropout)  # type: ignore[no-any-return]
    if update is not None:
        x = x + (dropout(update) if dropout else update)
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight.float()
    return x, normed.to(x.dtype)


def add_layer_norm(
    x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float, dropout: Dropout | None = None
) -> tuple[Tensor, Tensor]:
    """Like :func:`add_rms_norm` with LayerNorm: normed = (sum - mean) / sqrt(variance + epsilon) * weight + bias."""
    if tape.recording() is not None:
        return _recorded(x, update, weight, bias, epsilon)
    if library.available(x) and dropout is None:
        update = None if update is None else update.contiguous()
        return _AddLayerNorm.apply(x.contiguous(), update, weight, bias, epsilon)  # type: ignore[no-any-return]
    if update is not None:
        x = x + (dropout(update) if dropout else update)
    return x, functional.layer_norm(x, (x.shape[-1],), weight.to(x.dtype), bias.to(x.dtype), epsilon)


def _recorded(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor]:
    active = tape.recording()
    assert active is not None
    assert weight.dtype == torch.float32
    normed = active.empty(*x.shape)
    summed = x if update is None else active.empty(*x.shape)
    width = x.shape[-1]
    active.step("norm", x, update, weight, bias, summed, normed, x.numel() // width, width, float(epsilon))
    return summed, normed


def _dropout_arguments(dropout: Dropout | None) -> tuple[int, float, int]:
    return (dropout.threshold, dropout.scale, dropout.seed) if dropout else (0, 1.0, 0)


def norm_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(sum, weight, 1 / deviation) that :func:`add_rms_norm` made the normed ``x`` of, where its kernel did and with gradient."""
    made = x.grad_fn
    if getattr(made, "_forward_cls", None) is not _AddRMSNorm or x.output_nr != 1:
        return None
    summed, weight, rstd = made.saved_tensors  # type: ignore[union-attr]
    return summed, weight, rstd


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, update: Tensor | None, weight: Tensor, epsilon: float, dropout: Dropout | None
    ) -> tuple[Tensor, Tensor]:
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        summed = x if update is None else pool.empty_like(x)
        normed = pool.empty_like(x)
        rstd = torch.empty(rows, dtype=torch.float32)
        weight = weight.float()
        library.call("add_rms_norm", x, update, weight, summed, normed, rstd, rows, width, epsilon, *_dropout_arguments(dropout))
        ctx.save_for_backward(summed, weight, rstd)
        ctx.dropout, ctx.with_update = dropout, update is not None
        ctx.set_materialize_grads(False)
        if update is None:
            ctx.mark_non_differentiable()
            return x.view_as(x), normed
        return summed, normed

    @staticmethod
    def backward(ctx: Any, d_summed: Tensor | None, d_normed: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        summed, weight, rstd = ctx.saved_tensors
        if d_normed is None:
            d_normed = torch.zeros_like(summed)
        rows, width = rstd.numel(), weight.numel()
        d_x = pool.empty_like(summed)
        d_update = pool.empty_like(summed) if ctx.dropout else None
        parts = torch.zeros(torch.get_num_threads(), width) if ctx.needs_input_grad[2] else None
        d_summed = None if d_summed is None else d_summed.contiguous()
        library.call(
            "add_rms_norm_backward", d_summed, d_normed.contiguous(), summed, weight, rstd, d_x, d_update, parts, rows, width,
            *_dropout_arguments(ctx.dropout),
        )  # fmt: skip
        d_weight = None if parts is None else parts.sum(0)
        if not ctx.with_update:
            return d_x, None, d_weight, None, None
        return d_x, d_x if d_update is None else d_update, d_weight, None, None


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        summed = x if update is None else pool.empty_like(x)
        normed = pool.empty_like(x)
        mean, rstd = torch.empty(rows), torch.empty(rows)
        weight = weight.float()
        library.call("add_layer_norm", x, update, weight, bias.float(), summed, normed, mean, rstd, rows, width, epsilon)
        ctx.save_for_backward(summed, weight, mean, rstd)
        ctx.with_update = update is not None
        ctx.set_materialize_grads(False)
        return (summed if ctx.with_update else x.view_as(x)), normed

    @staticmethod
    def backward(ctx: Any, d_summed: Tensor | None, d_normed: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        summed, weight, mean, rstd = ctx.saved_tensors
        d_normed = torch.zeros_like(summed) if d_normed is None else d_normed.contiguous()
        d_summed = None if d_summed is None else d_summed.contiguous()
        rows, width = rstd.numel(), weight.numel()
        d_x = pool.empty_like(summed)
        parts = torch.zeros(torch.get_num_threads(), 2, width)
        library.call("add_layer_norm_backward", d_summed, d_normed, summed, weight, mean, rstd, d_x, parts, rows, width)
        d_weight, d_bias = parts.sum(0)
        return d_x, d_x if ctx.with_update else None, d_weight, d_bias, None
