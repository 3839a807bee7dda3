"""Dropout as a pure function of a seed and an index: no stored mask, no global generator, the same after a resume."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dropout:
    """One use of dropout: each element is zeroed with ``probability``, the others are scaled to keep the mean."""

    probability: float
    seed: int
    """32 bits; every use in a step has its own."""

    @property
    def threshold(self) -> int:
        """A hash below it drops the element."""
        return int(self.probability * 2**32)

    @property
    def scale(self) -> float:
        """Factor on what is kept."""
        return 1.0 / (1.0 - self.probability)

    def mask(self, like: Tensor) -> Tensor:
        """The factors (0 or ``scale``) for a tensor, as the compiled kernels compute them; same shape and dtype."""
        index = torch.arange(like.numel(), device=like.device, dtype=torch.int64)
        mixed = (index * 0x9E3779B1 & 0xFFFFFFFF) ^ self.seed
        mixed ^= mixed >> 16
        mixed = mixed * 0x7FEB352D & 0xFFFFFFFF
        mixed ^= mixed >> 15
        mixed = mixed * 0x846CA68B & 0xFFFFFFFF
        mixed ^= mixed >> 16
        return ((mixed >= self.threshold).to(like.dtype) * self.scale).view_as(like)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` with elements dropped."""
        return x * self.mask(x)


def seed_of(step_seed: int, use: int) -> int:
    """A 32-bit seed for the ``use``-th dropout of a pass (SplitMix64's finaliser)."""
    mixed = (step_seed * 0x9E3779B97F4A7C15 + use + 1) & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) & 0xFFFFFFFF
