"""Weights in the order in which inference reads them, in bfloat16, int8 or int4: see source/packed.c for the layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from owngpt.kernels import tape

Kind = Literal["bf16", "int8", "int4"]
KINDS: dict[str, int] = {"bf16": 0, "int8": 1, "int4": 2}
ROWS, COLUMNS = 16, 32
"""Of a tile: outputs and inputs."""
GROUP = COLUMNS
"""Inputs that share a factor and an offset in int4."""
FEW = 4
"""Most rows that the vector products take."""


@dataclass
class PackedWeight:
    """A weight (outputs, inputs) in tiles."""

    kind: Kind
    outputs: int
    inputs: int
    tiles: Tensor
    """uint8, one dimension."""
    scales: Tensor | None
    """int8: (outputs,) float32."""
    tiles_from: int = 3
    """Rows from which matrix tiles are faster than vector products, at most 5; chosen by measurement."""

    @property
    def bytes(self) -> int:
        """Memory of the weight."""
        return self.tiles.numel() + (0 if self.scales is None else 4 * self.scales.numel())

    def on_tiles(self, rows: int) -> bool:
        """Whether so many rows go through matrix tiles."""
        return rows >= self.tiles_from or rows > FEW

    @property
    def depth(self) -> int:
        """Tiles along the inputs."""
        return -(-self.inputs // COLUMNS)

    def unpacked(self) -> Tensor:
        """(outputs, inputs) float32: what the products use."""
        outputs = -(-self.outputs // ROWS)
        if self.kind == "bf16":
            values = self.tiles.view(torch.bfloat16).view(outputs, self.depth, ROWS, COLUMNS).float()
        elif self.kind == "int8":
            values = self.tiles.view(torch.int8).view(outputs, self.depth, ROWS, COLUMNS).float()
        else:
            values = _int4_values(self.tiles.view(outputs, self.depth, 320))
        matrix = values.permute(0, 2, 1, 3).reshape(outputs * ROWS, self.depth * COLUMNS)[: self.outputs, : self.inputs]
        return (matrix if self.scales is None else matrix * self.scales[:, None]).contiguous()


def pack(weight: Tensor, kind: Kind) -> PackedWeight:
    """Pack a weight (outputs, inputs) of any floating type.

    int8 has one factor an output: value = scale * q, q in [-127, 127]. int4 has a factor and an offset for each 32 inputs:
    value = factor * q + offset, q in [0, 15], both in half precision.
    """
    outputs, inputs = weight.shape
    scales = None
    if kind == "int8":
        wide = weight.float()
        scales = (wide.abs().amax(1) / 127).clamp(min=1e-30)
        tiles = _tiled((wide / scales[:, None]).round().to(torch.int8))
    elif kind == "int4":
        tiles = _int4(weight.float())
    else:
        tiles = _tiled(weight.to(torch.bfloat16))
    return PackedWeight(kind, outputs, inputs, tiles, scales)


def pack_groups(quants: Tensor, factors: Tensor, offsets: Tensor) -> PackedWeight:
    """A weight that is stored in 4 bits already, exactly: quants (outputs, inputs) uint8 in 0…15, factors and offsets
    (outputs, inputs / 32) float16.
    """
    outputs, inputs = quants.shape
    missing = -outputs % ROWS
    if missing:
        quants, factors, offsets = (
            torch.cat((each, each.new_zeros(missing, each.shape[1]))) for each in (quants, factors, offsets)
        )
    tiles = join_int4(quants.contiguous().view(-1, inputs // GROUP, GROUP), factors.contiguous(), offsets.contiguous())
    return PackedWeight("int4", outputs, inputs, tiles, None)


def _padded(matrix: Tensor) -> Tensor:
    outputs, inputs = matrix.shape
    rows, columns = -(-outputs // ROWS) * ROWS, -(-inputs // COLUMNS) * COLUMNS
    if (rows, columns) == (outputs, inputs):
        return matrix
    larger = matrix.new_zeros(rows, columns)
    larger[:outputs, :inputs] = matrix
    return larger


def _tiled(matrix: Tensor) -> Tensor:
    """(outputs, inputs) → bytes of [outputs/16][inputs/32][16][32]."""
    matrix = _padded(matrix)
    shape = (matrix.shape[0] // ROWS, ROWS, matrix.shape[1] // COLUMNS, COLUMNS)
    return matrix.view(shape).permute(0, 2, 1, 3).contiguous().view(torch.uint8).flatten()


def _int4(matrix: Tensor) -> Tensor:
    groups = _padded(matrix).unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    factors, offsets = ((high - low) / 15).half(), low.half()
    divisors = factors.float().masked_fill(factors == 0, 1.0)
    nibbles = ((groups - offsets.float()[..., None]) / divisors[..., None]).round().clamp(0, 15).to(torch.uint8)
    return join_int4(nibbles, factors, offsets)


def join_int4(nibbles: Tensor, factors: Tensor, offsets: Tensor) -> Tensor:
    """nibbles (outputs, groups, 32) uint8 in 0…15, factors and offsets (outputs, groups) float16 → bytes of tiles.

    The outputs are a multiple of 16.
    """
    outputs, groups = factors.shape
    pairs = nibbles.view(outputs // ROWS, ROWS // 2, 2, groups, GROUP)
    joined = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).permute(0, 2, 1, 3).reshape(outputs // ROWS, groups, 256)

    def by_tile(values: Tensor) -> Tensor:
        turned = values.view(outputs // ROWS, ROWS, groups).permute(0, 2, 1).contiguous()
        return turned.view(torch.uint8).view(outputs // ROWS, groups, 32)

    return torch.cat((joined, by_tile(factors), by_tile(offsets)), dim=-1).flatten()


def _int4_values(tiles: Tensor) -> Tensor:
    """(outputs/16, depth, 320) bytes → (outputs/16, depth, 16, 32) float32."""
    bytes_ = tiles[..., :256].unflatten(-1, (ROWS // 2, GROUP))
    nibbles = torch.stack((bytes_ & 15, bytes_ >> 4), dim=-2).flatten(-3, -2).float()
    factors = tiles[..., 256:288].contiguous().view(torch.float16).float()
    offsets = tiles[..., 288:].contiguous().view(torch.float16).float()
    return nibbles * factors[..., None] + offsets[..., None]


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """x (..., inputs) bfloat16 → (..., outputs) in bfloat16 or float32; bias (outputs,) float32. Only while a tape is active."""
    rows = x.numel() // weight.inputs
    packed = _packed_rows(x, rows, weight.inputs) if weight.on_tiles(rows) else None
    return _product(x, packed, x.shape[:-1], weight, bias, dtype)


def gated_mlp(
    x: Tensor,
    gate_up: PackedWeight,
    gate_up_bias: Tensor | None,
    down: PackedWeight,
    down_bias: Tensor | None,
    *,
    tanh_form: bool,
) -> Tensor:
    """down(silu(gate x) * up x), or with GELU, (..., C) → (..., C), for rows that go through tiles and F a multiple of 32.

    What lies between the products never leaves the order that tiles are read in. Only while a tape is active.
    """
    active = _active()
    rows = x.numel() // gate_up.inputs
    between = active.empty(-(-rows // ROWS) * down.depth * ROWS * COLUMNS)
    active.step(
        "gated_linear", gate_up.tiles, KINDS[gate_up.kind], gate_up.outputs, gate_up.inputs, gate_up.scales, gate_up_bias,
        _packed_rows(x, rows, gate_up.inputs), rows, between, int(tanh_form), _scratch(rows, gate_up),
    )  # fmt: skip
    return _product(x, between, x.shape[:-1], down, down_bias, torch.bfloat16)


def _packed_rows(x: Tensor, rows: int, inputs: int) -> Tensor:
    active = _active()
    packed = active.empty(-(-rows // ROWS) * -(-inputs // COLUMNS) * ROWS * COLUMNS)
    active.step("pack_rows", x, packed, rows, inputs, inputs)
    return packed


def _product(
    x: Tensor, packed: Tensor | None, shape: torch.Size, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    active, rows = _active(), math.prod(shape)
    out = active.empty(*shape, weight.outputs, dtype=dtype)
    active.step(
        "linear", weight.tiles, KINDS[weight.kind], weight.outputs, weight.inputs, weight.scales, bias, x, weight.inputs, packed,
        rows, out, weight.outputs, int(dtype == torch.float32), _scratch(rows, weight),
    )  # fmt: skip
    return out


def _scratch(rows: int, weight: PackedWeight) -> Tensor:
    """For each thread: two blocks of outputs unpacked, and float sums of all rows."""
    active = _active()
    return active.empty(active.threads * (2 * weight.depth * ROWS * COLUMNS + -(-rows // ROWS) * 1024))


def _active() -> tape.Tape:
    active = tape.recording()
    assert active is not None
    return active


def embed(token_ids: Tensor, weight: PackedWeight, factor: float = 1.0) -> Tensor:
    """Rows of a packed weight: ids (...) int64 or int32 → (..., inputs) bfloat16, times factor. Only while a tape is active."""
    active = _active()
    out = active.empty(*token_ids.shape, weight.inputs)
    active.step(
        "embed", weight.tiles, KINDS[weight.kind], weight.inputs, weight.scales, token_ids, token_ids.numel(), out, float(factor),
        int(token_ids.dtype == torch.int32),
    )  # fmt: skip
    return out
