"""The matrix products of the model. ``engine`` swaps in packed or quantized kinds; training uses this one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from owngpt.kernels.linear import linear


class Linear(nn.Module):
    """y = x W^T + b, weight (out, in). Initialised by :class:`owngpt.model.gpt.GPT`."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)"""
        return linear(x, self.weight, self.bias)
