"""Muon against the definition: the polar factor of the momentum, by singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.train.muon import orthogonalise
from owngpt.train.optimizer import Optimizer, OptimizerSettings


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T of M = U S V^T."""
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left @ right


@pytest.mark.parametrize("shape", [(48, 48), (32, 96), (96, 32), (300, 280)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalised_matrices_keep_their_direction_and_lose_their_scale(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrices = random(3, *shape) * torch.tensor([1e-3, 1.0, 100.0])[:, None, None]
    found = orthogonalise(matrices.to(dtype)).double()
    for matrix, result in zip(matrices, found, strict=True):
        values = torch.linalg.svdvals(result)
        assert values.max() < 1.2
        assert values.median() == pytest.approx(1.0, abs=0.15)
        exact = polar(matrix)
        cosine = (result * exact).sum() / (result.norm() * exact.norm())
        assert cosine > 0.98


def test_the_result_does_not_depend_on_company() -> None:
    together = orthogonalise(random(4, 40, 24))
    apart = torch.stack([orthogonalise(matrix[None])[0] for matrix in random(4, 40, 24)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_a_zero_matrix_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(1, 8, 16)), torch.zeros(1, 8, 16))


def test_two_steps_equal_nesterov_momentum_and_the_polar_factor() -> None:
    """w ← w (1 - rate·decay) - rate · sqrt(max(1, rows/columns)) · polar(g + beta (m - g)), each fused matrix on its own."""
    config = GPTConfig(
        vocab_size=64, context_length=16, hidden_size=32, layers=1, heads=2, key_value_heads=2, head_size=16, intermediate_size=64
    )
    model = GPT(config, generator=torch.Generator().manual_seed(1))
    rate, decay, beta = 0.05, 0.2, 0.9
    optimizer = Optimizer(model, OptimizerSettings("muon", rate, matrix_decay=decay, momentum=beta))
    matrices = {name: value for name, value in model.named_parameters() if name.startswith("blocks.") and value.dim() == 2}
    parts = {name: [32, 32, 32] if "query_key_value" in name else [64, 64] if "gate_up" in name else None for name in matrices}
    expected = {name: value.detach().double().clone() for name, value in matrices.items()}
    momentum = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(2):
        drawn = {name: random(*value.shape, seed=10 * step + 1) * 1e-2 for name, value in model.named_parameters()}
        optimizer.step(1.0, 1.0, drawn)
        for name in matrices:
            gradient = drawn[name].double()
            momentum[name] = beta * momentum[name] + (1 - beta) * gradient
            direction = gradient + beta * (momentum[name] - gradient)
            pieces = [polar(p) * max(1.0, p.shape[0] / p.shape[1]) ** 0.5 for p in direction.split(parts[name] or len(direction))]
            expected[name] = expected[name] * (1 - rate * decay) - rate * torch.cat(pieces)
    for name, value in matrices.items():
        moved = (value.detach().double() - expected[name]).norm() / (2 * rate * expected[name].shape[0] ** 0.5)
        assert moved < 0.12, name
