"""A frozen linear layer with a low-rank update that is learned (LoRA, arXiv 2106.09685): y = x W^T + b + scale * (x A^T) B^T.

Only x, A and B have gradients: nothing is computed for W.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from owngpt.kernels import library, pool
from owngpt.kernels.frozen import FrozenWeight, forward_product, input_product
from owngpt.kernels.linear import product, weight_gradient
from owngpt.kernels.remake import sources_of

Spans = tuple[tuple[int, int], ...]
"""For each update its first and last + 1 row of the output: query, key and value of one fused matrix have one each."""


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, spans: Spans, scale: float
) -> Tensor:
    """x (..., in), weight (out, in) and bias (out,) frozen → (..., out) in the type of ``x``.

    ``down``: (P * R, in), the A of P updates below one another; ``up``: (sum of the spans' rows, R), their B. Both float32, or of
    the type of ``x``, and so are their gradients.
    """
    if library.available(x, weight):
        return _LowRankLinear.apply(x, weight, bias, down, up, spans, scale)  # type: ignore[no-any-return]
    y = functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
    return y + low_rank_product(x, down, up, spans, scale, len(weight))


def low_rank_product(x: Tensor, down: Tensor, up: Tensor, spans: Spans, scale: float, outputs: int) -> Tensor:
    """The update alone: scale * (x A^T) B^T, (..., in) → (..., out), zero outside of the spans; plain PyTorch."""
    rank = up.shape[1]
    hidden = functional.linear(x, down.to(x.dtype))
    pieces, at, row = [], 0, 0
    for index, (first, last) in enumerate(spans):
        if first > at:
            pieces.append(hidden.new_zeros(*hidden.shape[:-1], first - at))
        part = up[row : row + last - first].to(x.dtype)
        pieces.append(functional.linear(hidden[..., index * rank : (index + 1) * rank], part) * scale)
        row, at = row + last - first, last
    if at < outputs:
        pieces.append(hidden.new_zeros(*hidden.shape[:-1], outputs - at))
    return torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]


def frozen_linear(x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
    """x W^T + b over a packed weight: x (..., in) bfloat16 → (..., out)."""
    return _Frozen.apply(x, weight, bias)  # type: ignore[no-any-return]


def frozen_low_rank_linear(
    x: Tensor, weight: FrozenWeight, bias: Tensor | None, down: Tensor, up: Tensor, spans: Spans, scale: float, *,
    gated: bool = False,
) -> Tensor:  # fmt: skip
    """:func:`low_rank_linear` over a packed weight, x (..., in) bfloat16; each direction is one call of a kernel.

    :param gated: ``x`` (..., 2 * in) is what SwiGLU makes the input of, gate half first, which is then neither written nor kept.
    """
    made_of = sources_of(x) if x.is_contiguous() and not gated else None
    return _FrozenLowRank.apply(x, weight, bias, down, up, spans, scale, gated, made_of)  # type: ignore[no-any-return]


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return forward_product(x.reshape(-1, weight.inputs), weight, bias).view(*x.shape[:-1], weight.outputs)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        d_x = pool.empty((*d_y.shape[:-1], ctx.weight.inputs), d_y.dtype)
        input_product(d_y.reshape(-1, ctx.weight.outputs), ctx.weight, d_x.view(-1, ctx.weight.inputs))
        return d_x, None, None


class _FrozenLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: FrozenWeight, bias: Tensor | None, down: Tensor, up: Tensor, spans: Spans, scale: float,
        gated: bool, made_of: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor:  # fmt: skip
        x, types = x.contiguous(), (down.dtype, up.dtype)
        if types != (torch.bfloat16, torch.bfloat16):
            down, up = down.float(), up.float()
        down, up = down.contiguous(), up.contiguous()
        bias = None if bias is None else bias.float().contiguous()
        rows, rank = x.numel() // max(1, x.shape[-1]), up.shape[1]
        hidden = pool.empty((rows, len(spans) * rank), x.dtype)
        y = pool.empty((*x.shape[:-1], weight.outputs), x.dtype)
        library.call(
            "low_rank", x, int(gated), weight.forward, bias, down, up, int(down.dtype == torch.float32), _table(spans),
            len(spans), rank, scale, hidden, y, rows, weight.inputs, weight.outputs,
        )  # fmt: skip
        ctx.save_for_backward(hidden, down, up, *(made_of or (x, None, None)))
        ctx.weight, ctx.spans, ctx.rank, ctx.scale, ctx.gated, ctx.types = weight, spans, rank, scale, gated, types
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        hidden, down, up, x, norm, rstd = ctx.saved_tensors
        weight, spans = ctx.weight, ctx.spans
        d_y = d_y.contiguous()
        d_x = pool.empty_like(x) if ctx.needs_input_grad[0] else None
        d_down, d_up = torch.empty(down.shape), torch.empty(up.shape)
        library.call(
            "low_rank_backward", d_y, x, int(ctx.gated), norm, rstd, hidden, weight.backward, down, up,
            int(down.dtype == torch.float32), _table(spans), len(spans), ctx.rank, ctx.scale, d_x, d_down, d_up, len(hidden),
            weight.inputs, weight.outputs,
        )  # fmt: skip
        if ctx.types != (torch.float32, torch.float32):
            d_down, d_up = d_down.to(ctx.types[0]), d_up.to(ctx.types[1])
        return d_x, None, None, d_down, d_up, None, None, None, None


@cache
def _table(spans: Spans) -> Tensor:
    return torch.tensor(spans, dtype=torch.int64)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, spans: Spans, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        small_down, small_up = down.to(x.dtype), up.to(x.dtype)
        hidden = product(rows, small_down.t())
        y = product(rows, weight.t(), bias)
        for columns, part, low in _pieces(spans, small_up, hidden):
            y[:, columns].addmm_(low, part.t(), alpha=scale)
        ctx.save_for_backward(x, weight, small_down, small_up, hidden)
        ctx.spans, ctx.scale, ctx.types = spans, scale, (down.dtype, up.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, down, up, hidden = ctx.saved_tensors
        d_y, rows = d_y.reshape(-1, d_y.shape[-1]), x.reshape(-1, x.shape[-1])
        d_hidden, d_up = torch.empty_like(hidden), torch.empty_like(up)
        for (columns, part, low), d_low, d_part in zip(
            _pieces(ctx.spans, up, hidden), d_hidden.split(up.shape[1], 1), _rows(ctx.spans, d_up), strict=True
        ):
            d_low.copy_(torch.mm(d_y[:, columns], part).mul_(ctx.scale))
            d_part.copy_(weight_gradient(d_y[:, columns], low).mul_(ctx.scale))
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = product(d_y, weight).addmm_(d_hidden, down).view_as(x)
        d_down = weight_gradient(d_hidden, rows)
        return d_x, None, None, d_down.to(ctx.types[0]), d_up.to(ctx.types[1]), None, None


def _rows(spans: Spans, up: Tensor) -> tuple[Tensor, ...]:
    return up.split([last - first for first, last in spans])


def _pieces(spans: Spans, up: Tensor, hidden: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
    """(columns of the output, B, x A^T) of each update."""
    columns = [slice(first, last) for first, last in spans]
    return list(zip(columns, _rows(spans, up), hidden.split(up.shape[1], 1), strict=True))
