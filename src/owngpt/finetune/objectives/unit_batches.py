"""Batches of whatever belongs together (the two answers of a pair, a text with its class) in an order that the seed decides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from owngpt.data.batches import Batch
from owngpt.data.dealing import Dealer
from owngpt.errors import DataError
from owngpt.finetune.sequences.batches import check_fit
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.packing import pack
from owngpt.finetune.sequences.store import ExampleStore


class UnitBatches(Dealer[Batch]):
    """An endless, resumable stream over the units of a store: every epoch shows each unit once."""

    DEALS = "examples"

    def __init__(
        self, store: ExampleStore, units: int, *, context_length: int, batch_size: int, seed: int, pack: bool = True,
        rank: int = 0, world_size: int = 1, padding_id: int = 0,
    ) -> None:  # fmt: skip
        """
        :param units: how many there are.
        :param context_length: tokens of a row at most; no sequence may be longer.
        :param batch_size: units of a batch.
        :param pack: several sequences may lie in a row, apart from each other.
        :raises UsageError: a size does not fit, or the rank is outside of the world.
        :raises DataError: there is no unit.
        """
        super().__init__(context_length=context_length, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        check_fit(store, context_length)
        if not units:
            raise DataError(f"{store.folder} holds 0 examples of the kind that this method learns from; give at least 1")
        self.store, self.units, self.packed, self.padding_id = store, units, pack, padding_id
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    @abstractmethod
    def batch_of(self, units: Sequence[int], epoch: float) -> Batch:
        """The batch of these units."""

    def deal(self, numbers: range) -> Batch:
        """The units with these numbers."""
        return self.batch_of([self._unit(number) for number in numbers], self.epoch)

    @property
    def epoch(self) -> float:
        """Passes over the units handed out so far, over all ranks."""
        return self._handed_out / self.units

    @property
    def steps_per_epoch(self) -> float:
        """Batches of all ranks that make an epoch."""
        return self.units / (self.batch_size * self.world_size)

    def facts(self) -> dict[str, int]:
        """The store's size and how its batches are made."""
        return {"units": self.units, "tokens": self.store.stats.tokens, "packed": int(self.packed)}

    def in_order(self) -> list[Batch]:
        """Every unit once, in the store's order; the last batch may be smaller."""
        firsts = range(0, self.units, self.batch_size)
        return [self.batch_of(range(first, min(first + self.batch_size, self.units)), 0.0) for first in firsts]

    def _unit(self, number: int) -> int:
        epoch, index = divmod(number, self.units)
        if epoch != self._epoch:
            self._order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.units)
            self._epoch = epoch
        return int(self._order[index])


def laid_out(sequences: Sequence[Encoded], context_length: int, *, packed: bool) -> list[list[int]]:
    """Which sequences share a row: indices, in the order in which they lie in it."""
    if not packed:
        return [[index] for index in range(len(sequences))]
    return pack(np.array([max(len(sequence) - 1, 0) for sequence in sequences]), context_length)
