"""The sum of two activations: one place, so that a tape can hold it."""

from __future__ import annotations

from torch import Tensor

from owngpt.kernels import tape


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, both (..., C)."""
    active = tape.recording()
    if active is None:
        return x + y
    out = active.empty(*x.shape)
    active.step("add", x, y, out, x.numel() // x.shape[-1], x.shape[-1])
    return out
