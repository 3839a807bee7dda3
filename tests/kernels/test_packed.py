"""Packed weights hold what they say and multiply as it says, whatever the shape, the kind and the number of rows."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from owngpt.kernels import packed, tape
from owngpt.kernels.memory import LINE, HugePages
from owngpt.kernels.packed import COLUMNS, FEW, NEVER, Kind, PackedWeight, amx

pytestmark = pytest.mark.skipif(not tape.can_record(), reason="no matrix tiles on this machine")

KINDS: tuple[Kind, ...] = ("bf16", "compact", "int8", "int6", "int4")
SHAPES = ((16, 32), (5, 33), (37, 100), (960, 576), (64, 1536))
ROUNDING = 2.0**-7
"""Two roundings to bfloat16."""


def weight_of(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def ways(kind: Kind) -> tuple[int, ...]:
    """Rows from which on they may go through tiles: here, and for weights of this kind."""
    if not amx():
        return (NEVER,)
    return (1,) if kind in ("bf16", "compact") else (1, 2, FEW + 1, NEVER)


def pack(weight: Tensor, kind: Kind) -> PackedWeight:
    if kind == "q4_1":
        return stored_in_groups(*weight.shape)
    made = packed.pack_exactly(weight) if kind == "compact" else packed.pack(weight, kind)
    assert made.kind == kind
    return made


def stored_in_groups(outputs: int, inputs: int) -> PackedWeight:
    """As a file has it, with zeros among the values."""
    generator = torch.Generator().manual_seed(0)
    factors = (0.01 + torch.rand(outputs, inputs // 32, generator=generator)).half()
    nibbles = torch.randint(0, 16, (outputs, inputs), generator=generator, dtype=torch.uint8)
    return packed.pack_groups(nibbles, factors, -8 * factors)


def product(x: Tensor, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    recorded = tape.Tape(tape.BufferPool())
    with recorded.record():
        out = packed.linear(x, weight, bias, dtype)
    recorded.run()
    return out.clone()


def in_eight_bits(x: Tensor) -> Tensor:
    """What products of eight bits take for x: 253 levels for 32 values, of which 0 is one.

    254 times as many where those reach two and a half times as far as their row's on average.
    """
    width = x.shape[-1]
    groups = torch.nn.functional.pad(x.float(), (0, -width % COLUMNS)).unflatten(-1, (-1, COLUMNS))
    least, greatest = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    inverse = torch.where(greatest > least, torch.tensor(252.0) / (greatest - least), 0)
    middle = ((least + greatest) / 2 * inverse).round()
    places = (groups.double() * inverse - middle).float()  # one rounding to float32, as the instruction does it
    numbers = places.round()
    rests = ((places - numbers) * 254).round() / 254
    assert float(numbers.abs().max()) <= 127
    reach = greatest - least
    outlying = reach > 2.5 * reach.mean(dim=-2, keepdim=True)
    return ((numbers + middle + rests * outlying) * reach / 252).flatten(-2)[..., :width]


@pytest.mark.parametrize(
    ("kind", "outputs", "inputs"), [*((kind, *shape) for kind in KINDS for shape in SHAPES), ("q4_1", 37, 96)]
)
def test_products_are_those_of_the_unpacked_weight(kind: Kind, outputs: int, inputs: int) -> None:
    weight = pack(weight_of(outputs, inputs), kind)
    bias = weight_of(1, outputs, seed=1)[0]
    for rows in (1, 2, 3, 5, FEW, FEW + 1, 12, 15, 16, 17, 30, 49, 64, 65, 130):
        x = weight_of(rows, inputs, seed=rows).bfloat16()
        for weight.tiles_from in ways(kind):
            small = weight.quantized and not weight.on_tiles(rows)
            expected = (in_eight_bits(x) if small else x.float()) @ weight.unpacked().T + bias
            for dtype in (torch.float32, torch.bfloat16):
                found = product(x, weight, bias, dtype).float()
                near = 2.0**-18 if small and dtype == torch.float32 else ROUNDING
                assert float((found - expected).abs().max()) < near * float(expected.abs().max())


def test_groups_of_one_sign_have_all_levels_on_its_side() -> None:
    weight = pack(weight_of(48, 64), "int8")
    weight.tiles_from = NEVER
    for sign in (1, -1):
        x = sign * weight_of(7, 64, seed=3).abs().bfloat16()
        exact = x.float() @ weight.unpacked().T
        error = float((product(x, weight, None, torch.float32) - exact).norm() / exact.norm())
        assert error < 2.0**-8


def with_outlying_groups(rows: int, inputs: int) -> Tensor:
    """Normal numbers, of which some rows have one or two groups that are thirty times as large."""
    x = weight_of(rows, inputs, seed=5)
    for row in range(rows):
        for group in {row % 7, row % 3} if row % 4 else ():
            x[row, COLUMNS * group : COLUMNS * (group + 1)] *= 30
    return x.bfloat16()


@pytest.mark.parametrize("kind", ["int8", "int6", "int4", "q4_1"])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 40, 130])
def test_groups_that_reach_far_are_not_rounded_for_others(kind: Kind, rows: int) -> None:
    """Whatever row they are in, and whatever rows are beside it."""
    weight = pack(weight_of(80, 512), kind)
    weight.tiles_from = NEVER
    x = with_outlying_groups(130, 512)[-rows:]
    found, values = product(x, weight, None, torch.float32), weight.unpacked()
    exact, rounded = x.float() @ values.T, in_eight_bits(x) @ values.T
    far = x.float().unflatten(-1, (-1, COLUMNS)).abs().amax(-1).amax(-1) > 10
    assert bool(far.any())
    errors = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(errors[far].max()) < 0.0015  # eight bits alone: 0.004
    assert float((found - rounded).abs().max()) < 2.0**-18 * float(rounded.abs().max())
    for row in range(0, rows, 9):
        assert torch.equal(product(x[row : row + 1], weight, None, torch.float32)[0], found[row])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", ["int8", "q4_1"])
@pytest.mark.parametrize("rows", [1, 3, 6])
def test_a_row_that_is_damaged_stays_so_and_harms_no_other(value: float, kind: Kind, rows: int) -> None:
    weight = pack(weight_of(48, 64), kind)
    weight.tiles_from = NEVER
    x = weight_of(rows, 64, seed=3).bfloat16()
    whole = product(x, weight, None, torch.float32)
    x[-1, 40] = value
    found = product(x, weight, None, torch.float32)
    assert not found[-1].isfinite().any()
    assert torch.equal(found[:-1], whole[:-1])


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e37])
def test_rows_of_any_size_are_taken(value: float) -> None:
    weight = pack(weight_of(48, 64) / 8, "int8")
    weight.tiles_from = NEVER
    x = torch.full((6, 64), value).bfloat16()
    x[:, ::2] *= -1 if value < 1 else -2  # the distance between the ends may be more than a number holds
    x[:, 1] *= 8
    exact = x.double() @ weight.unpacked().double().T
    found = product(x, weight, None, torch.float32).double()
    assert float((found - exact).abs().max()) <= ROUNDING * float(exact.abs().max()) + 1e-30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 40])
def test_threads_of_any_number_share_a_product(kind: Kind, rows: int) -> None:
    x = weight_of(rows, 96, seed=2).bfloat16()
    for outputs in (16, 48, 272, 1000):
        weight = pack(weight_of(outputs, 96), kind)
        found = []
        for threads in (1, 2, 3, 5, 16):
            recorded = tape.Tape(tape.BufferPool(threads))
            with recorded.record():
                out = packed.linear(x, weight, None, torch.float32)
            for _ in range(4):
                out.numpy().fill(math.nan)
                recorded.run()
                found.append(out.clone())
        assert all(torch.equal(each, found[0]) for each in found)
        assert bool(found[0].isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_product_alone_and_among_others(kind: Kind) -> None:
    weight = pack(weight_of(80, 96), kind)
    weight.tiles_from = ways(kind)[0]
    x = weight_of(140, 96, seed=2).bfloat16()
    together = product(x, weight, None, torch.float32)
    for row in (0, 15, 16, 39, 64, 139):
        assert torch.equal(product(x[row : row + 1], weight, None, torch.float32)[0], together[row])
    for rows in (2, 3, 5, 8, 12, 16, 17, 32, 66, 67):
        assert torch.equal(product(x[:rows], weight, None, torch.float32), together[:rows])


@pytest.mark.parametrize("kind", ["int8", "int6", "int4", "q4_1"])
def test_any_number_of_rows_has_the_same_products_of_eight_bits(kind: Kind) -> None:
    weight = pack(weight_of(80, 96), kind)
    x = weight_of(140, 96, seed=2).bfloat16()
    weight.tiles_from = NEVER
    together = product(x, weight, None, torch.float32)
    for first, last in ((0, 1), (63, 66), (3, 70), (1, 140)):
        assert torch.equal(product(x[first:last].clone(), weight, None, torch.float32), together[first:last])


@pytest.mark.parametrize("kind", ["int8", "int6", "int4"])
def test_a_row_has_the_same_vector_products_alone_and_among_others(kind: Kind) -> None:
    weight = pack(weight_of(80, 96), kind)
    x = weight_of(FEW, 96, seed=2).bfloat16()
    weight.tiles_from = FEW + 1 if amx() else NEVER
    together = product(x, weight, None, torch.float32)
    for rows in (1, 2, 3, 4, 5):
        for first in (0, FEW - rows):
            found = product(x[first : first + rows].clone(), weight, None, torch.float32)
            assert torch.equal(found, together[first : first + rows])


@pytest.mark.parametrize(
    ("kind", "worst"), [("bf16", 0.003), ("compact", 0.003), ("int8", 0.007), ("int6", 0.02), ("int4", 0.08)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packing_loses_as_little_as_its_bits_allow(kind: Kind, worst: float, dtype: torch.dtype) -> None:
    weight = weight_of(48, 160).to(dtype)
    error = pack(weight, kind).unpacked() - weight.float()
    assert float(error.square().mean().sqrt() / weight.float().square().mean().sqrt()) < worst


def test_four_bits_are_spent_better_than_from_the_least_to_the_greatest_value() -> None:
    weight = weight_of(64, 320)
    groups = weight.view(64, 10, 32)
    low, step = groups.amin(-1, keepdim=True), (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    simple = ((groups - low) / step).round() * step + low
    error = (pack(weight, "int4").unpacked() - weight).square().mean()
    assert float(error) < 0.9 * float((simple - groups).square().mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.1, -3.0, -4.3, 1e-3, 1e4])
def test_equal_values_and_zeros_stay_what_they_are(kind: Kind, value: float) -> None:
    unpacked = pack(torch.full((16, 64), value), kind).unpacked()
    assert torch.allclose(unpacked, torch.full((16, 64), value), rtol=0.01, atol=1e-7)


def test_what_is_stored_in_groups_is_kept_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(24, 3, generator=generator).half()
    offsets = -torch.rand(24, 3, generator=generator).half()
    nibbles = torch.randint(0, 16, (24, 96), generator=generator, dtype=torch.uint8)
    numbers = torch.randint(-127, 128, (24, 96), generator=generator, dtype=torch.int8)
    wide = factors.float().repeat_interleave(32, 1)
    assert torch.equal(packed.pack_groups(numbers, factors, None).unpacked(), numbers * wide)
    expected = nibbles * wide + offsets.float().repeat_interleave(32, 1)
    assert torch.equal(packed.pack_groups(nibbles, factors, offsets).unpacked(), expected)
    for stored, values in (
        (packed.pack_groups(numbers, factors, None), numbers * wide),
        (packed.pack_groups(nibbles, factors, offsets), expected),
    ):
        assert packed.widened(stored).kind == "bf16"
        assert torch.allclose(packed.widened(stored).unpacked(), values.bfloat16().float(), rtol=2**-7, atol=0)


def test_what_is_stored_in_4_bit_groups_becomes_int4_with_the_same_numbers() -> None:
    stored = stored_in_groups(37, 96)
    made = packed.pack(stored, "int4")
    expected = stored.unpacked()
    largest = expected.unflatten(1, (-1, 32)).abs().amax(2).repeat_interleave(32, 1)
    assert made.kind == "int4" and made.bytes < stored.bytes
    # What a factor can be off by grows where it is small beside the largest of its output.
    assert float(((made.unpacked() - expected).abs() / largest).max()) < 0.05
    assert torch.equal(made.unpacked() == 0, expected == 0)


@pytest.mark.parametrize("least", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["int8", "int6", "int4"])
def test_weights_of_one_sign_are_held_as_well_whichever_it_is(kind: Kind, least: float) -> None:
    weight = least + (1 - least) * torch.rand(16, 256, generator=torch.Generator().manual_seed(0))
    above, below = (float((pack(each, kind).unpacked() - each).abs().mean()) for each in (weight, -weight))
    assert below == pytest.approx(above, rel=0.1) and above < 0.04


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("least", [-1.0, -8.0, -15.0, -30.0, 4.0])
def test_stored_groups_of_any_range_become_int4(least: float, turned: bool) -> None:
    """Q4_0 has negative factors for half of its groups; a group need not reach 0."""
    generator = torch.Generator().manual_seed(0)
    factors = (0.5 + torch.rand(16, 8, generator=generator)).half()
    nibbles = torch.randint(0, 16, (16, 256), generator=generator, dtype=torch.uint8)
    offsets = (least * factors.float()).half()
    mixed = torch.rand(16, 8, generator=generator) < 0.5 if turned else torch.zeros(16, 8, dtype=torch.bool)
    offsets = torch.where(mixed, offsets + 15 * factors, offsets)  # the same levels from the other end
    stored = packed.pack_groups(nibbles, torch.where(mixed, -factors, factors), offsets)
    expected = stored.unpacked()
    error = float((packed.pack(stored, "int4").unpacked() - expected).abs().mean() / expected.abs().mean())
    assert error < (0.006 if -15 <= least <= 0 else 0.05)


@pytest.mark.parametrize("damage", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["int8", "int6", "int4"])
def test_damaged_weights_stay_damaged(kind: Kind, damage: float) -> None:
    weight = weight_of(32, 64)
    weight[3, 40] = damage
    found = pack(weight, kind).unpacked().isfinite().all(1)
    assert (~found).nonzero().flatten().tolist() == [3]


def seldom(outputs: int, inputs: int, value: float) -> Tensor:
    """Weights as models have them, with another one here and there, the corners included."""
    weight = weight_of(outputs, inputs) / 50
    chosen = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(3)) < 1 / 2_000
    chosen[0, 0] = chosen[-1, -1] = True
    return torch.where(chosen, value, weight)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, -1e-9, 1e30, -70.0])
@pytest.mark.parametrize(("outputs", "inputs"), [(37, 575), (64, 576), (16, 4096)])
def test_compact_weights_are_those_of_bfloat16_bit_for_bit(outputs: int, inputs: int, value: float) -> None:
    weight = seldom(outputs, inputs, value)
    compact, expected = pack(weight, "compact"), weight.bfloat16()
    assert compact.bytes < 0.8 * packed.pack(weight, "bf16").bytes
    assert torch.equal(compact.unpacked().bfloat16().view(torch.int16), expected.view(torch.int16))
    ids = torch.arange(outputs)
    recorded = tape.Tape(tape.BufferPool())
    with recorded.record():
        rows = packed.embed(ids, compact)
    recorded.run()
    assert torch.equal(rows.view(torch.int16), expected.view(torch.int16))
    for count in (1, 16, 20, 40):  # the products see them too
        x = weight_of(count, inputs, seed=count).bfloat16()
        exact = x.double() @ expected.double().T
        found = product(x, compact, None, torch.float32)
        assert float((found - exact).abs().max()) < 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_stays_so(value: float) -> None:
    weight = seldom(64, 576, value)
    assert torch.equal(pack(weight, "compact").unpacked().isfinite(), weight.isfinite())


def test_zeros_of_which_there_are_many_cost_nothing() -> None:
    weight = weight_of(64, 576) / 50
    weight[torch.rand(64, 576, generator=torch.Generator().manual_seed(1)) < 0.3] = 0.0
    compact = pack(weight, "compact")
    fixed = 4 * (18 * packed.TILE_BYTES["compact"] + packed.UPPER_BYTES)
    assert compact.bytes - fixed < packed.EXCEPTION_BYTES * 64
    assert torch.equal(compact.unpacked(), weight.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_with_too_many_magnitudes_stays_as_it_is(dtype: torch.dtype) -> None:
    weight = (weight_of(48, 64) * 2.0 ** torch.linspace(-14, 14, 64)).to(dtype)
    kept = packed.pack_exactly(weight)
    assert kept.kind == "bf16"
    assert torch.equal(kept.unpacked(), weight.bfloat16().float())


@pytest.mark.parametrize("kind", ["bf16", "int8", "q4_1"])
def test_quantized_weights_become_compact_as_they_become_bfloat16(kind: Kind) -> None:
    weight = stored_in_groups(37, 96) if kind == "q4_1" else packed.pack(weight_of(37, 96), kind)
    compact = packed.pack_exactly(weight)
    assert compact.kind == "compact"
    assert torch.equal(compact.unpacked(), weight.unpacked().bfloat16().float())


def test_the_memory_that_exceptions_did_not_need_is_taken_again() -> None:
    memory = HugePages()
    first = packed.pack_exactly(weight_of(64, 576), memory)
    second = packed.pack_exactly(weight_of(64, 576, seed=1), memory)
    gap = second.tiles.data_ptr() - first.tiles.data_ptr() - first.bytes
    assert 0 <= gap < LINE
    for seed, kept in enumerate((first, second)):
        assert torch.equal(kept.unpacked(), weight_of(64, 576, seed=seed).bfloat16().float())


@pytest.mark.parametrize("kind", ["int4", "int6"])
def test_sixteen_evenly_spaced_levels_survive(kind: Kind) -> None:
    levels = torch.arange(16).repeat(2).float() * 0.25 - 1.5
    weight = levels[torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(row)) for row in range(16)])]
    assert torch.allclose(pack(weight, kind).unpacked(), weight, atol=1e-5 if kind == "int4" else 0.02)


@pytest.mark.parametrize("kind", [*KINDS, "q4_1"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_embedding_gives_rows_of_the_weight_times_the_factor(kind: Kind, dtype: torch.dtype) -> None:
    weight = pack(weight_of(37, 96 if kind == "q4_1" else 100), kind)
    ids = torch.tensor([[0, 36, 16, 15, 0]], dtype=dtype)
    recorded = tape.Tape(tape.BufferPool())
    with recorded.record():
        out = packed.embed(ids, weight, 3.0)
    recorded.run()
    assert torch.allclose(out.float(), 3 * weight.unpacked()[ids.long()], rtol=2.0**-7, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tanh_form", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_joined_gated_layer_is_its_parts_one_after_another(kind: Kind, tanh_form: bool, biased: bool) -> None:
    gate_up, down = pack(weight_of(192, 64) / 8, kind), pack(weight_of(64, 96, seed=1) / 8, kind)
    biases = (weight_of(1, 192, seed=3)[0], weight_of(1, 64, seed=4)[0]) if biased else (None, None)
    for rows, gate_up.tiles_from in itertools.product((1, 3, 5, 16, 17, 32, 33, 70), sorted({ways(kind)[0], ways(kind)[-1]})):
        down.tiles_from = gate_up.tiles_from
        assert packed.joins(gate_up, down, rows)
        x = weight_of(rows, 64, seed=rows).bfloat16()
        recorded = tape.Tape(tape.BufferPool())
        with recorded.record():
            out = packed.gated_mlp(x, gate_up, biases[0], down, biases[1], tanh_form=tanh_form)
        recorded.run()
        taken = in_eight_bits if gate_up.quantized and not gate_up.on_tiles(rows) else Tensor.float
        both = taken(x) @ gate_up.unpacked().T + (0 if biases[0] is None else biases[0])
        gate, up = both.chunk(2, 1)
        active = torch.nn.functional.gelu(gate, approximate="tanh") if tanh_form else torch.nn.functional.silu(gate)
        expected = taken(active * up) @ down.unpacked().T + (0 if biases[1] is None else biases[1])
        assert float((out.float() - expected).abs().max()) < 2 * ROUNDING * float(expected.abs().max())
