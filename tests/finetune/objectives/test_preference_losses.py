"""The losses of pairs, written down a second time from the papers and from what TRL publishes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from owngpt.finetune.objectives.preference_losses import Answers, PairLosses, dpo_losses, ipo_losses, orpo_losses

CHOSEN, REJECTED = [-12.0, -3.5, -40.25], [-15.0, -3.0, -38.0]
REFERENCE_CHOSEN, REFERENCE_REJECTED = [-13.0, -4.0, -41.0], [-14.0, -3.25, -37.0]
LENGTHS = [[8.0, 5.0], [2.0, 3.0], [31.0, 17.0]]


def made(chosen: list[float], rejected: list[float]) -> Answers:
    return Answers(torch.tensor([chosen, rejected]).t().contiguous(), torch.tensor(LENGTHS))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def assert_losses(result: PairLosses, losses: list[float]) -> None:
    assert result.losses.tolist() == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_is_the_papers_formula(smoothing: float) -> None:
    result = dpo_losses(made(CHOSEN, REJECTED), made(REFERENCE_CHOSEN, REFERENCE_REJECTED), beta=0.3, label_smoothing=smoothing)
    wanted = []
    for chosen, rejected, old_chosen, old_rejected in zip(CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED, strict=True):
        # equation 7: the ratios of the probabilities themselves
        ratio = 0.3 * math.log(math.exp(chosen) / math.exp(old_chosen)) - 0.3 * math.log(
            math.exp(rejected) / math.exp(old_rejected)
        )
        wanted.append(-(1 - smoothing) * math.log(sigmoid(ratio)) - smoothing * math.log(sigmoid(-ratio)))
    assert_losses(result, wanted)


def test_ipo_aims_at_half_of_one_over_beta_per_token() -> None:
    result = ipo_losses(made(CHOSEN, REJECTED), made(REFERENCE_CHOSEN, REFERENCE_REJECTED), beta=0.25)
    wanted = []
    for index, (first, second) in enumerate(LENGTHS):
        gain = (CHOSEN[index] - REFERENCE_CHOSEN[index]) / first - (REJECTED[index] - REFERENCE_REJECTED[index]) / second
        wanted.append((gain - 2.0) ** 2)
    assert_losses(result, wanted)


def test_orpo_adds_the_odds_ratio_to_the_likelihood() -> None:
    result = orpo_losses(made(CHOSEN, REJECTED), beta=0.5)
    wanted = []
    for index, (first, second) in enumerate(LENGTHS):
        chosen, rejected = math.exp(CHOSEN[index] / first), math.exp(REJECTED[index] / second)
        odds_ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
        wanted.append(-math.log(chosen) - 0.5 * math.log(sigmoid(math.log(odds_ratio))))
    assert_losses(result, wanted)


def test_orpo_stays_finite_for_answers_that_are_certain() -> None:
    certain = torch.tensor([[-1e-9, -30.0]], requires_grad=True)
    loss = orpo_losses(Answers(certain, torch.ones(1, 2)), beta=0.1).losses.sum()
    loss.backward()
    assert certain.grad is not None and bool(torch.isfinite(torch.cat([loss[None], certain.grad.flatten()])).all())


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo"])
def test_gradients_raise_the_chosen_and_lower_the_rejected_answer(name: str) -> None:
    values = torch.tensor([[-9.0, -9.0]], requires_grad=True)
    policy, before = Answers(values, torch.full((1, 2), 6.0)), Answers(torch.tensor([[-9.0, -9.0]]), torch.full((1, 2), 6.0))
    losses: dict[str, Tensor] = {
        "dpo": dpo_losses(policy, before, beta=0.1).losses,
        "ipo": ipo_losses(policy, before, beta=0.1).losses,
        "orpo": orpo_losses(policy, beta=0.1).losses,
    }
    losses[name].sum().backward()
    assert values.grad is not None
    assert values.grad[0, 0] < 0 < values.grad[0, 1]
