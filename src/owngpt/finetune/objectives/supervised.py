"""Supervised fine-tuning: the next token, where it is learned."""

from __future__ import annotations

from torch import Tensor

from owngpt.data.batches import Batch
from owngpt.finetune.objectives.learned_tokens import learned_tokens
from owngpt.kernels.loss import linear_cross_entropy
from owngpt.model.gpt import GPT


class Supervised:
    """Cross-entropy of the tokens that are learned; equal to :class:`owngpt.train.step.NextToken`, which also multiplies the
    masked ones with the vocabulary."""

    def count(self, batch: Batch) -> int:
        """Learned tokens."""
        return int((batch.targets >= 0).sum())

    def loss(self, model: GPT, batch: Batch, scale: float) -> Tensor:
        """scale * sum of the cross-entropies, nats, float32."""
        learned = learned_tokens(model, batch)
        if not len(learned.targets):
            return learned.hidden.sum().float()  # of nothing: zero, and so is its gradient
        hidden, weight = model.head_factors(learned.hidden)
        return linear_cross_entropy(hidden, weight, learned.targets, scale=scale)

    def metrics(self) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}
