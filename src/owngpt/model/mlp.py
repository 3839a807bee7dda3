"""The feed-forward layer: plain (arXiv 1706.03762) or gated (arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from owngpt.kernels import activation
from owngpt.model.config import GPTConfig
from owngpt.model.linear import Linear


class MLP(nn.Module):
    """down(activation(up x)), or down(activation(gate x) * up x) with both projections in one matrix."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation, self.gated = config.activation, config.gated
        C, F, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        if self.gated:
            self.gate_up = Linear(C, 2 * F, bias)
        else:
            self.up = Linear(C, F, bias)
        self.down = Linear(F, C, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        if self.gated:
            gate_up, of_gated = self.gate_up(x), getattr(self.down, "of_gated", None)  # layers that gate on the way
            return of_gated(gate_up, self.activation) if of_gated else self.down(activation.gated(gate_up, self.activation))  # type: ignore[no-any-return]
        return self.down(activation.plain(self.up(x), self.activation))  # type: ignore[no-any-return]
