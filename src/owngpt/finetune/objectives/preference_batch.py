"""A batch of pairs of answers, of which one is better."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from owngpt.data.batches import Batch


@dataclass(frozen=True)
class PreferenceBatch(Batch):
    """P pairs. Their 2P sequences lie in the rows, several in one where they are packed; an answer's tokens have targets."""

    sequences: Tensor
    """(B, T) int32: which sequence a token is of, 2i the chosen and 2i + 1 the rejected one of pair i; -1 for padding"""
    pairs: int
    """P"""
    reference: Tensor | None = None
    """(P, 2) float32: log-probability of the chosen and of the rejected answer before training, or None where not known"""
