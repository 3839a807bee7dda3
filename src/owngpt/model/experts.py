"""A mixture of experts: a router picks a few feed-forward layers for each token (arXiv 1701.06538, arXiv 2006.16668).

Shape letters: N tokens of all sequences, E experts, K experts per token, C hidden size, F intermediate size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from owngpt.kernels import activation
from owngpt.kernels.linear import linear
from owngpt.model.config import GPTConfig
from owngpt.model.linear import Linear


class ExpertLinear(nn.Module):
    """One matrix (out, in) for each expert, in one tensor (E, out, in), with biases (E, out)."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(experts, outputs)) if bias else None

    def layers(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of each expert. Taken apart all at once, since each single index would have its own (E, out, in)
        gradient."""
        biases = [None] * len(self.weight) if self.bias is None else self.bias.unbind(0)
        return list(zip(self.weight.unbind(0), biases, strict=True))


class Experts(nn.Module):
    """The sum of K gated layers, weighted by a softmax over the router's K highest scores; only those are computed."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C, F, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation, self.per_token = config.activation, config.experts_per_token
        self.router = Linear(C, config.experts, bias)
        self.gate_up = ExpertLinear(config.experts, C, 2 * F, bias)
        self.down = ExpertLinear(config.experts, F, C, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        scores, chosen = self.router(tokens).topk(self.per_token, dim=-1)  # (N, K)
        shares = scores.softmax(-1)
        gate_up, down = self.gate_up.layers(), self.down.layers()
        total = torch.zeros_like(tokens)
        for expert in chosen.unique().tolist():
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            hidden = activation.gated(linear(tokens[rows], *gate_up[expert]), self.activation)
            total = total.index_add(0, rows, linear(hidden, *down[expert]) * shares[rows, places, None])
        return total.view_as(x)
