"""Batches of whatever belongs together (the two answers of a pair, a text with its class) in an order that the seed decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from owngpt.data.batches import Batch
from owngpt.errors import CheckpointError, DataError, UsageError
from owngpt.finetune.encoded import Encoded
from owngpt.finetune.packing import pack
from owngpt.finetune.store import ExampleStore


class UnitBatches(ABC):
    """An endless, resumable stream over the units of a store; for the trainer as good as :class:`owngpt.data.batches.Batches`.

    Every epoch shows each unit once. The position is one integer, how many units were handed out, and does not depend on the
    batch size. With several processes, each rank takes its own share of every global batch.
    """

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
        check_sizes(context_length, batch_size, store.stats.longest)
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} is outside of a world of {world_size}; ranks run from 0 to {world_size - 1}")
        if not units:
            raise DataError(f"{store.folder} holds 0 examples of the kind that this method learns from; give at least 1")
        self.store, self.units, self.context_length, self.batch_size, self.seed = store, units, context_length, batch_size, seed
        self.packed, self.rank, self.world_size, self.padding_id = pack, rank, world_size, padding_id
        self._handed_out = 0
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    @abstractmethod
    def batch_of(self, units: Sequence[int], epoch: float) -> Batch:
        """The batch of these units."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.next()

    def next(self) -> Batch:
        """The next batch of this rank; never ends."""
        first = self._handed_out + self.rank * self.batch_size
        chosen = [self._unit(number) for number in range(first, first + self.batch_size)]
        self._handed_out += self.batch_size * self.world_size
        return self.batch_of(chosen, self.epoch)

    @property
    def epoch(self) -> float:
        """Passes over the units handed out so far, over all ranks."""
        return self._handed_out / self.units

    @property
    def steps_per_epoch(self) -> float:
        """Batches of all ranks that make an epoch."""
        return self.units / (self.batch_size * self.world_size)

    def state_dict(self) -> dict[str, int]:
        """The position, and what it is a position in; integers only."""
        return {
            "handed_out": self._handed_out,
            "seed": self.seed,
            "context_length": self.context_length,
            "units": self.units,
            "tokens": self.store.stats.tokens,
            "packed": int(self.packed),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` was taken. Batch size and world size may differ.

        :raises CheckpointError: the state belongs to other examples or settings.
        """
        for name, mine in self.state_dict().items():
            if name not in state:
                raise CheckpointError(f"the saved data position lacks {name!r}; start again without --resume")
            if name != "handed_out" and int(state[name]) != mine:
                raise CheckpointError(
                    f"the saved data position is for {name} {state[name]}, this run has {mine}; "
                    "resume with the same examples and settings, or start a new run"
                )
        self._handed_out = int(state["handed_out"])

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


def check_sizes(context_length: int, batch_size: int, longest: int) -> None:
    """:raises UsageError: the longest sequence does not fit into a row, or a batch is empty."""
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} is not positive; use 1 or more")
    if context_length < longest:
        raise UsageError(f"context length {context_length} is less than the longest example of {longest} tokens; use {longest}")
