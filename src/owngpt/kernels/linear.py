"""The linear layer's products: on matrix tiles our own where it is faster than PyTorch's (benchmarks/NOTES.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from owngpt.kernels import library, pool


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (..., in), weight (out, in), bias (out,)."""
    if library.available(x, weight):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def product(left: Tensor, right: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """left (rows, k) times right (k, columns), plus bias (columns,): bfloat16, sums in float32.

    Either factor may be a transposed view. ``out``: where to write, rows of (columns,) values side by side.
    """
    rows, depth = left.shape
    columns = right.shape[1]
    out = pool.empty((rows, columns), left.dtype, left.device) if out is None else out
    if not _ours(left, right):
        return torch.mm(left, right, out=out) if bias is None else torch.addmm(bias.to(left.dtype), left, right, out=out)
    wide = None if bias is None else bias.float().contiguous()
    (left, *left_layout), (right, *right_layout) = _laid_out(left, 1), _laid_out(right, 0)
    library.call("product", left, *left_layout, right, *right_layout, wide, out, out.stride(0), rows, columns, depth)
    return out


DEEP = 2048
"""From this many summed values on our own plain product is at least as fast as the library's (benchmarks/NOTES.md)."""


def _ours(left: Tensor, right: Tensor) -> bool:
    """Ours is faster for transposed left factors, long sums, and widths that are no multiple of 32 (a vocabulary of 50,257)."""
    if not library.available(left, right) or not library.has_tiles():
        return False
    return left.stride(1) != 1 or left.shape[1] >= DEEP or right.shape[1] % 32 != 0


def _laid_out(matrix: Tensor, summed: int) -> tuple[Tensor, int, int]:
    """(matrix, elements between its stored rows, whether the summed dimension runs along them)."""
    if matrix.stride(1) != 1 and matrix.stride(0) != 1:
        matrix = matrix.contiguous()
    along = 1 if matrix.stride(1) == 1 else 0
    return matrix, matrix.stride(1 - along), int(along == summed)


def weight_gradient(d_out: Tensor, x: Tensor) -> Tensor:
    """dY^T X: d_out (n, out), x (n, in) → (out, in)."""
    return product(d_out.t(), x)


def _column_sums(matrix: Tensor) -> Tensor:
    """(rows, columns) bfloat16 → (columns,) float32."""
    parts = torch.zeros(torch.get_num_threads(), matrix.shape[1])
    library.call("column_sums", matrix.contiguous(), parts, *matrix.shape)
    return parts.sum(0)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_type = None if bias is None else bias.dtype
        return product(x.reshape(-1, x.shape[-1]), weight.t(), bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        d_rows, rows = d_out.reshape(-1, d_out.shape[-1]), x.reshape(-1, x.shape[-1])
        d_x = product(d_rows, weight).view_as(x) if ctx.needs_input_grad[0] else None
        d_weight = weight_gradient(d_rows, rows) if ctx.needs_input_grad[1] else None
        d_bias = _column_sums(d_rows).to(ctx.bias_type) if ctx.bias_type is not None and ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias
