"""The linear layer's products. In bfloat16 on the CPU the weight gradient goes by way of a fast transposition.

PyTorch's product of a transposed bfloat16 matrix (dW = dY^T X) runs at half the rate of a plain one; transposing the
narrower factor first and multiplying plainly is faster (benchmarks/NOTES.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from owngpt.kernels import library


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (..., in), weight (out, in), bias (out,)."""
    if library.available(x, weight):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def transposed(matrix: Tensor) -> Tensor:
    """A contiguous transpose of a bfloat16 (rows, columns) matrix."""
    rows, columns = matrix.shape
    if rows % 32 or columns % 32 or not library.available(matrix):
        return matrix.t().contiguous()
    out = torch.empty(columns, rows, dtype=matrix.dtype)
    library.call("transpose", matrix.contiguous(), out, rows, columns)
    return out


def weight_gradient(d_out: Tensor, x: Tensor) -> Tensor:
    """dY^T X: d_out (n, out), x (n, in) → (out, in)."""
    if not library.available(d_out, x):
        return d_out.t() @ x
    if x.shape[1] < d_out.shape[1]:
        return transposed(transposed(x) @ d_out)
    return transposed(d_out) @ x


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
        return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        d_rows, rows = d_out.reshape(-1, d_out.shape[-1]), x.reshape(-1, x.shape[-1])
        d_x = (d_rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        d_weight = weight_gradient(d_rows, rows) if ctx.needs_input_grad[1] else None
        d_bias = _column_sums(d_rows).to(ctx.bias_type) if ctx.bias_type is not None and ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias
