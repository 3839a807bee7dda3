"""Rotary positions (RoFormer, arXiv 2104.09864) and the ways to stretch them past the length that a model was trained on.

The arithmetic is float32 in the order of the transformers library, so that a model sees the very angles it was trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from owngpt.errors import UsageError

ScalingKind = Literal["linear", "dynamic", "llama3", "yarn"]
KINDS: tuple[ScalingKind, ...] = ("linear", "dynamic", "llama3", "yarn")
FIRST_POSITIONS = 4096
"""Tables start out this long: a model made for 131,072 tokens is mostly used on far fewer."""


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies differ from base^(-2i/size). Fields that a kind does not name have no effect on it."""

    kind: ScalingKind
    """linear: position interpolation (arXiv 2306.15595), every frequency divided by ``factor``.
    dynamic: a base that grows with the text, once it is longer than ``original_context_length`` ("NTK-aware", bloc97 and
    emozilla 2023).
    llama3: low frequencies are divided, high ones kept, those between are blended (Llama 3.1, arXiv 2407.21783).
    yarn: the same idea with a linear ramp over the dimensions, and warmer attention (arXiv 2309.00071)."""
    factor: float = 1.0
    """How many times longer the texts may be, at least 1."""
    original_context_length: int | None = None
    """Tokens the model was first trained on: needed by dynamic, llama3 and yarn."""
    low_frequency_factor: float = 1.0
    """llama3: frequencies of fewer turns than this over the original length are divided."""
    high_frequency_factor: float = 4.0
    """llama3: those of more turns than this are kept."""
    beta_fast: float = 32.0
    """yarn: turns over the original length from which on a frequency is kept."""
    beta_slow: float = 1.0
    """yarn: turns below which it is divided."""
    attention_factor: float | None = None
    """yarn: factor on cosines and sines; None follows from ``factor``, ``mscale`` and ``mscale_all_dim``."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """yarn: whether the ramp begins and ends at whole dimensions (gpt-oss: it does not)."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"rotary scaling {self.kind!r} is not implemented; these are: {', '.join(KINDS)}")
        if not 1.0 <= self.factor < math.inf:
            raise UsageError(f"the rotary scaling's factor is {self.factor}; it must be at least 1")
        if self.kind != "linear" and (self.original_context_length is None or self.original_context_length < 1):
            raise UsageError(f"rotary scaling {self.kind} needs original_context_length, at least 1")
        if self.kind == "llama3" and not 0 < self.low_frequency_factor < self.high_frequency_factor:
            low, high = self.low_frequency_factor, self.high_frequency_factor
            raise UsageError(f"low_frequency_factor {low} must be above 0 and below high_frequency_factor {high}")
        if self.kind == "yarn" and not 0 < self.beta_slow <= self.beta_fast:
            raise UsageError(f"beta_slow {self.beta_slow} must be above 0 and at most beta_fast {self.beta_fast}")

    @property
    def magnitude(self) -> float:
        """Factor on cosines and sines, which sharpens the attention over longer texts (YaRN, equation 22); else 1."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    def _temperature(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0


def rotary_frequencies(size: int, base: float, scaling: RotaryScaling | None = None, length: int = 0) -> Tensor:
    """Angle per position of each pair of dimensions: (size/2,) float32.

    :param size: rotated elements of a head, even.
    :param length: tokens of the text; only dynamic scaling depends on it.
    """
    if scaling is not None and scaling.kind == "dynamic":
        base = _stretched_base(size, base, scaling, length)
    frequencies = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float32) / max(size, 1)))
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _llama3(frequencies, scaling) if scaling.kind == "llama3" else _yarn(frequencies, size, base, scaling)


def _stretched_base(size: int, base: float, scaling: RotaryScaling, length: int) -> float:
    """The base at which the slowest frequency just spans the text and the fastest is unchanged."""
    original = scaling.original_context_length
    assert original is not None
    ratio = scaling.factor * max(length, original) / original - (scaling.factor - 1.0)
    return float(base * ratio ** (size / max(size - 2, 1)))


def _llama3(frequencies: Tensor, scaling: RotaryScaling) -> Tensor:
    original, low, high = scaling.original_context_length, scaling.low_frequency_factor, scaling.high_frequency_factor
    assert original is not None
    wavelengths = 2 * math.pi / frequencies
    divided = torch.where(wavelengths > original / low, frequencies / scaling.factor, frequencies)
    share = (original / wavelengths - low) / (high - low)
    blended = (1 - share) * divided / scaling.factor + share * divided
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, blended, divided)


def _yarn(frequencies: Tensor, size: int, base: float, scaling: RotaryScaling) -> Tensor:
    original = scaling.original_context_length
    assert original is not None

    def dimension(turns: float) -> float:
        """Where the frequency makes that many turns over the original length (YaRN, equation 17's inverse)."""
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    last = last + 0.001 if first == last else last
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept = 1 - ramp
    divided = 1.0 / (scaling.factor * (1.0 / frequencies))
    return divided * (1 - kept) + frequencies * kept


def rotary_tables(
    positions: int, size: int, base: float, scaling: RotaryScaling | None = None, length: int = 0
) -> tuple[Tensor, Tensor]:
    """cos and sin of position * frequency, times the scaling's magnitude: (positions, size/2) float32 each.

    :param length: see :func:`rotary_frequencies`.
    """
    frequencies = rotary_frequencies(size, base, scaling, length)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies[None]
    magnitude = 1.0 if scaling is None else scaling.magnitude
    return angles.cos() * magnitude, angles.sin() * magnitude


class RotaryTables:
    """Tables of cosines and sines that grow with the texts, so that a long context length costs nothing until it is used."""

    def __init__(self, size: int, base: float, scaling: RotaryScaling | None, context_length: int) -> None:
        """
        :param size: rotated elements of a head, 0 for none.
        :param context_length: the most positions there are.
        """
        self.size, self.base, self.scaling, self.context_length = size, base, scaling, context_length
        self._length = -1
        self._tables: tuple[Tensor, Tensor] | None = None

    def reach(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin, (at least ``length``, size/2) float32 each, on a device.

        Dynamic scaling follows ``length``, the tokens of the text so far: like transformers, what a cache already holds
        stays rotated as it was.
        """
        stretched = max(length, self._original) if self.follows_length else 0
        tables = self._tables
        if tables is None or tables[0].shape[0] < length or tables[0].device != device or stretched != self._length:
            rows = self._rows(length)
            cosines, sines = rotary_tables(rows, self.size, self.base, self.scaling, stretched)
            tables = self._tables = (cosines.to(device), sines.to(device))
            self._length = stretched
        return tables

    def reach_each(self, lengths: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """cos and sin as dynamic scaling makes them for texts of different lengths, one table under the other, and the row in
        which the table of each token's text begins.

        :param lengths: (N,) int64, how long the text of each token is.
        """
        sizes, which = lengths.to(device).clamp(min=self._original).unique(return_inverse=True)
        tables = [rotary_tables(size, self.size, self.base, self.scaling, size) for size in sizes.tolist()]
        cosines, sines = (torch.cat(parts).to(device) for parts in zip(*tables, strict=True))
        return cosines, sines, (sizes.cumsum(0) - sizes)[which]

    @property
    def follows_length(self) -> bool:
        """Whether a text's length decides how all of it is turned."""
        return self.scaling is not None and self.scaling.kind == "dynamic"

    @property
    def _original(self) -> int:
        return (self.scaling.original_context_length if self.scaling else None) or 0

    def _rows(self, length: int) -> int:
        """Powers of two times the first size: growing token by token builds few tables."""
        rows = FIRST_POSITIONS
        while rows < length:
            rows *= 2
        return max(min(rows, self.context_length), length)
