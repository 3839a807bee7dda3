"""Blocks of quantized values and back. A block is some 32 or 256 values of a row that share a scale.

The most common kinds are unpacked here, in pieces that stay in a core's cache and on all cores: several times as fast as
gguf's own, which does the rest of the kinds (and is what the tests compare with).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PIECE_VALUES = 1 << 17
"""Values unpacked at a time: 512 KB of float32."""
PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F64: torch.float64,
}
"""Kinds that torch has a type for."""
QUANTIZED = tuple(kind for kind in GGMLQuantizationType if kind not in PLAIN and kind in quants._type_traits)
"""Kinds whose values can be computed."""


def dequantize(data: Bytes, kind: GGMLQuantizationType, shape: tuple[int, ...], pool: ThreadPoolExecutor | None = None) -> Tensor:
    """The values of a stored tensor.

    :param data: its bytes, (size,).
    :param shape: of the result.
    :param pool: threads to unpack pieces on; numpy lets go of the interpreter's lock.
    :returns: a view of the bytes for the kinds that torch knows; else float32.
    """
    if kind in PLAIN:
        return torch.frombuffer(data, dtype=PLAIN[kind]).view(shape)
    block, width = GGML_QUANT_SIZES[kind]
    blocks = data.reshape(-1, width)
    result = torch.empty(blocks.shape[0], block)
    unpack = _UNPACK.get(kind) or _by_gguf(kind)
    values: Floats = result.numpy()
    step = PIECE_VALUES // block
    pieces = range(0, blocks.shape[0], step)

    def piece(first: int) -> None:
        with np.errstate(all="ignore"):  # a damaged scale is not a number, and says so in the result
            unpack(blocks[first : first + step], values[first : first + step])

    list((map if pool is None or len(pieces) == 1 else pool.map)(piece, pieces))
    return result.view(shape)


def in_groups(data: Bytes, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """A stored matrix as quants (rows, columns), factors and offsets (rows, columns / 32) float16, with
    value = factor * quant + offset: uint8 from 0 to 15, or int8 without offsets. None where it is not stored so, or not exactly.
    """
    if kind not in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0) or len(shape) != 2:
        return None
    block, width = GGML_QUANT_SIZES[kind]
    blocks = torch.from_numpy(data.reshape(shape[0], shape[1] // block, width))
    halves = blocks.view(torch.int16)
    factors = halves[..., 0].contiguous().view(torch.float16)
    if kind == GGMLQuantizationType.Q8_0:
        return halves[..., 1:].contiguous().view(torch.int8).view(shape), factors, None
    if kind == GGMLQuantizationType.Q4_1:
        quants, offsets = _nibbles(blocks.view(torch.int32)[..., 1:]), halves[..., 1].contiguous().view(torch.float16)
    else:
        quants, offsets = _nibbles(halves[..., 1:]), -8 * factors
    return (quants.view(shape), factors, offsets) if bool(offsets.isfinite().all()) else None


def _nibbles(packed: Tensor) -> Tensor:
    """Sixteen bytes to a block (..., n) → 32 values (..., 32) uint8: the low halves, then the high ones. The elements may be of
    several bytes, which are then taken together."""
    count = packed.shape[-1]
    mask = int.from_bytes(b"\x0f" * packed.element_size(), "little")
    values = packed.new_empty(*packed.shape[:-1], 2 * count)
    torch.bitwise_and(packed, mask, out=values[..., :count])
    torch.bitwise_right_shift(packed, 4, out=values[..., count:])
    values[..., count:] &= mask
    return values.view(torch.uint8)


def quantize(values: Tensor, kind: GGMLQuantizationType) -> NDArray[np.generic]:
    """The bytes of a tensor as this kind, ggml's reference rounding; rows must be whole blocks."""
    array = values.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
    packed: NDArray[np.generic] = quants.quantize(array, kind)
    return packed


def _by_gguf(kind: GGMLQuantizationType) -> Callable[[Bytes, Floats], None]:
    def unpack(blocks: Bytes, out: Floats) -> None:
        out[...] = quants.dequantize(blocks, kind)

    return unpack


# Each takes blocks (n, bytes of a block) and fills out (n, 32). The low halves of the bytes are the first 16 values.


def _halves(blocks: Bytes, count: int) -> Floats:
    """The first ``count`` float16 of each block, (n, count)."""
    return np.ascontiguousarray(blocks[:, : 2 * count]).view(np.float16).astype(np.float32)


def _high_bits(blocks: Bytes) -> Bytes:
    """The fifth bit of each of 32 values, from 4 bytes, as 0 or 16; (n, 32)."""
    return np.unpackbits(np.ascontiguousarray(blocks), axis=1, bitorder="little") << np.uint8(4)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _halves(blocks, 1), out=out)


def _q4_0(blocks: Bytes, out: Floats) -> None:
    scale, packed = _halves(blocks, 1), blocks[:, 2:]
    np.multiply((packed & 15).view(np.int8) - np.int8(8), scale, out=out[:, :16])
    np.multiply((packed >> 4).view(np.int8) - np.int8(8), scale, out=out[:, 16:])


def _q4_1(blocks: Bytes, out: Floats) -> None:
    numbers, packed = _halves(blocks, 2), blocks[:, 4:]
    np.multiply(packed & 15, numbers[:, :1], out=out[:, :16])
    np.multiply(packed >> 4, numbers[:, :1], out=out[:, 16:])
    out += numbers[:, 1:]


def _q5_0(blocks: Bytes, out: Floats) -> None:
    scale, high, packed = _halves(blocks, 1), _high_bits(blocks[:, 2:6]), blocks[:, 6:]
    np.multiply((packed & 15 | high[:, :16]).view(np.int8) - np.int8(16), scale, out=out[:, :16])
    np.multiply((packed >> 4 | high[:, 16:]).view(np.int8) - np.int8(16), scale, out=out[:, 16:])


def _q5_1(blocks: Bytes, out: Floats) -> None:
    numbers, high, packed = _halves(blocks, 2), _high_bits(blocks[:, 4:8]), blocks[:, 8:]
    np.multiply(packed & 15 | high[:, :16], numbers[:, :1], out=out[:, :16])
    np.multiply(packed >> 4 | high[:, 16:], numbers[:, :1], out=out[:, 16:])
    out += numbers[:, 1:]


_UNPACK: dict[GGMLQuantizationType, Callable[[Bytes, Floats], None]] = {
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
}
