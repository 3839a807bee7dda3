"""RMSNorm and LayerNorm, each fused with the residual sum that comes before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from owngpt.kernels.dropout import Dropout
from owngpt.kernels.norm import add_layer_norm, add_rms_norm
from owngpt.model.config import GPTConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) * w (arXiv 1910.07467)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor, update: Tensor | None = None, dropout: Dropout | None = None) -> tuple[Tensor, Tensor]:
        """(sum, normed sum) of the residual stream ``x`` and a sub-layer's ``update``, both (..., C)."""
        return add_rms_norm(x, update, self.weight, self.epsilon, dropout)


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
    kind = RMSNorm if config.norm == "rmsnorm" else LayerNorm
    return kind(config.hidden_size, config.norm_epsilon)
