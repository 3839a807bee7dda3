"""Orthogonalised momentum for weight matrices (Muon, kellerjordan.github.io/posts/muon; arXiv 2502.16982)."""

from __future__ import annotations

import torch
from torch import Tensor

from owngpt.kernels import orthogonal as compiled

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Odd polynomials a x + b x³ + c x⁵ whose composition drives singular values in [1e-3, 1] towards 1 (arXiv 2505.16932)."""


BATCHED_BELOW = 256
"""Without the compiled iteration: shorter sides below it go through one batched product; larger matrices one by one."""


@torch.no_grad()
def orthogonalise(matrices: Tensor, steps: int = len(POLAR_EXPRESS)) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each, approximately: U V^T of M = U S V^T.

    ``matrices``: (n, rows, columns) of one floating type; returns the same shape and type.
    """
    if compiled.available(matrices):
        return compiled.orthogonalise(matrices, POLAR_EXPRESS[:steps])
    if matrices.device.type == "cpu" and len(matrices) > 1 and min(matrices.shape[1:]) >= BATCHED_BELOW:
        return torch.stack([_orthogonal(matrix, steps) for matrix in matrices])
    return _orthogonal(matrices, steps)


def _orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """One matrix or a batch. a X + (b G + c G^2) X with G = X X^T is (G (c G + b I) + a I) X: plain products, and all
    element-wise work is on the small square."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = x @ x.mT
        factor = gram * c
        factor.diagonal(dim1=-2, dim2=-1).add_(b)
        factor = gram @ factor
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        x = factor @ x
    return x.mT if tall else x
