"""Log-probabilities in blocks: equal to PyTorch's log_softmax in value and gradient, head frozen or trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from owngpt.kernels import log_probabilities
from owngpt.kernels.log_probabilities import linear_log_probabilities


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
@pytest.mark.parametrize("block", [100, 10**9])
def test_values_and_gradients_are_those_of_log_softmax(
    frozen: bool, dtype: torch.dtype, tolerance: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_probabilities, "BLOCK_VALUES", block)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 32, generator=generator).to(dtype)
    weight = (torch.randn(64, 32, generator=generator) * 0.3).to(dtype)
    targets = torch.randint(64, (11,), generator=generator)
    weights_of_rows = torch.randn(11, generator=generator)

    def outcome(function: object, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, w = (tensor.clone().requires_grad_() for tensor in tensors)
        w.requires_grad_(not frozen)
        values = function(x, w, targets)  # type: ignore[operator]
        (values * weights_of_rows).sum().backward()
        assert x.grad is not None
        return values.detach(), x.grad.float(), None if w.grad is None else w.grad.float()

    got = outcome(linear_log_probabilities, hidden, weight)
    wanted = outcome(reference, hidden.float(), weight.float())
    assert got[0].dtype == torch.float32
    assert (got[2] is None) == frozen
    for mine, theirs in zip(got, wanted, strict=True):
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    hidden, weight = torch.randn(3, 8), torch.nn.Parameter(torch.randn(5, 8))
    with torch.no_grad():
        values = linear_log_probabilities(hidden, weight, torch.tensor([0, 4, 2]))
    assert not values.requires_grad
    torch.testing.assert_close(values, reference(hidden, weight.detach(), torch.tensor([0, 4, 2])))


def test_no_rows_have_no_values_and_no_gradient() -> None:
    hidden, weight = torch.randn(0, 8, requires_grad=True), torch.nn.Parameter(torch.randn(5, 8))
    values = linear_log_probabilities(hidden, weight, torch.zeros(0, dtype=torch.int64))
    values.sum().backward()
    assert values.shape == (0,) and weight.grad is not None and not weight.grad.any()
