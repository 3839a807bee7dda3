"""Tables of cosines and sines for rotary positions (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies are changed for contexts longer than those of the first training."""

    kind: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    original_context_length: int | None = None
    low_frequency_factor: float | None = None
    high_frequency_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


def rotary_tables(positions: int, size: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2i/size), i < size/2: (positions, size/2) float32 each, computed in float64."""
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / max(size, 1))
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies[None]
    return angles.cos().float(), angles.sin().float()
