"""How well a network predicts what it is to predict, sequence by sequence."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from owngpt.evaluate.bits import BATCH_TOKENS, LOGIT_BYTES
from owngpt.evaluate.windows import IGNORED, Window, batches
from owngpt.finetune.encoded import Encoded
from owngpt.model.gpt import GPT

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
    """Sum of -ln P over each window's targets, as (index, nats), in no order within groups of :data:`ALIKE`.

    Windows of later groups are left out once ``time.monotonic()`` has passed the deadline; the first group never is.
    """
    # Where a token's rotation depends on its text's length, no other text may lie beside it.
    size = 1 if network.config.turns_by_length else BATCH_TOKENS
    for first in range(0, len(windows), ALIKE):
        if first and deadline is not None and time.monotonic() >= deadline:
            return
        group = range(first, min(first + ALIKE, len(windows)))
        order = sorted(group, key=lambda index: len(windows[index].inputs))
        place = iter(order)
        for inputs, targets in batches((windows[index] for index in order), size):
            for nats in _row_nats(network, inputs, targets):
                yield next(place), nats


@torch.no_grad()
def _row_nats(network: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """(B, T) each → the sum of each row's losses, in float64; logits of positions that do not count are not computed."""
    device = network.embedding.weight.device
    inputs, targets = inputs.to(device), targets.to(device)
    scored = targets != IGNORED
    hidden, wanted, rows = network(inputs)[scored], targets[scored], scored.nonzero()[:, 0].cpu()
    sums = torch.zeros(len(inputs), dtype=torch.float64)
    step = max(1, LOGIT_BYTES // (4 * network.config.vocab_size))
    for start in range(0, len(wanted), step):
        logits = network.head(hidden[start : start + step])
        losses = cross_entropy(logits, wanted[start : start + step], reduction="none")
        sums.index_add_(0, rows[start : start + step], losses.double().cpu())
    return [float(value) for value in sums]
