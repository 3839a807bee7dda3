"""The model's hidden states where something is learned, and only there: masked tokens cost no product with the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from owngpt.data.batches import Batch
from owngpt.kernels.log_probabilities import linear_log_probabilities
from owngpt.model.attention import CausalContext, PackedContext
from owngpt.model.gpt import GPT


@dataclass(frozen=True)
class LearnedTokens:
    """The N places of a batch that have a target, row by row."""

    hidden: Tensor
    """(N, C) after the final norm, with gradient"""
    targets: Tensor
    """(N,) int64"""
    places: Tensor
    """(N,) int64: into the flattened (B * T,) batch"""


def learned_tokens(model: GPT, batch: Batch) -> LearnedTokens:
    """Run the model over a batch (B, T) and take what predicts a target."""
    device = model.embedding.weight.device
    dropout = model.config.attention_dropout if model.training else 0.0
    context = CausalContext(None, dropout) if batch.starts is None else PackedContext(batch.starts.to(device), dropout)
    hidden = model(batch.inputs.to(device), context).flatten(0, 1)
    targets = batch.targets.flatten()
    places = (targets >= 0).nonzero().flatten()
    if len(places) < len(targets):
        hidden = hidden.index_select(0, places.to(device))
    return LearnedTokens(hidden, targets[places].to(device), places.to(device))


def sequence_log_probabilities(model: GPT, batch: Batch, sequences: Tensor, count: int) -> Tensor:
    """(count,) float32, with gradient: log-probability of each sequence's learned tokens together, in nats.

    :param sequences: (B, T) int32, the number of each token's sequence, from 0.
    """
    learned = learned_tokens(model, batch)
    hidden, weight = model.head_factors(learned.hidden)
    values = linear_log_probabilities(hidden, weight, learned.targets)
    owners = sequences.to(values.device).flatten()[learned.places]
    # A sum for each sequence in a fixed order, where adding at indices would have none on a GPU.
    belongs = owners[None] == torch.arange(count, device=values.device)[:, None]
    return torch.where(belongs, values[None], 0.0).sum(1)


@contextmanager
def without_dropout(model: GPT) -> Iterator[None]:
    """Inside, nothing is dropped, as when the model serves; gradients are made as ever."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
