"""The losses of preference tuning, as functions of how probable the two answers are. All numbers are per pair, in nats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Answers:
    """How probable the answers of P pairs are to a model."""

    log_probabilities: Tensor
    """(P, 2) float32: chosen, rejected; summed over the answer's tokens"""
    lengths: Tensor
    """(P, 2) float32: tokens of each answer, at least 1"""

    @property
    def means(self) -> Tensor:
        """(P, 2): log-probability per token."""
        return self.log_probabilities / self.lengths


@dataclass(frozen=True)
class PairLosses:
    """(P,) each."""

    losses: Tensor
    margins: Tensor
    """How much better the model rates the chosen answer; above 0 it prefers it. Without gradient."""


def dpo_losses(policy: Answers, reference: Answers, *, beta: float, label_smoothing: float = 0.0) -> PairLosses:
    """Direct preference optimisation (arXiv 2305.18290, equation 7): -log sigmoid(beta * h), where h is by how much more the
    policy prefers the chosen answer than the reference does.

    :param label_smoothing: share of the pairs that are taken to be the wrong way round (conservative DPO).
    """
    rewards = beta * (policy.log_probabilities - reference.log_probabilities)
    margins = rewards[:, 0] - rewards[:, 1]
    losses = -functional.logsigmoid(margins) * (1 - label_smoothing) - functional.logsigmoid(-margins) * label_smoothing
    return PairLosses(losses, margins.detach())


def ipo_losses(policy: Answers, reference: Answers, *, beta: float) -> PairLosses:
    """Identity preference optimisation (arXiv 2310.12036, equation 17): (h - 1 / (2 beta))^2.

    ``beta`` is the paper's tau. Log-probabilities are per token, so that the aim of 1 / (2 beta) suits answers of any length (as
    TRL does it).
    """
    ratios = policy.means - reference.means
    differences = ratios[:, 0] - ratios[:, 1]
    return PairLosses((differences - 1 / (2 * beta)) ** 2, beta * differences.detach())


def orpo_losses(policy: Answers, *, beta: float) -> PairLosses:
    """Odds ratio preference optimisation (arXiv 2403.07691, equations 6 and 7), which needs no reference: the chosen answer's
    negative log-likelihood per token, plus beta (the paper's lambda) times -log sigmoid(log of the ratio of the odds)."""
    means = policy.means
    # log odds of p = exp(m): m - log(1 - exp(m)); the latter by expm1, exact for answers that are almost certain
    log_odds = means - torch.log(-torch.expm1(means.clamp(max=-1e-7)))
    ratio = log_odds[:, 0] - log_odds[:, 1]
    losses = -means[:, 0] - beta * functional.logsigmoid(ratio)
    return PairLosses(losses, (beta * (means[:, 0] - means[:, 1])).detach())
