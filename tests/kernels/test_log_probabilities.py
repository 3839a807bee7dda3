"""Log-probabilities in blocks: equal to PyTorch's log_softmax in value and gradient, head frozen or trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from owngpt.kernels import log_probabilities
from owngpt.kernels.frozen import can_freeze, freeze
from owngpt.kernels.log_probabilities import linear_log_probabilities


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
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


@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_the_targets_logit_is_not_rounded_to_bfloat16(deviation: float) -> None:
    """Its neighbours are 0.125 away from 16 on, which an answer's sum would add up."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(500, 64, generator=generator).bfloat16()
    weight = (torch.randn(500, 64, generator=generator) * deviation).bfloat16()
    whole = (hidden.double() @ weight.double().t()).log_softmax(-1)
    targets = torch.multinomial(whole.exp().float(), 1, generator=generator)[:, 0]
    wanted = whole.gather(1, targets[:, None])[:, 0].float()
    rounded = (hidden.float() @ weight.float().t()).bfloat16().float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    values = linear_log_probabilities(hidden, weight, targets)
    assert (values - wanted).std() < 0.7 * (rounded - wanted).std()
    assert values.max() <= 0


@pytest.mark.parametrize("shape", [(64, 32), (70, 40)])
def test_a_frozen_head_has_the_same_values_and_gradients(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(shape, generator=generator) * 0.3).bfloat16()
    if not can_freeze(weight):
        pytest.skip("this machine's kernels pack no weights")
    frozen, index = freeze(weight), torch.tensor([0, 15, 16, 31, 32, shape[0] - 1])
    assert torch.equal(frozen.rows(index), weight[index])
    hidden = torch.randn(6, shape[1], generator=generator).bfloat16()
    outcomes = []
    for head in (weight, frozen):
        x = hidden.clone().requires_grad_()
        values = linear_log_probabilities(x, head, index)
        values.sum().backward()
        assert x.grad is not None
        outcomes.append((values.detach(), x.grad))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=0.02, atol=0.02)
