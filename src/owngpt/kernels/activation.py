"""Feed-forward activations; bfloat16 on the CPU goes through the compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from owngpt.kernels import library, pool, tape

_PLAIN = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "silu": functional.silu,
}
CLAMP, CLAMPED_SLOPE = 7.0, 1.702
"""The constants of gpt-oss's clamped SwiGLU."""
_COMPILED = {"gelu_tanh": "gelu", "relu2": "relu2"}


GATED_STEPS = {"swiglu": 0, "geglu": 1}
PLAIN_STEPS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "relu2": 3, "silu": 4}


def gated(gate_up: Tensor, kind: str) -> Tensor:
    """GLU variants (arXiv 2002.05202): (..., 2F), gate half first → (..., F). ``kind``: swiglu, geglu or swiglu_clamped."""
    active = tape.recording()
    if active is not None:
        width = gate_up.shape[-1] // 2
        out = active.empty(*gate_up.shape[:-1], width)
        active.step("gated", gate_up, out, out.numel() // width, width, _known(GATED_STEPS, kind))
        return out
    if kind == "swiglu" and library.available(gate_up):
        return _SwiGLU.apply(gate_up.contiguous())  # type: ignore[no-any-return]
    gate, up = gate_up.chunk(2, dim=-1)
    if kind == "swiglu_clamped":
        return _clamped(gate, up)
    return (functional.silu(gate) if kind == "swiglu" else functional.gelu(gate, approximate="tanh")) * up


def _clamped(gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss (arXiv 2508.10925): both factors bounded, a steeper sigmoid, and 1 added to the linear factor."""
    gate, up = gate.clamp(max=CLAMP), up.clamp(-CLAMP, CLAMP)
    return gate * torch.sigmoid(gate * CLAMPED_SLOPE) * (up + 1)


def plain(x: Tensor, kind: str) -> Tensor:
    """Element-wise activation of any shape: gelu (exact), gelu_tanh, relu, relu2 (arXiv 2109.08668) or silu."""
    active = tape.recording()
    if active is not None:
        out = active.empty(*x.shape)
        active.step("pointwise", x, out, x.numel() // x.shape[-1], x.shape[-1], _known(PLAIN_STEPS, kind))
        return out
    if kind in _COMPILED and library.available(x):
        return _Pointwise.apply(x.contiguous(), _COMPILED[kind])  # type: ignore[no-any-return]
    return _PLAIN[kind](x)


def _known(steps: dict[str, int], kind: str) -> int:
    if kind not in steps:
        raise tape.NotRecordableError(f"the activation {kind} is not a step that a tape can hold")
    return steps[kind]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        width = gate_up.shape[-1] // 2
        out = pool.empty((*gate_up.shape[:-1], width), gate_up.dtype)
        library.call("swiglu", gate_up, out, gate_up.numel() // (2 * width), width)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Tensor:  # type: ignore[override]
        (gate_up,) = ctx.saved_tensors
        width = gate_up.shape[-1] // 2
        d_gate_up = pool.empty_like(gate_up)
        library.call("swiglu_backward", d_out.contiguous(), gate_up, d_gate_up, gate_up.numel() // (2 * width), width)
        return d_gate_up


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        out = pool.empty_like(x)
        library.call(name, x, out, x.numel())
        ctx.save_for_backward(x)
        ctx.name = name
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        d_x = pool.empty_like(x)
        library.call(f"{ctx.name}_backward", d_out.contiguous(), x, d_x, x.numel())
        return d_x, None
