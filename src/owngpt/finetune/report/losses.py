"""How well a network predicts what it is to predict, sequence by sequence."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from owngpt.evaluate.windows import IGNORED, Window, batches
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.kernels.log_probabilities import linear_log_probabilities
from owngpt.model.gpt import GPT

BATCH_TOKENS = 1024
"""Of one pass: many enough for matrix units, few enough to stop in time."""
ALIKE = 64
"""Windows that are sorted by length before they are laid side by side: padding costs as much as text."""


@dataclass(frozen=True)
class SequenceLoss:
    """What one held-out sequence costs."""

    index: int
    """Its place in the store."""
    nats: float
    """Sum of -ln P over its targets."""
    targets: int


def window_of(encoded: Encoded) -> Window:
    """A sequence as the model sees it: only what is learned counts."""
    targets = [int(token) if learned else IGNORED for token, learned in zip(encoded.token_ids, encoded.learned, strict=True)]
    return Window([int(token) for token in encoded.token_ids[:-1]], targets[1:], 0)


def window_nats(network: GPT, windows: Sequence[Window], deadline: float | None) -> Iterator[tuple[int, float]]:
    """Sum of -ln P over each window's targets, as (index, nats); nearly in order.

    What is not begun when ``time.monotonic()`` passes the deadline is left out; the first batch never is.
    """
    # Where a token's rotation depends on its text's length, no other text may lie beside it.
    size = 1 if network.config.turns_by_length else BATCH_TOKENS
    for first in range(0, len(windows), ALIKE):
        group = range(first, min(first + ALIKE, len(windows)))
        order = sorted(group, key=lambda index: len(windows[index].inputs))
        place = iter(order)
        for inputs, targets in batches((windows[index] for index in order), size):
            for nats in _row_nats(network, inputs, targets):
                yield next(place), nats
            if deadline is not None and time.monotonic() >= deadline:
                return


@torch.no_grad()
def _row_nats(network: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """(B, T) each → the sum of each row's losses, in float64; places without a target are not multiplied with the vocabulary."""
    device = network.embedding.weight.device
    inputs, targets = inputs.to(device), targets.to(device)
    scored = targets != IGNORED
    hidden, weight = network.head_factors(network(inputs)[scored])
    losses = -linear_log_probabilities(hidden, weight, targets[scored]).double().cpu()
    sums = torch.zeros(len(inputs), dtype=torch.float64)
    sums.index_add_(0, scored.nonzero()[:, 0].cpu(), losses)
    return [float(value) for value in sums]
