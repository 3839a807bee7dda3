"""MXFP4 tensors (OCP Microscaling Formats 1.0): 4-bit floats in blocks of 32 that share a power of two; gpt-oss's experts.

A stack of matrices NAME (E, in, out) is stored as NAME_blocks (E, out, in/32, 16) and NAME_scales (E, out, in/32), both uint8:
a byte of a block holds two values, the lower half first; a scale s stands for 2^(s - 127).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from owngpt.errors import ModelFolderError

if TYPE_CHECKING:
    from owngpt.formats.weights import TensorSource

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES = 16
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Of the 16 codes of E2M1: sign, two bits of exponent, one of fraction."""


def decode(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks (..., G, 16) and scales (..., G), uint8 → (..., 32 G) bfloat16, which holds every value exactly."""
    values = torch.tensor(VALUES, dtype=torch.bfloat16)
    codes = torch.arange(256)
    pairs = torch.stack((values[codes & 15], values[codes >> 4]), dim=1)  # of each byte
    factors = torch.exp2(scales.float() - 127).to(torch.bfloat16)
    decoded = pairs.index_select(0, blocks.flatten().int()).view(*blocks.shape[:-1], 2 * BLOCK_BYTES)
    return (decoded * factors[..., None]).flatten(-2)


class Unpacked:
    """Another source with its MXFP4 pairs as the bfloat16 tensors that they stand for, decoded one by one when read."""

    def __init__(self, source: TensorSource, names: list[str]) -> None:
        """:param names: of the tensors that are stored as a pair."""
        self._source, self._names = source, frozenset(names)
        self.path = source.path
        packed = {name + end for name in names for end in (BLOCKS, SCALES)}
        self.shapes = {name: shape for name, shape in source.shapes.items() if name not in packed}
        self.dtypes = {name: dtype for name, dtype in source.dtypes.items() if name not in packed}
        for name in names:
            self.shapes[name], self.dtypes[name] = self._checked_shape(name), "BF16"

    def _checked_shape(self, name: str) -> tuple[int, ...]:
        blocks, scales = self._source.shapes[name + BLOCKS], self._source.shapes[name + SCALES]
        types = {self._source.dtypes[name + end] for end in (BLOCKS, SCALES)}
        if len(blocks) != 4 or blocks[-1] != BLOCK_BYTES or blocks[:-1] != scales or types != {"U8"}:
            raise ModelFolderError(
                f"{self.path}: {name}{BLOCKS} {blocks} and {name}{SCALES} {scales} are not the two parts of an MXFP4 tensor; "
                "copy the folder again"
            )
        experts, rows, groups, _ = blocks
        return experts, 2 * BLOCK_BYTES * groups, rows

    def read(self, name: str) -> Tensor:
        """A tensor; a packed one is decoded an expert at a time, which bounds what is held beside it."""
        if name not in self._names:
            return self._source.read(name)
        blocks, scales = self._source.read(name + BLOCKS), self._source.read(name + SCALES)
        whole = torch.empty(*blocks.shape[:2], self.shapes[name][1], dtype=torch.bfloat16)
        for target, block, scale in zip(whole, blocks, scales, strict=True):
            target.copy_(decode(block, scale))
        self.release(name)
        return whole.transpose(1, 2)

    def release(self, name: str) -> None:
        """Let go of what a tensor was decoded from."""
        for stored in (name + BLOCKS, name + SCALES) if name in self._names else (name,):
            self._source.release(stored)


def unpacked(source: TensorSource) -> TensorSource:
    """The source itself, or where it has MXFP4 pairs, a view of it without them.

    :raises ModelFolderError: the two parts of a tensor do not belong together.
    """
    names = [
        name.removesuffix(BLOCKS)
        for name in source.shapes
        if name.endswith(BLOCKS) and name.removesuffix(BLOCKS) + SCALES in source.shapes
    ]
    return Unpacked(source, names) if names else source
