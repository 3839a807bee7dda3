"""Our matrix products and Muon's iteration against float32 references, at sizes that fill no tile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from owngpt.kernels import library
from owngpt.kernels.linear import product, weight_gradient
from owngpt.kernels.orthogonal import orthogonalise
from owngpt.train.muon import POLAR_EXPRESS, _orthogonal

pytestmark = pytest.mark.skipif(not library.has_tiles(), reason="no matrix tiles on this machine")

SHAPES = [
    (1, 1, 1),
    (33, 70, 45),
    (64, 64, 64),
    (100, 50, 1100),
    (300, 1000, 513),
    (9, 5003, 96),
    (70, 800, 9000),
    (2100, 40, 40),
]
"""Rows, columns, summed values: single blocks, several depths, several slices of the right factor, tails everywhere."""


def _factor(rows: int, columns: int, transposed: bool, generator: torch.Generator) -> Tensor:
    if transposed:
        return torch.randn(columns, rows, generator=generator).bfloat16().t()
    return torch.randn(rows, columns, generator=generator).bfloat16()


@pytest.mark.parametrize("left_transposed", [False, True])
@pytest.mark.parametrize("right_transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_rounds_the_exact_sum_once(
    shape: tuple[int, int, int], left_transposed: bool, right_transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owngpt.kernels.linear._ours", lambda left, right: True)
    rows, columns, depth = shape
    generator = torch.Generator().manual_seed(sum(shape))
    left = _factor(rows, depth, left_transposed, generator)
    right = _factor(depth, columns, right_transposed, generator)
    bias = torch.randn(columns, generator=generator)
    expected = left.float() @ right.float()
    torch.testing.assert_close(product(left, right).float(), expected, rtol=2**-8, atol=1e-3 * depth**0.5)
    torch.testing.assert_close(product(left, right, bias).float(), expected + bias, rtol=2**-8, atol=1e-3 * depth**0.5)


def test_product_writes_into_rows_of_a_larger_tensor() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(40, 64, generator=generator).bfloat16(), torch.randn(64, 33, generator=generator).bfloat16()
    whole = torch.zeros(60, 33, dtype=torch.bfloat16)
    product(left, right, out=whole[10:50])
    torch.testing.assert_close(whole[10:50].float(), left.float() @ right.float(), rtol=2**-8, atol=1e-2)
    assert not whole[:10].any()
    assert not whole[50:].any()


def test_the_same_product_has_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(1)
    d_out, x = torch.randn(3000, 700, generator=generator).bfloat16(), torch.randn(3000, 200, generator=generator).bfloat16()
    first = weight_gradient(d_out, x)
    assert all(torch.equal(first, weight_gradient(d_out, x)) for _ in range(5))


@pytest.mark.parametrize("shape", [(32, 32), (33, 300), (100, 70), (344, 128), (1024, 384)])
def test_compiled_muon_is_as_near_to_float32_as_bfloat16_allows(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = _orthogonal(matrices.float(), len(POLAR_EXPRESS))
    found = orthogonalise(matrices, POLAR_EXPRESS)
    assert (found.float() - expected).norm() < 0.03 * expected.norm()
