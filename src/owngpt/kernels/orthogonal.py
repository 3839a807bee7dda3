"""Muon's iteration on many matrices at once: one thread a matrix, each staying in its core's cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from owngpt.kernels import library


def available(matrices: Tensor) -> bool:
    """Whether the compiled iteration can take these: bfloat16 on a CPU with matrix tiles."""
    return library.available(matrices) and library.has_tiles()


def orthogonalise(matrices: Tensor, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """p(matrix / norm) of each of (n, rows, columns) bfloat16 matrices; p: the odd polynomials a x + b x³ + c x⁵ in turn.

    Products add in float32, what lies between two products is bfloat16.
    """
    matrices = matrices.contiguous()
    out = torch.empty_like(matrices)
    table = torch.tensor(coefficients, dtype=torch.float32)
    library.call("orthogonalise", matrices, out, *matrices.shape, table, len(table))
    return out
