"""Muon's iteration on many matrices at once: one thread a matrix, each staying in its core's cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from owngpt.kernels import library


def available(matrices: Sequence[Tensor]) -> bool:
    """Whether the compiled iteration can take these: bfloat16 matrices on a CPU with AMX tiles."""
    return library.available(*matrices) and library.has_tiles()


def orthogonalise(
    sources: Sequence[Tensor], targets: Sequence[Tensor], coefficients: Sequence[tuple[float, float, float]]
) -> None:
    """Write sqrt(max(1, rows/columns)) * p(source / norm) to each target; p: the odd polynomials a x + b x³ + c x⁵ in turn.

    Sources and targets: contiguous bfloat16 (rows, columns) matrices of any sizes. Products add in float32, what lies between
    two products is bfloat16.
    """
    assert all(matrix.is_contiguous() for matrix in (*sources, *targets))
    table = [[source.data_ptr(), target.data_ptr(), *source.shape] for source, target in zip(sources, targets, strict=True)]
    library.call("orthogonalise", torch.tensor(table), len(table), torch.tensor(coefficients).float(), len(coefficients))
