"""How rows are dealt out: without end, the same to every run of one seed, and from any place on.

The whole position is one integer, how many rows were handed out to all ranks, so that a resumed run sees the very same batches,
whatever its batch size and number of ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

from owngpt.errors import CheckpointError, UsageError

Dealt = TypeVar("Dealt")


class Dealer(ABC, Generic[Dealt]):
    """An endless, resumable stream of batches. With several processes, each rank takes its own share of every global batch."""

    DEALS = "text"
    """What is dealt out, for messages."""

    def __init__(self, *, context_length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """:raises UsageError: a size is not positive, or the rank is outside of the world."""
        check_sizes(context_length, batch_size)
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} is outside of a world of {world_size}; ranks run from 0 to {world_size - 1}")
        self.context_length, self.batch_size, self.seed = context_length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._handed_out = 0

    @abstractmethod
    def deal(self, numbers: range) -> Dealt:
        """The batch of the rows with these numbers, which are counted over all epochs."""

    @property
    @abstractmethod
    def epoch(self) -> float:
        """Passes over everything handed out so far, over all ranks."""

    @abstractmethod
    def facts(self) -> dict[str, int]:
        """What a position is one in: whatever else must be the same when it is come back to."""

    def __iter__(self) -> Iterator[Dealt]:
        return self

    def __next__(self) -> Dealt:
        return self.next()

    def next(self) -> Dealt:
        """The next batch of this rank; never ends."""
        first = self._handed_out + self.rank * self.batch_size
        self._handed_out += self.batch_size * self.world_size
        return self.deal(range(first, first + self.batch_size))

    def state_dict(self) -> dict[str, int]:
        """The position, and what it is a position in; integers only."""
        own = {"seed": self.seed, "context_length": self.context_length}
        return {"handed_out": self._handed_out, **own, **self.facts()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` was taken. Batch size and world size may differ.

        :raises CheckpointError: the state belongs to something else.
        """
        for name, mine in self.state_dict().items():
            if name not in state:
                raise CheckpointError(f"the saved data position lacks {name!r}; start again without --resume")
            if name != "handed_out" and int(state[name]) != mine:
                raise CheckpointError(
                    f"the saved data position is for {name} {state[name]}, this run has {mine}; "
                    f"resume with the same {self.DEALS} and settings, or start a new run"
                )
        self._handed_out = int(state["handed_out"])


def check_sizes(context_length: int, batch_size: int) -> None:
    """:raises UsageError: one is not positive."""
    for name, value in (("context length", context_length), ("batch size", batch_size)):
        if value < 1:
            raise UsageError(f"{name} {value} is not positive; use 1 or more")
