"""Tables of cosines and sines for rotary positions (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(positions: int, size: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2i/size), i < size/2: (positions, size/2) float32 each, computed in float64."""
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / max(size, 1))
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies[None]
    return angles.cos().float(), angles.sin().float()
