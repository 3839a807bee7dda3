"""Batches for training and validation, cut straight from the token shards.

The training stream is read as a ring of tokens (end-of-text, document, end-of-text, document, …). Every epoch lays
windows of one context length side by side on the ring, from an offset of its own, and visits them in an order of its
own. Offset and order follow from the seed and the epoch's number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from owngpt.data.dealing import Dealer, check_sizes
from owngpt.data.shards import TokenSplit
from owngpt.errors import DataError

IGNORED_TARGET = -100


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    inputs: torch.Tensor
    """(B, T) int64 token ids."""
    targets: torch.Tensor
    """(B, T) int64: the token after each input, or -100 where there is nothing to predict."""
    starts: torch.Tensor | None
    """(B, T) int32: where in the row the document of each token begins, or none for plain causal attention."""
    epoch: float
    """Passes over the training text completed once this batch is trained on (0 for validation)."""


class BatchStream(Protocol):
    """What a trainer asks of batches: one after another without end, and a position to come back to."""

    @property
    def epoch(self) -> float:
        """Passes over what is learned from, handed out so far."""
        ...

    def next(self) -> Batch:
        """The next one."""
        ...

    def state_dict(self) -> dict[str, int]:
        """The position, as plain integers."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` was taken."""
        ...


class Batches(Dealer[Batch]):
    """An endless, resumable stream of training batches over one :class:`TokenSplit`.

    Within an epoch no token is a target twice, and fewer than `context_length` tokens (at a place that changes from
    epoch to epoch) are left out.

    Raises:
        DataError: the split holds fewer tokens than one context.
        UsageError: a size is not positive, or the rank is outside of the world.
    """

    def __init__(
        self,
        split: TokenSplit,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        document_mask: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(context_length=context_length, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        if split.token_count < context_length + 1:
            raise DataError(
                f"the text has {split.token_count} tokens, fewer than one context of {context_length} and the token after it; "
                f"use a context length of at most {max(split.token_count - 1, 1)} or give more text"
            )
        self.split = split
        self.document_mask = document_mask
        # The last end-of-text token equals the first one: dropping it closes the ring.
        self._ring_length = split.token_count - 1
        self.windows_per_epoch = self._ring_length // context_length
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._offset = 0

    def deal(self, numbers: range) -> Batch:
        """The windows with these numbers."""
        rows = np.stack([self._window(number) for number in numbers])
        return _make_batch(rows, self.split.end_of_text_id if self.document_mask else None, self.epoch)

    @property
    def epoch(self) -> float:
        """Passes over the text handed out so far, over all ranks."""
        return self._handed_out / self.windows_per_epoch

    def facts(self) -> dict[str, int]:
        """How much text there is."""
        return {"token_count": self.split.token_count}

    def _window(self, number: int) -> np.ndarray:
        """Tokens (context_length + 1,) of the window with this number, counted over all epochs."""
        epoch, index = divmod(number, self.windows_per_epoch)
        if epoch != self._epoch:
            self._plan_epoch(epoch)
        start = (self._offset + int(self._order[index]) * self.context_length) % self._ring_length
        return self._ring_slice(start, self.context_length + 1)

    def _plan_epoch(self, epoch: int) -> None:
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        self._offset = int(generator.integers(self._ring_length))
        self._order = generator.permutation(self.windows_per_epoch)
        self._epoch = epoch

    def _ring_slice(self, start: int, length: int) -> np.ndarray:
        stop = start + length
        if stop <= self._ring_length:
            return self.split.slice(start, stop)
        head = self.split.slice(start, self._ring_length)
        return np.concatenate([head, self.split.slice(0, stop - self._ring_length)])


def validation_batches(
    split: TokenSplit,
    *,
    context_length: int,
    batch_size: int,
    document_mask: bool = False,
    max_tokens: int | None = None,
) -> list[Batch]:
    """The held-out tokens once, in order, in windows of one context; the last window is padded with -100 targets.

    Every token but the first is a target once. With `max_tokens`, that many windows' worth of targets are taken, spread
    evenly over the split. Empty when there are fewer than two tokens. Score in bits per byte with
    `split.byte_count / split.token_count` bytes a token.
    """
    check_sizes(context_length, batch_size)
    starts = list(range(0, max(split.token_count - 1, 0), context_length))
    if max_tokens is not None and len(starts) * context_length > max_tokens:
        wanted = max(max_tokens // context_length, 1)
        starts = [starts[index * len(starts) // wanted] for index in range(wanted)]
    batches = []
    for first in range(0, len(starts), batch_size):
        rows = np.full((len(starts[first : first + batch_size]), context_length + 1), -1, dtype=np.int64)
        for row, start in zip(rows, starts[first : first + batch_size], strict=True):
            tokens = split.slice(start, min(start + context_length + 1, split.token_count))
            row[: len(tokens)] = tokens
        batches.append(_make_batch(rows, split.end_of_text_id if document_mask else None, 0.0, split.end_of_text_id))
    return batches


def _make_batch(rows: np.ndarray, document_start: int | None, epoch: float, filler: int = 0) -> Batch:
    """Inputs, targets and document starts of `rows` (B, T + 1), in which -1 marks padding."""
    rows = rows.astype(np.int64)
    inputs = np.where(rows[:, :-1] < 0, filler, rows[:, :-1])
    targets = np.where(rows[:, 1:] < 0, IGNORED_TARGET, rows[:, 1:])
    starts = None
    if document_start is not None:
        positions = np.arange(inputs.shape[1], dtype=np.int32)
        begins = np.where(inputs == document_start, positions, np.int32(0))
        starts = torch.from_numpy(np.maximum.accumulate(begins, axis=1))
    return Batch(torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(targets), starts, epoch)
