"""Preference tuning: DPO, IPO and ORPO over pairs of answers, without a second copy of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from owngpt.config.checks import above, one_of, within
from owngpt.data.batches import Batch
from owngpt.errors import UsageError
from owngpt.finetune.objectives.learned_tokens import sequence_log_probabilities, without_dropout
from owngpt.finetune.objectives.preference_batch import PreferenceBatch
from owngpt.finetune.objectives.preference_losses import Answers, PairLosses, dpo_losses, ipo_losses, orpo_losses
from owngpt.model.gpt import GPT

PreferenceLoss = Literal["dpo", "ipo", "orpo"]
LOSSES: tuple[PreferenceLoss, ...] = ("dpo", "ipo", "orpo")


@dataclass(frozen=True)
class PreferenceSettings:
    """Which loss, and how strong. Checked when it is made."""

    loss: PreferenceLoss = "dpo"
    beta: float = 0.1
    """dpo and ipo: how closely the model stays to the reference; orpo: weight of the odds beside the likelihood."""
    label_smoothing: float = 0.0
    """dpo: share of the pairs that are taken to be the wrong way round."""

    def __post_init__(self) -> None:
        one_of("method", self.loss, LOSSES)
        above("beta", self.beta, 0, example=0.1)
        within("label_smoothing", self.label_smoothing, 0, 0.5, high_open=True)
        if self.label_smoothing and self.loss != "dpo":
            raise UsageError(f"label_smoothing {self.label_smoothing:g} is of dpo, but the method is {self.loss}; leave it out")

    @property
    def needs_reference(self) -> bool:
        """Whether answers are compared with what the model thought of them before training."""
        return self.loss != "orpo"


class Preference:
    """The objective over :class:`PreferenceBatch`. Nothing is dropped out, so that the policy is what its reference was."""

    def __init__(
        self, settings: PreferenceSettings, *, reference: Callable[[], AbstractContextManager[None]] | None = None
    ) -> None:
        """:param reference: makes the model its own reference while inside, as
        :meth:`owngpt.finetune.adapter.lora.Lora.off` does;
        used for batches that bring no reference log-probabilities."""
        self.settings = settings
        self._reference = reference
        self._seen = 0
        self._sums: dict[str, float] = {}

    def count(self, batch: Batch) -> int:
        """Pairs."""
        return _checked(batch).pairs

    def loss(self, model: GPT, batch: Batch, scale: float) -> Tensor:
        """scale * sum of the pairs' losses, float32.

        :raises UsageError: the loss compares with a reference, and there is none.
        """
        batch = _checked(batch)
        with without_dropout(model):
            reference = self._reference_answers(model, batch) if self.settings.needs_reference else None
            policy = answers(model, batch)
        result = self._losses(policy, reference)
        self._note(policy, result)
        return scale * result.losses.sum()

    def metrics(self) -> dict[str, float]:
        """Means over the pairs since the last call: ``accuracy`` (share of pairs of which the chosen answer is rated better),
        ``margin`` (by how much), and the log-probability per token of the answers."""
        result = {name: total / self._seen for name, total in self._sums.items()}
        self._seen, self._sums = 0, {}
        return result

    def _losses(self, policy: Answers, reference: Answers | None) -> PairLosses:
        settings = self.settings
        if reference is None:
            return orpo_losses(policy, beta=settings.beta)
        if settings.loss == "ipo":
            return ipo_losses(policy, reference, beta=settings.beta)
        return dpo_losses(policy, reference, beta=settings.beta, label_smoothing=settings.label_smoothing)

    def _reference_answers(self, model: GPT, batch: PreferenceBatch) -> Answers:
        if batch.reference is not None:
            return Answers(batch.reference.to(model.embedding.weight.device), _lengths(batch, model.embedding.weight.device))
        if self._reference is None:
            raise UsageError(
                f"{self.settings.loss} compares with the model before training, but there are no reference log-probabilities; "
                "compute them first (finetune.reference), train an adapter, or use orpo, which needs none"
            )
        with torch.no_grad(), self._reference():
            return answers(model, batch)

    @torch.no_grad()
    def _note(self, policy: Answers, result: PairLosses) -> None:
        chosen, rejected = policy.means.sum(0).tolist()
        seen = {
            "accuracy": float((result.margins > 0).sum()),
            "margin": float(result.margins.sum()),
            "chosen_log_probability": chosen,
            "rejected_log_probability": rejected,
        }
        self._seen += len(result.margins)
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in seen.items()}


def answers(model: GPT, batch: PreferenceBatch) -> Answers:
    """How probable the model finds the answers of a batch, with gradient."""
    sums = sequence_log_probabilities(model, batch, batch.sequences, 2 * batch.pairs)
    return Answers(sums.view(-1, 2), _lengths(batch, sums.device))


@torch.no_grad()
def win_rate(model: GPT, batches: Iterable[PreferenceBatch]) -> float:
    """Share of pairs whose chosen answer the model finds more probable per token than the rejected one; ties count half.

    :raises UsageError: there is no pair.
    """
    won, pairs = 0.0, 0
    with without_dropout(model):
        for batch in batches:
            means = answers(model, batch).means
            difference = means[:, 0] - means[:, 1]
            won += float((difference > 0).sum()) + 0.5 * float((difference == 0).sum())
            pairs += batch.pairs
    if not pairs:
        raise UsageError("there are 0 pairs to compare; give at least 1 preference example")
    return won / pairs


def _lengths(batch: PreferenceBatch, device: torch.device) -> Tensor:
    """(P, 2) float32: learned tokens of each sequence."""
    sequences = batch.sequences[batch.targets >= 0].long()
    return torch.bincount(sequences, minlength=2 * batch.pairs).view(-1, 2).clamp(min=1).float().to(device)


def _checked(batch: Batch) -> PreferenceBatch:
    assert isinstance(batch, PreferenceBatch), "a preference is learned from pairs"
    return batch
