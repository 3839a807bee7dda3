"""Split the fused projection into queries, keys and values; norm and rotate (arXiv 2104.09864, arXiv 2010.04245)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from owngpt.kernels import library, pool, tape

LARGEST_RECORDED = 1024
"""Elements of a head that the step takes."""


@dataclass(frozen=True)
class HeadLayout:
    """How the last axis of the fused projection is laid out: H query heads, G key heads, G value heads of D elements."""

    heads: int
    groups: int
    size: int

    @property
    def width(self) -> int:
        """Elements a token: (H + 2G) * D."""
        return (self.heads + 2 * self.groups) * self.size


@dataclass(frozen=True)
class Rotation:
    """Cosine and sine tables, (positions, R/2) float32, and each token's position, (B*T,) int32. R may be 0: no rotation."""

    cosines: Tensor
    sines: Tensor
    positions: Tensor


def split_heads(
    projected: Tensor,
    layout: HeadLayout,
    rotation: Rotation,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, (H+2G)*D) → query (B, T, H, D), key and value (B, T, G, D).

    ``query_weight``, ``key_weight``: (D,) weights of the RMSNorm over each head, or None. The rotation uses the half-split
    layout: element i turns with element i + R/2.
    """
    if tape.recording() is not None:
        return _recorded(projected, layout, rotation, query_weight, key_weight, epsilon)
    if query_weight is None and rotation.cosines.shape[1] == 0:
        return _PlainSplit.apply(projected, layout)  # type: ignore[no-any-return]
    if library.available(projected) and layout.size <= 512:
        return _SplitHeads.apply(projected.contiguous(), layout, rotation, query_weight, key_weight, epsilon)  # type: ignore[no-any-return]
    query, key, value = _split(projected, layout)
    return _turn(_head_norm(query, query_weight, epsilon), rotation), _turn(_head_norm(key, key_weight, epsilon), rotation), value


def _recorded(
    projected: Tensor,
    layout: HeadLayout,
    rotation: Rotation,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = _split(projected, layout)
    half = rotation.cosines.shape[1]
    if query_weight is None and not half:
        return query, key, value
    active = tape.recording()
    assert active is not None
    assert layout.size <= LARGEST_RECORDED
    batch, time = projected.shape[:2]
    rotated = active.empty(batch, time, layout.heads + layout.groups, layout.size)
    active.step(
        "rotate", projected, query_weight, key_weight, rotation.cosines, rotation.sines, rotation.positions, rotated,
        batch * time, layout.heads, layout.groups, layout.size, half, float(epsilon),
    )  # fmt: skip
    return rotated[:, :, : layout.heads], rotated[:, :, layout.heads :], value


def _split(projected: Tensor, layout: HeadLayout) -> tuple[Tensor, Tensor, Tensor]:
    heads = projected.unflatten(-1, (layout.heads + 2 * layout.groups, layout.size))
    query, key, value = heads.split([layout.heads, layout.groups, layout.groups], dim=2)
    return query, key, value


def _head_norm(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    if weight is None:
        return x
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight.float()).to(x.dtype)


def _turn(x: Tensor, rotation: Rotation) -> Tensor:
    half = rotation.cosines.shape[1]
    if not half:
        return x
    shape = (x.shape[0], x.shape[1], 1, half)
    index = rotation.positions.long()
    cosine, sine = rotation.cosines[index].view(shape), rotation.sines[index].view(shape)
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


class _PlainSplit(torch.autograd.Function):
    """Views forward; backward, the three gradients usually lie in one buffer already, as attention wrote them."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, layout: HeadLayout) -> tuple[Tensor, Tensor, Tensor]:
        ctx.layout = layout
        query, key, value = _split(projected, layout)
        return query, key, value

    @staticmethod
    def backward(ctx: Any, d_query: Tensor, d_key: Tensor, d_value: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        layout = ctx.layout
        batch, time = d_query.shape[:2]
        step = layout.size * d_query.element_size()
        strides = (time * layout.width, layout.width, layout.size, 1)
        together = (
            all(gradient.stride() == strides for gradient in (d_query, d_key, d_value))
            and d_key.data_ptr() == d_query.data_ptr() + layout.heads * step
            and d_value.data_ptr() == d_key.data_ptr() + layout.groups * step
            and d_query.untyped_storage().data_ptr() == d_value.untyped_storage().data_ptr()
        )
        if together:
            return d_query.as_strided((batch, time, layout.width), (time * layout.width, layout.width, 1)), None
        return torch.cat((d_query, d_key, d_value), dim=2).flatten(2), None


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        layout: HeadLayout,
        rotation: Rotation,
        query_weight: Tensor | None,
        key_weight: Tensor | None,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, time = projected.shape[:2]
        turned, normed = layout.heads + layout.groups, query_weight is not None
        # Without a norm only the values of the projection are of use later: a copy of them lets the rest go.
        rotated = pool.empty((batch, time, turned if normed else turned + layout.groups, layout.size), projected.dtype)
        query_weight = None if query_weight is None else query_weight.float()
        key_weight = None if key_weight is None else key_weight.float()
        rstd = torch.empty(batch * time * turned) if normed else None
        library.call(
            "rotate", projected, query_weight, key_weight, rotation.cosines, rotation.sines, rotation.positions, rotated,
            int(not normed), rstd, batch * time, layout.heads, layout.groups, layout.size, rotation.cosines.shape[1], epsilon,
        )  # fmt: skip
        values = projected.unflatten(-1, (turned + layout.groups, layout.size)) if normed else rotated
        ctx.save_for_backward(projected if normed else None, query_weight, key_weight, rstd)
        ctx.layout, ctx.rotation = layout, rotation
        return rotated[:, :, : layout.heads], rotated[:, :, layout.heads : turned], values[:, :, turned:]

    @staticmethod
    def backward(ctx: Any, d_query: Tensor, d_key: Tensor, d_value: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        projected, query_weight, key_weight, rstd = ctx.saved_tensors
        layout, rotation = ctx.layout, ctx.rotation
        d_query, d_key, d_value = (_rows(gradient) for gradient in (d_query, d_key, d_value))
        batch, time = d_query.shape[:2]
        d_projected = pool.empty((batch, time, layout.width), d_query.dtype)
        parts = None if query_weight is None else torch.zeros(torch.get_num_threads(), 2, layout.size)
        library.call(
            "rotate_backward", d_query, d_query.stride(1), d_key, d_key.stride(1), d_value, d_value.stride(1), projected,
            query_weight, key_weight, rotation.cosines, rotation.sines, rotation.positions, rstd, d_projected, parts,
            batch * time, layout.heads, layout.groups, layout.size, rotation.cosines.shape[1],
        )  # fmt: skip
        if parts is None:
            return d_projected, None, None, None, None, None
        d_weights = parts.sum(0)
        return d_projected, None, None, d_weights[0], d_weights[1], None


def _rows(heads: Tensor) -> Tensor:
    """(B, T, heads, D) such that tokens follow each other at one stride and heads lie side by side."""
    batch, time, _, size = heads.shape
    fits = heads.stride(3) == 1 and heads.stride(2) == size and (batch == 1 or heads.stride(0) == time * heads.stride(1))
    return heads if fits else heads.contiguous()
