"""RMSNorm and LayerNorm, each fused with the residual sum that comes before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from owngpt.kernels.dropout import Dropout
from owngpt.kernels.norm import add_layer_norm, add_rms_norm
from owngpt.model.config import GPTConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) * (offset + w) (arXiv 1910.07467; Gemma stores weights around 0 and has the offset 1)."""

    def __init__(self, width: int, epsilon: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.epsilon, self.offset = epsilon, offset

    def forward(self, x: Tensor, update: Tensor | None = None, dropout: Dropout | None = None) -> tuple[Tensor, Tensor]:
        """(sum, normed sum) of the residual stream ``x`` and a sub-layer's ``update``, both (..., C)."""
        return add_rms_norm(x, update, self.factor, self.epsilon, dropout)

    @property
    def factor(self) -> Tensor:
        """What the normed values are multiplied by, (C,); float32 where there is an offset."""
        return self.weight.float() + self.offset if self.offset else self.weight


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + ε) * w + b (arXiv 1607.06450)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor, update: Tensor | None = None, dropout: Dropout | None = None) -> tuple[Tensor, Tensor]:
        """(sum, normed sum) of the residual stream ``x`` and a sub-layer's ``update``, both (..., C)."""
        return add_layer_norm(x, update, self.weight, self.bias, self.epsilon, dropout)


def make_norm(config: GPTConfig) -> RMSNorm | LayerNorm:
    """The norm that the configuration names, over C."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_epsilon, config.norm_weight_offset)
    return LayerNorm(config.hidden_size, config.norm_epsilon)


class HeadNorm(nn.Module):
    """The weight (D,) of the RMSNorm over each query or key head (arXiv 2010.04245); applied where heads are split."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.offset = config.norm_weight_offset
        self.weight = nn.Parameter(torch.full((config.head_size,), 1.0 - self.offset))

    @property
    def factor(self) -> Tensor:
        """What the normed values are multiplied by, (D,); float32 where there is an offset."""
        return self.weight.float() + self.offset if self.offset else self.weight
