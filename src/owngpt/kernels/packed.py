"""Weights in the order in which inference reads them, in bfloat16 or 8, 6 or 4 bits: see source/values.h for the layout."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from owngpt.kernels import library, tape
from owngpt.kernels.memory import HugePages

Kind = Literal["bf16", "compact", "int8", "int6", "int4", "q4_1"]
"""Compact is bfloat16 without loss in three quarters of the bytes; q4_1 what files hold in 4-bit groups, as it is."""
KINDS: dict[Kind, int] = {"bf16": 0, "int8": 1, "int4": 2, "int6": 3, "compact": 4, "q4_1": 5}
TILE_BYTES: dict[Kind, int] = {"bf16": 1024, "compact": 768, "int8": 544, "int6": 416, "q4_1": 320, "int4": 288}
ROWS, COLUMNS = 16, 32
"""Of a tile: outputs and inputs."""
FEW = 8
"""Most rows of quantized weights that do not go through tiles where there is AMX."""
NEVER = 0
"""In place of a number of rows."""
ALONE = 4
"""Rows up to which each thread makes all of them small for itself; with more they share the work, in a step of its own."""
SMALL_BYTES = 80
"""Of 32 values of a row: numbers of eight bits, a factor, a sum, two numbers for what they lack, and what rounding left."""
CHUNK, CHUNK_BYTES = 64, 8
"""Rows among which a bit for each says whether what rounding left counts, for 32 values."""
SCALE_BYTES: dict[Kind, int] = {"int6": 4, "int4": 4}
"""Behind their tiles, for each output."""
ZEROS: dict[Kind, int] = {"int6": 4, "int4": 16}
"""Into how many parts a level is divided to say where 0 lies."""
UPPER_BYTES, EXCEPTION_BYTES = 16, 8
"""Behind compact tiles: for each 16 outputs, and for each weight that has no place among the others."""
EXCEPTION_SHARE = 1 / 256
"""Of a weight's numbers; with more of them bf16 as it is would be as fast."""


def tiles_from_unmeasured(quantized: bool = False) -> int:
    """See :attr:`PackedWeight.tiles_from`.

    AMX reads bfloat16 faster than vectors do even for one row; from where on quantized weights are worth being made that is to be
    measured. Without it there are only vector products.
    """
    return NEVER if not amx() else 3 if quantized else 1


def amx() -> bool:
    """Whether that is what the matrix unit is."""
    return library.matrix_unit("inference") == "amx"


@dataclass
class PackedWeight:
    """A weight (outputs, inputs) in tiles."""

    kind: Kind
    outputs: int
    inputs: int
    tiles: Tensor
    """uint8, one dimension."""
    tiles_from: int = field(init=False)
    """Rows from which on they go through tiles of AMX, or :data:`NEVER`. Of bfloat16 it is all rows or none."""

    def __post_init__(self) -> None:
        self.tiles_from = tiles_from_unmeasured(self.quantized)

    @property
    def bytes(self) -> int:
        """Memory of the weight."""
        return self.tiles.numel()

    @property
    def quantized(self) -> bool:
        """Whether its numbers have a few bits each and a factor among them."""
        return self.kind not in ("bf16", "compact")

    def on_tiles(self, rows: int) -> bool:
        """Whether so many rows go through matrix tiles, 16 at a time, rather than each through vector products."""
        return NEVER < self.tiles_from <= rows and amx()

    @property
    def depth(self) -> int:
        """Tiles along the inputs."""
        return -(-self.inputs // COLUMNS)

    def unpacked(self) -> Tensor:
        """(outputs, inputs) float32: what the products use, but for float32's rounding."""
        outputs = -(-self.outputs // ROWS)
        if self.kind == "bf16":
            values = _in_order(self.tiles.view(torch.bfloat16).view(outputs, self.depth, ROWS, COLUMNS).float())
        elif self.kind == "compact":
            values = _in_order(_compact_values(self.tiles, outputs, self.depth))
        else:
            values = self._levels(outputs)
        matrix = values.permute(0, 2, 1, 3).reshape(outputs * ROWS, self.depth * COLUMNS)[: self.outputs, : self.inputs]
        return matrix.contiguous()

    def _levels(self, outputs: int) -> Tensor:
        """What quantized tiles, 16 outputs each, stand for: (outputs, depth, 16, 32) float32."""
        fixed = outputs * self.depth * TILE_BYTES[self.kind]
        tiles = self.tiles[:fixed].view(outputs, self.depth, TILE_BYTES[self.kind])
        numbers = _numbers(tiles, self.kind)
        if self.kind == "int8":
            return (numbers - 128) * _halves(tiles[..., 512:])
        if self.kind == "q4_1":
            return numbers * _halves(tiles[..., 256:288]) + _halves(tiles[..., 288:])
        roots, zeros = tiles[..., -2 * ROWS :].float()[..., None].split(ROWS, dim=-2)
        scales = self.tiles[fixed:].view(torch.float32).view(outputs, 1, ROWS, 1)
        return (numbers - zeros / ZEROS[self.kind]) * roots.square() * scales


def pack(weight: Tensor | PackedWeight, kind: Kind, memory: HugePages | None = None) -> PackedWeight:
    """Pack a weight (outputs, inputs) of any floating type, or make a q4_1 one int4.

    int8: value = factor * q, q in [-127, 127], a factor in half precision for 32 inputs of an output. int6, int4: value =
    factor * (q - zero), q in [0, 63] or [0, 15], chosen for the least sum of squared errors; factors and zeros have eight bits.

    :param memory: where to put it; by default PyTorch's own.
    """
    assert kind not in ("compact", "q4_1"), "pack_exactly and pack_groups make those"
    source, form = _source(weight)
    assert form < 2 or (form == 2 + KINDS["q4_1"] and kind == "int4"), "only q4_1 can be made another"
    outputs, inputs = (weight.outputs, weight.inputs) if isinstance(weight, PackedWeight) else weight.shape
    blocks = -(-outputs // ROWS)
    tiles = _room(blocks * (-(-inputs // COLUMNS) * TILE_BYTES[kind] + ROWS * SCALE_BYTES.get(kind, 0)), memory)
    library.call("pack", source, form, outputs, inputs, KINDS[kind], tiles)
    return PackedWeight(kind, outputs, inputs, tiles)


def _source(weight: Tensor | PackedWeight) -> tuple[Tensor, int]:
    """A weight as the kernels take it, and its form: 0 for bfloat16, 1 for float32, 2 + its kind for tiles."""
    if isinstance(weight, PackedWeight):
        return weight.tiles, 2 + KINDS[weight.kind]
    source = weight.detach().contiguous()
    if source.dtype not in (torch.float32, torch.bfloat16):
        source = source.float()
    return source, int(source.dtype == torch.float32)


def pack_exactly(weight: Tensor | PackedWeight, memory: HugePages | None = None) -> PackedWeight:
    """A weight (outputs, inputs) of any floating type, or a quantized one, in bfloat16: compact where that has room for it.

    Subnormal numbers (below 1.2e-38) become zeros, which is what the products take them for.

    :param memory: as in :func:`pack`.
    """
    source, form = _source(weight)
    assert form != 2 + KINDS["compact"], "it is exact already"
    outputs, inputs = (weight.outputs, weight.inputs) if isinstance(weight, PackedWeight) else weight.shape
    blocks, room = -(-outputs // ROWS), int(EXCEPTION_SHARE * outputs * inputs) + 1
    fixed = blocks * (-(-inputs // COLUMNS) * TILE_BYTES["compact"] + UPPER_BYTES)
    tiles = _room(fixed + room * EXCEPTION_BYTES, memory)
    needed = torch.zeros(1, dtype=torch.int64)
    library.call("pack_compact", source, form, outputs, inputs, tiles, room, needed)
    exceptions = int(needed)
    kept = _keep(tiles, fixed + exceptions * EXCEPTION_BYTES if exceptions <= room else 0, memory)
    if exceptions <= room:
        return PackedWeight("compact", outputs, inputs, kept)
    return widened(weight, memory) if isinstance(weight, PackedWeight) else pack(source, "bf16", memory)


def pack_groups(quants: Tensor, factors: Tensor, offsets: Tensor | None, memory: HugePages | None = None) -> PackedWeight:
    """A weight that is stored in groups already, exactly: quants (outputs, inputs), uint8 in 0…15, or int8 in -127…127 without
    offsets; factors and offsets (outputs, inputs / 32) float16.

    :param memory: as in :func:`pack`.
    """
    outputs, inputs = quants.shape
    kind: Kind = "int8" if offsets is None else "q4_1"
    tiles = _room(-(-outputs // ROWS) * (inputs // COLUMNS) * TILE_BYTES[kind], memory)
    stored = [None if each is None else each.contiguous() for each in (quants, factors, offsets)]
    library.call("join_groups", *stored, outputs, inputs, tiles)
    return PackedWeight(kind, outputs, inputs, tiles)


def _room(count: int, memory: HugePages | None) -> Tensor:
    return torch.empty(count, dtype=torch.uint8) if memory is None else memory.take(count)


def _keep(tiles: Tensor, count: int, memory: HugePages | None) -> Tensor:
    """The first bytes of the room that was taken last; the rest can be taken again."""
    return tiles[:count].clone() if memory is None else memory.keep(tiles, count)


def widened(weight: PackedWeight, memory: HugePages | None = None) -> PackedWeight:
    """A quantized weight's values as bf16."""
    assert weight.quantized, "it holds bf16 already"
    tiles = _room(-(-weight.outputs // ROWS) * weight.depth * TILE_BYTES["bf16"], memory)
    library.call("widen", weight.tiles, KINDS[weight.kind], weight.outputs, weight.inputs, tiles)
    return PackedWeight("bf16", weight.outputs, weight.inputs, tiles)


def _in_order(tiles: Tensor) -> Tensor:
    """(outputs, depth, 16, 32) as tiles of bfloat16 lie → an output's inputs side by side."""
    return tiles if amx() else tiles.view(*tiles.shape[:2], COLUMNS // 2, ROWS, 2).transpose(2, 3).reshape(tiles.shape)


def _compact_values(tiles: Tensor, outputs: int, depth: int) -> Tensor:
    """Bytes of compact tiles, 16 outputs each → (outputs, depth, 16, 32) float32."""
    upper_at = outputs * depth * TILE_BYTES["compact"]
    exceptions_at = upper_at + outputs * UPPER_BYTES
    blocks = tiles[:upper_at].view(outputs, depth, TILE_BYTES["compact"])
    uppers = tiles[upper_at:exceptions_at].view(outputs, UPPER_BYTES)
    exceptions = tiles[exceptions_at:].clone()
    places, found = exceptions.view(torch.int32)[::2].long(), exceptions.view(torch.bfloat16)[2::4]
    counts = uppers[:, 8:].clone().view(torch.int32)  # the first, and how many
    values = torch.empty(outputs, depth * ROWS * COLUMNS)
    for block, (first, count) in enumerate(counts.tolist()):  # one by one: the numbers on the way take several times the room
        values[block] = _compact_block(blocks[block], uppers[block, :8])
        values[block, places[first : first + count]] = found[first : first + count].float()
    return values.view(outputs, depth, ROWS, COLUMNS)


def _compact_block(tiles: Tensor, upper: Tensor) -> Tensor:
    """(depth, 768) bytes and the eight upper bytes → (depth * 16 * 32,) bfloat16, without the exceptions."""
    nibbles = tiles[:, 512:].unflatten(-1, (ROWS // 2, 1, COLUMNS))
    nibbles = torch.cat((nibbles & 15, nibbles >> 4), dim=-2).flatten(-2)  # a byte each, as the lower ones lie
    signed = torch.cat((upper, upper | 128))  # what each nibble stands for
    lower = tiles[:, :512].unflatten(-1, (ROWS // 2, 2 * COLUMNS))
    words = torch.stack((lower, signed[nibbles.int()]), dim=-1).view(torch.bfloat16)[..., 0]
    return words.unflatten(-1, (4, 2, 8)).transpose(-3, -2).flatten()


def _halves(bytes_: Tensor) -> Tensor:
    """(..., 32) bytes, half-precision numbers → (..., 16, 1) float32."""
    return bytes_.contiguous().view(torch.float16).float()[..., None]


def _numbers(tiles: Tensor, kind: Kind) -> Tensor:
    """(outputs/16, depth, bytes) of quantized tiles → their numbers, from 0 on, (outputs/16, depth, 16, 32) float32."""
    if kind == "int8":
        numbers = tiles[..., :512].unflatten(-1, (8, ROWS, 4))
    else:
        nibbles = tiles[..., :256].unflatten(-1, (4, ROWS, 4))
        numbers = torch.cat((nibbles & 15, nibbles >> 4), dim=-3)
    if kind == "int6":
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(4, 1, 1)
        upper = tiles[..., 256:384].unflatten(-1, (2, 1, ROWS, 4)) >> shifts & 3
        numbers = numbers + 16 * upper.flatten(-4, -3)
    return numbers.transpose(-3, -2).flatten(-2).float()  # the inputs of an output side by side


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """x (..., inputs) bfloat16 → (..., outputs) in bfloat16 or float32; bias (outputs,) float32. Only while a tape is active."""
    rows = x.numel() // weight.inputs
    if weight.on_tiles(rows):
        return _product("linear", x, _packed_rows(x, rows, weight.inputs), weight, bias, x.shape[:-1], dtype)
    if weight.quantized:
        return _product("small_linear", x, _small_rows(x, weight), weight, bias, x.shape[:-1], dtype)
    return _product("linear", x, None, weight, bias, x.shape[:-1], dtype)


def joins(gate_up: PackedWeight, down: PackedWeight, rows: int) -> bool:
    """Whether :func:`gated_mlp` takes so many rows."""
    on_tiles = gate_up.on_tiles(rows)
    same = down.on_tiles(rows) == on_tiles and (on_tiles or gate_up.quantized == down.quantized)
    return same and down.inputs % COLUMNS == 0


def gated_mlp(
    x: Tensor,
    gate_up: PackedWeight,
    gate_up_bias: Tensor | None,
    down: PackedWeight,
    down_bias: Tensor | None,
    *,
    tanh_form: bool,
) -> Tensor:
    """down(silu(gate x) * up x), or with GELU, (..., C) → (..., C), for F a multiple of 32, and rows that take the same way
    through both weights: tiles, rows of bfloat16 as they are, or products of eight bits. Only while a tape is active.

    What lies between the products never leaves the form that they take.
    """
    active = _active()
    rows = x.numel() // gate_up.inputs
    weight = (gate_up.tiles, KINDS[gate_up.kind], gate_up.outputs, gate_up.inputs, gate_up_bias)
    if gate_up.on_tiles(rows):
        between = active.empty(-(-rows // ROWS) * down.depth * ROWS * COLUMNS)
        packed_x, scratch = _packed_rows(x, rows, gate_up.inputs), _scratch(rows, gate_up)
        active.step("gated_linear", *weight, x, gate_up.inputs, packed_x, rows, between, int(tanh_form), scratch)
        return _product("linear", x, between, down, down_bias, x.shape[:-1], torch.bfloat16)
    if not gate_up.quantized:
        between, scratch = active.empty(*x.shape[:-1], down.inputs), _scratch(rows, gate_up)
        active.step("gated_linear", *weight, x, gate_up.inputs, None, rows, between, int(tanh_form), scratch)
        return _product("linear", between, None, down, down_bias, x.shape[:-1], torch.bfloat16)
    between = _small_room(rows, down)
    small = _small_rows(x, gate_up)
    scratch = _small_scratch(rows, gate_up, small)
    active.step("small_gated", *weight, x, gate_up.inputs, small, rows, between, int(tanh_form), scratch)
    return _product("small_linear", x, between, down, down_bias, x.shape[:-1], torch.bfloat16)


def _packed_rows(x: Tensor, rows: int, inputs: int) -> Tensor:
    active = _active()
    packed = active.empty(-(-rows // ROWS) * -(-inputs // COLUMNS) * ROWS * COLUMNS)
    active.step("pack_rows", x, packed, rows, inputs, inputs)
    return packed


def _product(
    step: str,
    x: Tensor,
    prepared: Tensor | None,
    weight: PackedWeight,
    bias: Tensor | None,
    shape: torch.Size,
    dtype: torch.dtype,
) -> Tensor:
    """One of the two steps of products, which take the same arguments; ``prepared`` is x as the step wants it, if made before."""
    active, rows = _active(), math.prod(shape)
    out = active.empty(*shape, weight.outputs, dtype=dtype)
    scratch = _scratch(rows, weight) if step == "linear" else _small_scratch(rows, weight, prepared)
    active.step(
        step, weight.tiles, KINDS[weight.kind], weight.outputs, weight.inputs, bias, x, weight.inputs, prepared,
        rows, out, weight.outputs, int(dtype == torch.float32), scratch,
    )  # fmt: skip
    return out


def _scratch(rows: int, weight: PackedWeight) -> Tensor:
    """For each thread: room for two blocks of outputs as bfloat16, and for float sums of all rows (AMX) or rows filled up to
    whole groups (without)."""
    active = _active()
    filled_up = rows * weight.depth * COLUMNS if weight.inputs % COLUMNS else 0
    return active.empty(active.threads * (2 * weight.depth * ROWS * COLUMNS + max(-(-rows // ROWS) * 1024, filled_up)))


def _small_rows(x: Tensor, weight: PackedWeight) -> Tensor | None:
    """What products of eight bits take, or None where each thread makes it for itself."""
    rows = x.numel() // weight.inputs
    if rows <= ALONE:
        return None
    small = _small_room(rows, weight)
    _active().step("small_rows", x, small, rows, weight.inputs, weight.inputs)
    return small


def _small_room(rows: int, weight: PackedWeight) -> Tensor:
    """For a weight's inputs of so many rows."""
    return _active().empty(rows * weight.depth * SMALL_BYTES, dtype=torch.uint8)


def _small_scratch(rows: int, weight: PackedWeight, made: Tensor | None) -> Tensor:
    """For each thread: which groups' rests count, and the rows themselves if they were not made before."""
    group = -(-rows // CHUNK) * CHUNK_BYTES + (rows * SMALL_BYTES if made is None else 0)
    return _active().empty(_active().threads * weight.depth * group, dtype=torch.uint8)


def _active() -> tape.Tape:
    active = tape.recording()
    assert active is not None
    return active


def embed(token_ids: Tensor, weight: PackedWeight, factor: float = 1.0) -> Tensor:
    """Rows of a packed weight: ids (...) int64 or int32 → (..., inputs) bfloat16, times factor. Only while a tape is active."""
    active = _active()
    out = active.empty(*token_ids.shape, weight.inputs)
    row = active.empty(active.threads * weight.depth * COLUMNS)
    active.step(
        "embed", weight.tiles, KINDS[weight.kind], weight.outputs, weight.inputs, token_ids, token_ids.numel(), out,
        float(factor), int(token_ids.dtype == torch.int32), row,
    )  # fmt: skip
    return out
