"""Batches of pairs from a store in which chosen and rejected answers lie side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from owngpt.errors import DataError
from owngpt.finetune.objectives.preference_batch import PreferenceBatch
from owngpt.finetune.objectives.unit_batches import UnitBatches, laid_out
from owngpt.finetune.sequences.batches import make_batch
from owngpt.finetune.sequences.store import ExampleStore


class PreferenceBatches(UnitBatches):
    """``batch_size`` pairs at a time; their sequences are packed into rows, or have a row each."""

    def __init__(
        self, store: ExampleStore, *, context_length: int, batch_size: int, seed: int = 0, pack: bool = True,
        reference: Tensor | None = None, rank: int = 0, world_size: int = 1, padding_id: int = 0,
    ) -> None:  # fmt: skip
        """
        :param store: of preferences: sequences 2i and 2i + 1 are the chosen and the rejected answer of pair i.
        :param reference: (pairs, 2) float32 of :func:`owngpt.finetune.objectives.reference.reference_log_probabilities`.
        :raises UsageError: a size does not fit, or the rank is outside of the world.
        :raises DataError: the store holds no pairs, or others than the reference.
        """
        if not store.pairs:
            raise DataError(f"{store.folder} holds examples without a rejected answer; give preferences, or use the method sft")
        super().__init__(
            store, len(store) // 2, context_length=context_length, batch_size=batch_size, seed=seed, pack=pack, rank=rank,
            world_size=world_size, padding_id=padding_id,
        )  # fmt: skip
        if reference is not None and tuple(reference.shape) != (self.units, 2):
            raise DataError(f"the reference is of {len(reference)} pairs, {store.folder} holds {self.units}; compute it again")
        self.reference = reference

    def batch_of(self, units: Sequence[int], epoch: float) -> PreferenceBatch:
        """The pairs with these indices."""
        sequences = [self.store.example(2 * unit + side) for unit in units for side in (0, 1)]
        rows = laid_out(sequences, self.context_length, packed=self.packed)
        laid = [[sequences[index] for index in row] for row in rows]
        batch = make_batch(laid, epoch, self.padding_id, packed=self.packed, context_length=self.context_length)
        owners = np.full(tuple(batch.inputs.shape), -1, dtype=np.int32)
        for owner, row in zip(owners, rows, strict=True):
            place = 0
            for index in row:
                stop = place + max(len(sequences[index]) - 1, 0)
                owner[place:stop] = index
                place = stop
        reference = None if self.reference is None else self.reference[list(units)]
        return PreferenceBatch(batch.inputs, batch.targets, batch.starts, epoch, torch.from_numpy(owners), len(units), reference)


def held_out_pairs(
    store: ExampleStore, *, context_length: int, batch_size: int, pack: bool = True, reference: Tensor | None = None,
    padding_id: int = 0,
) -> list[PreferenceBatch]:  # fmt: skip
    """Every pair once, in the store's order.

    :raises UsageError: a size does not fit.
    :raises DataError: the store holds no pairs.
    """
    batches = PreferenceBatches(
        store, context_length=context_length, batch_size=batch_size, pack=pack, reference=reference, padding_id=padding_id
    )
    return [batch for batch in batches.in_order() if isinstance(batch, PreferenceBatch)]
