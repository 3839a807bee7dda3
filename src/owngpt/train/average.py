"""The mean of a run's weights, which generalises better than any one state of them and has moved less from where they began.

Stochastic weight averaging (arXiv 1803.05407), of the looks at held-out text: the noise of single steps, and the luck of the
look that happened to be the best, cancel out.
"""

from __future__ import annotations

import torch
from torch import Tensor


class WeightAverage:
    """A running mean."""

    def __init__(self) -> None:
        self.count = 0
        self.weights: dict[str, Tensor] = {}
        """float32, by the model's names."""

    def add(self, weights: dict[str, Tensor]) -> None:
        """One state more. The tensors may be kept, and changed."""
        self.count += 1
        if self.count == 1:
            self.weights = weights
        else:
            for name, mean in self.weights.items():
                mean.lerp_(weights[name], 1.0 / self.count)

    def load(self, weights: dict[str, Tensor], count: int, device: torch.device) -> None:
        """Go on from a mean of so many states, on the device of those that follow."""
        self.weights, self.count = {name: value.to(device, copy=True) for name, value in weights.items()}, count
