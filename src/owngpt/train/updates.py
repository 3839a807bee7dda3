"""The element-wise halves of AdamW and Muon: one fused pass on the CPU, PyTorch elsewhere.

Each works on float32 master values and writes the working copy that the model computes with. Gradients are bfloat16 or
float32; ``working`` is None where the master is the model's own parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from owngpt.kernels import library


def _fused(*tensors: Tensor | None) -> bool:
    present = [tensor for tensor in tensors if tensor is not None]
    return library.functions() is not None and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in present)


def _halves(gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradient as the kernel's bfloat16 or float32 argument."""
    return (gradient, None) if gradient.dtype == torch.bfloat16 else (None, gradient)


@torch.no_grad()
def adamw_update(
    master: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, working: Tensor | None, *, gradient_scale: float, rate: float,
    betas: tuple[float, float], epsilon: float, decay: float, step: int,
) -> None:  # fmt: skip
    """AdamW with decoupled weight decay (arXiv 1711.05101), in place; ``step`` counts from 1."""
    first, second = betas
    corrections = 1 - first**step, 1 - second**step
    if _fused(master, gradient, working):
        library.call(
            "adamw", master, mean, square, *_halves(gradient), working, master.numel(), gradient_scale, rate, first,
            second, epsilon, decay, *corrections,
        )  # fmt: skip
        return
    wide = gradient.float() * gradient_scale
    mean.lerp_(wide, 1 - first)
    square.lerp_(wide.square(), 1 - second)
    master.mul_(1 - rate * decay).addcdiv_(mean, (square / corrections[1]).sqrt_().add_(epsilon), value=-rate / corrections[0])
    if working is not None:
        working.copy_(master)


@torch.no_grad()
def nesterov_direction(momentum: Tensor, gradient: Tensor, out: Tensor, *, gradient_scale: float, beta: float) -> None:
    """momentum ← beta * momentum + (1 - beta) * gradient; out ← gradient + beta * (momentum - gradient), bfloat16."""
    if _fused(momentum, gradient, out) and out.dtype == torch.bfloat16:
        library.call("momentum", momentum, *_halves(gradient), out, momentum.numel(), gradient_scale, beta)
        return
    wide = gradient.float() * gradient_scale
    momentum.lerp_(wide, 1 - beta)
    out.copy_(torch.lerp(wide, momentum, beta))


@torch.no_grad()
def apply_direction(master: Tensor, direction: Tensor, working: Tensor | None, *, rate: float, decay_rate: float) -> None:
    """master ← master * (1 - decay_rate) - rate * direction, in place."""
    if _fused(master, direction, working) and direction.dtype == torch.bfloat16:
        library.call("apply", master, direction, working, master.numel(), rate, decay_rate)
        return
    master.mul_(1 - decay_rate).add_(direction.float(), alpha=-rate)
    if working is not None:
        working.copy_(master)
