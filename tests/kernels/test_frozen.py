"""The fused kernels of a frozen layer with low-rank updates against plain PyTorch in float32, at sizes that fill no tile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from owngpt.kernels import library
from owngpt.kernels.activation import gated
from owngpt.kernels.frozen import freeze
from owngpt.kernels.low_rank import Spans, frozen_linear, frozen_low_rank_linear, low_rank_linear
from owngpt.kernels.norm import add_rms_norm
from owngpt.kernels.remake import suspended

pytestmark = pytest.mark.skipif(not library.has_tiles(), reason="no matrix tiles on this machine")

CASES: list[tuple[int, int, int, int, Spans]] = [
    (1, 8, 8, 4, ((0, 8),)),
    (37, 70, 45, 3, ((0, 45),)),
    (64, 64, 96, 16, ((0, 32), (32, 64), (64, 96))),
    (130, 48, 100, 5, ((0, 41), (60, 100))),
    (300, 800, 70, 40, ((7, 33),)),
    (700, 40, 1700, 16, ((0, 900), (900, 1700))),
]
"""Rows, inputs, outputs, rank, spans: one block and several, sums in several chunks, spans that begin and end within tiles."""


def _values(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _near(found: Tensor, expected: Tensor, tolerance: float = 0.01) -> None:
    assert found.shape == expected.shape
    assert float((found.float() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_plain_arithmetic(case: tuple[int, int, int, int, Spans], bias: bool) -> None:
    rows, inputs, outputs, rank, spans = case
    weight = (_values(outputs, inputs, seed=1) / inputs**0.5).bfloat16()
    shift = _values(outputs, seed=2) if bias else None
    sources = [
        _values(rows, inputs, seed=3).bfloat16(),
        _values(len(spans) * rank, inputs, seed=4) / inputs**0.5,
        _values(sum(last - first for first, last in spans), rank, seed=5),
    ]
    d_y = _values(rows, outputs, seed=6).bfloat16()
    x, down, up = (source.clone().requires_grad_() for source in sources)
    wide = [source.bfloat16().float().requires_grad_() for source in sources]
    y = frozen_low_rank_linear(x, freeze(weight), shift, down, up, spans, 1.5)
    expected = low_rank_linear(wide[0], weight.float(), shift, wide[1], wide[2], spans, 1.5)
    _near(y.detach(), expected.detach())
    y.backward(d_y)
    expected.backward(d_y.float())
    for found, reference in zip((x, down, up), wide, strict=True):
        assert found.grad is not None
        assert reference.grad is not None
        assert found.grad.dtype == found.dtype
        _near(found.grad, reference.grad)


def test_without_updates_it_is_a_product_rounded_once() -> None:
    weight, x = _values(70, 800, seed=1).bfloat16(), _values(2, 33, 800, seed=2).bfloat16().requires_grad_()
    shift = _values(70, seed=3)
    y = frozen_linear(x, freeze(weight), shift)
    expected = x.detach().float() @ weight.float().t() + shift
    torch.testing.assert_close(y.detach().float(), expected, rtol=2**-8, atol=0.03)
    d_y = _values(2, 33, 70, seed=4).bfloat16()
    y.backward(d_y)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), d_y.float() @ weight.float(), rtol=2**-8, atol=0.03)


def test_no_rows_have_no_outputs_and_no_gradient() -> None:
    weight, x = freeze(_values(45, 70, seed=1).bfloat16()), torch.empty(0, 3, 70, dtype=torch.bfloat16, requires_grad=True)
    down, up = _values(4, 70, seed=2).requires_grad_(), _values(45, 4, seed=3).requires_grad_()
    for y in (frozen_linear(x, weight, None), frozen_low_rank_linear(x, weight, None, down, up, ((0, 45),), 1.0)):
        assert y.shape == (0, 3, 45)
        y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert down.grad is not None and not down.grad.any()
    assert up.grad is not None and not up.grad.any()


@pytest.mark.parametrize("shape", [(1, 1), (32, 64), (45, 70), (100, 33)])
def test_a_packed_weight_is_still_the_weight(shape: tuple[int, int]) -> None:
    weight = _values(*shape, seed=1).bfloat16()
    packed = freeze(weight)
    assert torch.equal(packed.unpacked(), weight)
    index = torch.arange(0, shape[0], 3)
    assert torch.equal(packed.rows(index), weight[index])


@pytest.mark.parametrize("shape", [(1, 1), (32, 64), (45, 70), (100, 33)])
def test_int8_is_near_the_weight_and_both_products_use_the_same_values(shape: tuple[int, int]) -> None:
    exact = _values(*shape, seed=1).bfloat16()
    weight = freeze(exact, int8=True)
    values = weight.unpacked()
    assert weight.bytes < 0.6 * exact.numel() * exact.element_size() + 100
    assert float((values.float() - exact.float()).abs().max()) <= float(exact.float().abs().max()) / 127
    x = _values(5, shape[1], seed=2).bfloat16().requires_grad_()
    y = frozen_linear(x, weight, None)
    torch.testing.assert_close(y.detach().float(), x.detach().float() @ values.float().t(), rtol=2**-7, atol=0.01)
    d_y = _values(5, shape[0], seed=3).bfloat16()
    y.backward(d_y)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), d_y.float() @ values.float(), rtol=2**-7, atol=0.01)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    weight, spans = freeze(_values(96, 64, seed=1).bfloat16()), ((0, 48), (48, 96))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            x = _values(700, 64, seed=2).bfloat16().requires_grad_()
            down, up = _values(16, 64, seed=3).requires_grad_(), _values(96, 8, seed=4).requires_grad_()
            y = frozen_low_rank_linear(x, weight, None, down, up, spans, 0.5)
            y.backward(_values(700, 96, seed=5).bfloat16())
        finally:
            torch.set_num_threads(before)
        results.append((y.detach(), x.grad, down.grad, up.grad))
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            assert found is not None
            assert expected is not None
            assert torch.equal(found, expected)


def test_inputs_that_can_be_made_again_are_not_kept_and_gradients_stay_the_same() -> None:
    """A norm's results: bit for bit what they were."""
    weight, spans = freeze(_values(64, 70, seed=1).bfloat16()), ((0, 64),)
    down, up = _values(8, 70, seed=2).requires_grad_(), _values(64, 8, seed=3).requires_grad_()
    x = _values(7, 71, 70, seed=4).bfloat16().requires_grad_()

    def gradients() -> list[Tensor]:
        _, normed = add_rms_norm(x, x * 2, _values(70, seed=5), 1e-5)
        y = frozen_low_rank_linear(normed, weight, None, down, up, spans, 0.5)
        return list(torch.autograd.grad(y.float().sum(), (x, down, up)))

    kept: list[set[int]] = [set(), set()]

    def keep(tensor: Tensor, into: set[int]) -> Tensor:
        into.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda each: keep(each, kept[0]), lambda each: each):
        found = gradients()
    with suspended(), torch.autograd.graph.saved_tensors_hooks(lambda each: keep(each, kept[1]), lambda each: each):
        expected = gradients()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert len(kept[0]) < len(kept[1])


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("case", [*CASES, (140, 33, 4200, 4, ((0, 4200),))])
def test_a_gate_on_the_way_gives_the_same_bits_as_one_before(case: tuple[int, int, int, int, Spans], gradient: bool) -> None:
    rows, inputs, outputs, rank, spans = case
    height = sum(last - first for first, last in spans)
    weight = freeze((_values(outputs, inputs, seed=1) / inputs**0.5).bfloat16())
    d_y = _values(rows, outputs, seed=5).bfloat16()
    results = []
    for on_the_way in (True, False):
        gate_up = (3 * _values(rows, 2 * inputs, seed=2)).bfloat16().requires_grad_(gradient)
        down = _values(len(spans) * rank, inputs, seed=3).requires_grad_()
        up = _values(height, rank, seed=4).requires_grad_()
        x = gate_up if on_the_way else gated(gate_up, "swiglu")
        y = frozen_low_rank_linear(x, weight, _values(outputs, seed=6), down, up, spans, 0.5, gated=on_the_way)
        y.backward(d_y)
        results.append((y.detach(), gate_up.grad, down.grad, up.grad))
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None) == (found is None and not gradient)
        assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize("names", ["bfloat16 bfloat16", "float16 float32", "float64 bfloat16"])
def test_factors_of_other_types_are_taken_and_keep_them(names: str) -> None:
    types = [getattr(torch, name) for name in names.split()]
    weight, x = freeze(_values(45, 70, seed=1).bfloat16()), _values(130, 70, seed=2).bfloat16()
    sources = [_values(4, 70, seed=3).bfloat16(), _values(45, 4, seed=4).bfloat16()]
    found = [source.to(kind, copy=True).requires_grad_() for source, kind in zip(sources, types, strict=True)]
    expected = [source.float().requires_grad_() for source in sources]
    results = [frozen_low_rank_linear(x, weight, None, *factors, ((0, 45),), 1.0) for factors in (found, expected)]
    assert torch.equal(*results)
    for y in results:
        y.backward(_values(130, 45, seed=5).bfloat16())
    for one, other in zip(found, expected, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad.to(one.dtype))
