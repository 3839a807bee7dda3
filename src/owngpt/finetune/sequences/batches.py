"""Batches of examples: packed into rows, kept apart by a document mask, in an order that follows from the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from owngpt.data.batches import IGNORED_TARGET, Batch, Batches
from owngpt.data.dealing import Dealer, check_sizes
from owngpt.data.shards import TokenSplit
from owngpt.errors import ModelFolderError, UsageError
from owngpt.finetune.examples.example import Origin
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.packing import pack
from owngpt.finetune.sequences.store import ExampleStore
from owngpt.text.tokenizer import Tokenizer

MULTIPLE = 16
"""Rows are as long as their longest content, rounded up to this: what the kernels' tiles take at a time."""
GROUP = 16
"""Without packing: rows of nearly one length that stay together."""
WINDOW = 64
"""Groups that are sorted by length together."""
MILLION = 1_000_000


@dataclass(frozen=True)
class ReplaySource:
    """General text that is mixed in, so that the model does not forget it (rehearsal, Robins 1995)."""

    source: ExampleStore | TokenSplit
    share: float
    """Of the rows, 0 or more and below 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UsageError(f"replay {self.share} is not a share of the rows; give a number from 0 to below 1, such as 0.1")


class ExampleBatches(Dealer[Batch]):
    """An endless, resumable stream of training batches over one store.

    Every epoch shows each sequence once. Rows hold several sequences, which do not see each other (``starts``), or one each
    without packing.
    """

    DEALS = "examples"

    def __init__(
        self,
        store: ExampleStore,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        pack: bool = True,
        replay: ReplaySource | None = None,
        rank: int = 0,
        world_size: int = 1,
        padding_id: int = 0,
    ) -> None:
        """
        :param context_length: tokens of a row at most; no sequence may be longer.
        :param batch_size: rows of a batch.
        :param padding_id: what fills rows up; it is never a target and no token sees it.
        :raises UsageError: a size does not fit, or the rank is outside of the world.
        """
        super().__init__(context_length=context_length, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        check_fit(store, context_length)
        self.store, self.packed, self.padding_id = store, pack, padding_id
        self._rows = _Rows(store, context_length, seed, packed=pack)
        self.rows_per_epoch = self._rows.per_epoch
        self._replay = _Replay(replay, context_length, seed + 1, packed=pack) if replay is not None and replay.share else None

    def deal(self, numbers: range) -> Batch:
        """The rows with these numbers."""
        rows = [self._row(number) for number in numbers]
        return make_batch(rows, self.epoch, self.padding_id, packed=self.packed, context_length=self.context_length)

    @property
    def epoch(self) -> float:
        """Passes over the store handed out so far, over all ranks; replayed rows do not count."""
        return self._own_rows(self._handed_out) / self.rows_per_epoch

    @property
    def steps_per_epoch(self) -> float:
        """Batches of all ranks that make an epoch, replayed rows included."""
        share = self._replay.millionths / MILLION if self._replay else 0.0
        return self.rows_per_epoch / (1 - share) / (self.batch_size * self.world_size)

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold tokens, when rows have the full length."""
        return float(self._rows.inputs.sum()) / (self.rows_per_epoch * self.context_length)

    def facts(self) -> dict[str, int]:
        """The store's size and how its rows are made."""
        return {
            "sequences": len(self.store),
            "tokens": self.store.stats.tokens,
            "packed": int(self.packed),
            "rows_per_epoch": self.rows_per_epoch,
            "replay_tokens": self._replay.token_count if self._replay else 0,
            "replay_millionths": self._replay.millionths if self._replay else 0,
        }

    def _own_rows(self, number: int) -> int:
        """How many of the first ``number`` rows come from the store."""
        return number - (self._replay.rows_before(number) if self._replay else 0)

    def _row(self, number: int) -> list[Encoded]:
        """The sequences of the row with this number."""
        replayed = self._replay.row(number) if self._replay else None
        return self._rows.row(self._own_rows(number)) if replayed is None else replayed


def held_out_batches(
    store: ExampleStore,
    *,
    context_length: int,
    batch_size: int,
    pack: bool = True,
    max_tokens: int | None = None,
    padding_id: int = 0,
) -> list[Batch]:
    """Every sequence once, in rows as for training, in an order that never changes.

    :param max_tokens: about that many tokens at most: rows of a random choice of the sequences that is always the same.
    :raises UsageError: a size does not fit.
    """
    check_sizes(context_length, batch_size)
    check_fit(store, context_length)
    inputs = np.maximum(store.lengths - 1, 0)
    rows = _planned(inputs, context_length, np.random.Generator(np.random.PCG64([0, 0])), packed=pack)
    if max_tokens is not None:
        sizes = np.cumsum([int(inputs[row].sum()) for row in rows])
        rows = rows[: max(int(np.searchsorted(sizes, max_tokens, side="right")), 1)]
    batches = []
    for first in range(0, len(rows), batch_size):
        sequences = [[store.example(place) for place in row] for row in rows[first : first + batch_size]]
        batches.append(make_batch(sequences, 0.0, padding_id, packed=pack, context_length=context_length))
    return batches


def padding_of(tokenizer: Tokenizer) -> int | None:
    """What fills rows up; None where the vocabulary has neither padding nor an end of text, as GPT-1's: any token then does."""
    try:
        return tokenizer.padding_id
    except ModelFolderError:
        return None


def make_batch(
    rows: Sequence[Sequence[Encoded]], epoch: float, padding_id: int = 0, *, packed: bool = True,
    context_length: int | None = None,
) -> Batch:  # fmt: skip
    """Sequences side by side in rows, as long as the longest row needs.

    ``starts`` says where each token's sequence begins; without packing there is none, as a row is one sequence and what
    fills it up comes after it. The last token of a sequence is no input: nothing is predicted from it.

    :param context_length: of the model, which has no position for what would fill up rows beyond it.
    """
    longest = max((sum(max(len(sequence) - 1, 0) for sequence in row) for row in rows), default=0)
    time = max(-(-longest // MULTIPLE) * MULTIPLE, MULTIPLE)
    if not packed and context_length is not None:
        time = max(longest, min(time, context_length))
    inputs = np.full((len(rows), time), padding_id, dtype=np.int64)
    targets = np.full((len(rows), time), IGNORED_TARGET, dtype=np.int64)
    starts = np.zeros((len(rows), time), dtype=np.int32)
    for index, row in enumerate(rows):
        assert packed or len(row) == 1
        place = 0
        for sequence in row:
            stop = place + max(len(sequence) - 1, 0)
            inputs[index, place:stop] = sequence.token_ids[:-1]
            targets[index, place:stop] = np.where(sequence.learned[1:], sequence.token_ids[1:], IGNORED_TARGET)
            starts[index, place:stop] = place
            place = stop
        starts[index, place:] = place  # what fills up is a sequence of its own
    kept = torch.from_numpy(starts) if packed else None
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), kept, epoch)


def _planned(lengths: np.ndarray, capacity: int, generator: np.random.Generator, *, packed: bool) -> list[list[int]]:
    """Rows of indices in the order in which an epoch shows them."""
    shuffled = generator.permutation(len(lengths))
    if packed:
        rows = [[int(shuffled[place]) for place in row] for row in pack(lengths[shuffled], capacity)]
        return [rows[place] for place in generator.permutation(len(rows))]
    return [[place] for place in _grouped(lengths, shuffled, generator)]


def _grouped(lengths: np.ndarray, shuffled: np.ndarray, generator: np.random.Generator) -> list[int]:
    """The order without packing: neighbours have nearly one length, so that little is filled up; groups come in any order."""
    order: list[int] = []
    for first in range(0, len(shuffled), GROUP * WINDOW):
        window = shuffled[first : first + GROUP * WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        groups = [window[start : start + GROUP] for start in range(0, len(window), GROUP)]
        order += [int(place) for group in generator.permutation(len(groups)) for place in groups[group]]
    return order


class _Rows:
    """The rows of a store, epoch after epoch."""

    def __init__(self, store: ExampleStore, context_length: int, seed: int, *, packed: bool) -> None:
        self._store, self._context_length, self._seed, self._packed = store, context_length, seed, packed
        self.inputs = np.maximum(store.lengths - 1, 0)
        """(N,) places that each sequence takes: its last token is a target only."""
        self._plans: dict[int, list[list[int]]] = {}
        self.per_epoch = len(self._plan(0))

    def row(self, number: int) -> list[Encoded]:
        """The sequences of the row with this number, counted over all epochs."""
        epoch, index = divmod(number, self.per_epoch)
        return [self._store.example(place) for place in self._plan(epoch)[index]]

    def _plan(self, epoch: int) -> list[list[int]]:
        """Which sequences are in which row; a batch may reach from one epoch into the next, so two are kept."""
        if epoch not in self._plans:
            self._plans = {known: plan for known, plan in self._plans.items() if abs(known - epoch) == 1}
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._plans[epoch] = _planned(self.inputs, self._context_length, generator, packed=self._packed)
        return self._plans[epoch]


class _Replay:
    """Rows of general text, spread evenly between the others."""

    def __init__(self, replay: ReplaySource, context_length: int, seed: int, *, packed: bool) -> None:
        self.millionths = round(replay.share * MILLION)
        source = replay.source
        if isinstance(source, ExampleStore):
            check_fit(source, context_length)
            self.token_count = source.stats.tokens
            self._row: Callable[[int], list[Encoded]] = _Rows(source, context_length, seed, packed=packed).row
        else:
            self.token_count = source.token_count
            self._row = _Windows(source, context_length, seed).row

    def rows_before(self, number: int) -> int:
        """How many of the first ``number`` rows are replayed."""
        return number * self.millionths // MILLION

    def row(self, number: int) -> list[Encoded] | None:
        """What is replayed in the row with this number, if it is one of these."""
        before = self.rows_before(number)
        return self._row(before) if self.rows_before(number + 1) > before else None


class _Windows:
    """Rows cut from tokenized text; the documents in a row are sequences of their own."""

    def __init__(self, split: TokenSplit, context_length: int, seed: int) -> None:
        length = min(context_length, max(split.token_count - 1, 1))
        self._batches = Batches(split, context_length=length, batch_size=1, seed=seed)
        self._end_of_text = split.end_of_text_id

    def row(self, number: int) -> list[Encoded]:
        batch = self._batches.deal(range(number, number + 1))
        ids = np.append(batch.inputs[0].numpy(), batch.targets[0, -1].item())
        borders = [0, *(np.flatnonzero(ids[1:-1] == self._end_of_text) + 1).tolist(), len(ids) - 1]
        origin = Origin("general text", number)
        # An end of text ends one document and begins the next.
        return [Encoded(ids[a : b + 1], np.arange(b + 1 - a) > 0, origin) for a, b in pairwise(borders)]


def check_fit(store: ExampleStore, context_length: int) -> None:
    """:raises UsageError: a sequence is longer than a row."""
    longest = store.stats.longest
    if longest > context_length:
        raise UsageError(f"a sequence has {longest:,} tokens, more than the context of {context_length:,}; use {longest}")
