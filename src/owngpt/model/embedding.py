"""Token ids, or positions, to vectors, and back to logits where the head is tied (arXiv 1608.05859)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Embedding(nn.Module):
    """A table (V, C). Initialised by :class:`owngpt.model.gpt.GPT`; ``engine`` swaps in a packed one."""

    def __init__(self, rows: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.scale = scale

    def forward(self, index: Tensor) -> Tensor:
        """(...) int64 → (..., C), times the scale."""
        x = functional.embedding(index, self.weight)
        if self.scale == 1.0:
            return x
        return x * torch.tensor(self.scale, dtype=x.dtype)  # rounded first, as Gemma was trained

    def project(self, hidden: Tensor) -> Tensor:
        """(..., C) → (..., V): the tied head's product."""
        return functional.linear(hidden, self.weight)
