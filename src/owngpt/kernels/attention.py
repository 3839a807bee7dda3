"""Causal attention softmax(Q K^T * scale) V (arXiv 1706.03762), on matrix tiles where this machine has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import pad

from owngpt.kernels import library, pool
from owngpt.kernels.rotary import _rows

LONGEST_ON_TILES = 8192
"""Tokens; a row block of scores beyond it would leave the second-level cache."""


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, *, starts: Tensor | None, window: int, scale: float, dropout: float = 0.0
) -> Tensor:
    """Attention of each token over itself and earlier ones.

    ``query``: (B, T, H, D); ``key``, ``value``: (B, T, G, D), G divides H. Key j is visible to query i when
    max(starts[i], i - window + 1) <= j <= i; ``starts``: (B, T) int32 first position of i's document, or None; window 0 is
    unlimited. Returns (B, T, H*D).
    """
    batch, time, heads, size = query.shape
    on_tiles = library.available(query) and library.has_tiles() and size % 32 == 0 and size <= 256 and not dropout
    if on_tiles and time <= LONGEST_ON_TILES:
        return _TileAttention.apply(query, key, value, starts, window, scale)  # type: ignore[no-any-return]
    mask = visible_keys(time, starts, window, query.device) if starts is not None or 0 < window < time else None
    out = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
        attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scale, enable_gqa=heads != key.shape[2],
    )  # fmt: skip
    return out.transpose(1, 2).reshape(batch, time, heads * size)


def attention_with_sinks(
    query: Tensor, keys: Tensor, values: Tensor, sinks: Tensor, *, visible: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """Attention whose softmax has one more logit in its denominator, learned for each query head (arXiv 2309.17453).

    ``query``: (B, T, H, D); ``keys``, ``values``: (B, G, S, D); ``sinks``: (H,); ``visible``: (1 or B, 1, T, S) bool. Returns
    (B, T, H*D). The logit is the product of one further element of each query with the one key that has it, whose value
    is 0: so it runs in the fused attention and has a gradient.
    """
    batch, time, heads, _ = query.shape
    logit = (sinks / scale).to(query.dtype)[None, :, None, None].expand(batch, heads, time, 1)
    queries = torch.cat((query.transpose(1, 2), logit), dim=-1)
    keys, values = pad(keys, (0, 1, 1, 0)), pad(values, (0, 1, 1, 0))
    keys[:, :, 0, -1] = 1.0
    out = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=pad(visible, (1, 0), value=True), dropout_p=dropout, scale=scale,
        enable_gqa=heads != keys.shape[1],
    )  # fmt: skip
    return out[..., :-1].transpose(1, 2).reshape(batch, time, -1)


def visible_keys(time: int, starts: Tensor | None, window: int, device: torch.device) -> Tensor:
    """(1 or B, 1, T, T), true where visible; see :func:`causal_attention`."""
    index = torch.arange(time, device=device)
    first = index * 0 if not window else (index - window + 1).clamp(min=0)
    first = first[None] if starts is None else torch.maximum(first, starts.to(device))
    return ((index[None, None] >= first[:, :, None]) & (index[None, None] <= index[None, :, None]))[:, None]


class _TileAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, window: int, scale: float) -> Tensor:
        query, key, value = _rows(query), _rows(key), _rows(value)
        batch, time, heads, size = query.shape
        out = pool.empty((batch, time, heads * size), query.dtype)
        log_sums = pool.empty((batch, heads, time))
        starts = None if starts is None else starts.to(torch.int32).contiguous()
        library.call(
            "attention", query, query.stride(1), key, key.stride(1), value, value.stride(1), out, log_sums, starts,
            batch, time, heads, key.shape[2], size, window, scale,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, out, log_sums, starts)
        ctx.window, ctx.scale = window, scale
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        query, key, value, out, log_sums, starts = ctx.saved_tensors
        batch, time, heads, size = query.shape
        groups = key.shape[2]
        together = pool.empty((batch, time, heads + 2 * groups, size), query.dtype)
        d_query, d_key, d_value = together.split([heads, groups, groups], dim=2)
        library.call(
            "attention_backward", query, query.stride(1), key, key.stride(1), value, value.stride(1), out,
            d_out.contiguous(), log_sums,
            d_query, d_key, d_value, together.stride(1), starts, batch, time, heads, groups, size, ctx.window, ctx.scale,
        )  # fmt: skip
        return d_query, d_key, d_value, None, None, None
