"""Batches of texts with their classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from owngpt.data.batches import Batch
from owngpt.errors import DataError
from owngpt.finetune.objectives.unit_batches import UnitBatches, laid_out
from owngpt.finetune.sequences.batches import make_batch
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.store import ExampleStore


class ClassBatches(UnitBatches):
    """``batch_size`` texts at a time, packed into rows, or a row each. The target at a text's last token is its class."""

    def __init__(
        self, store: ExampleStore, *, context_length: int, batch_size: int, seed: int = 0, pack: bool = True, rank: int = 0,
        world_size: int = 1, padding_id: int | None = 0,
    ) -> None:  # fmt: skip
        """
        :param store: of texts that all have a class.
        :param padding_id: no text ends with it: what transformers takes for padding is not read. None: there is none.
        :raises UsageError: a size does not fit, or the rank is outside of the world.
        :raises DataError: a text has no class.
        """
        unlabelled = np.flatnonzero(store.labels < 0)
        if len(unlabelled):
            raise DataError(f"{store.example(int(unlabelled[0])).origin}: there is no label; give rows of text and label")
        super().__init__(
            store, len(store), context_length=context_length, batch_size=batch_size, seed=seed, pack=pack, rank=rank,
            world_size=world_size, padding_id=padding_id or 0,
        )  # fmt: skip
        self._ending = padding_id

    def batch_of(self, units: Sequence[int], epoch: float) -> Batch:
        """The texts with these indices."""
        texts = [self.store.example(unit) for unit in units]
        return text_batch(texts, self.context_length, epoch=epoch, packed=self.packed, padding_id=self._ending)


def held_out_texts(
    store: ExampleStore, *, context_length: int, batch_size: int, pack: bool = True, padding_id: int | None = 0
) -> list[Batch]:
    """Every text once, in the store's order.

    :raises UsageError: a size does not fit.
    :raises DataError: a text has no class.
    """
    batches = ClassBatches(store, context_length=context_length, batch_size=batch_size, pack=pack, padding_id=padding_id)
    return batches.in_order()


def text_batch(
    texts: Iterable[Encoded], context_length: int, *, epoch: float = 0.0, packed: bool = True, padding_id: int | None = 0
) -> Batch:
    """Texts of at most ``context_length`` tokens as one batch; rows hold the texts in any order when packed."""
    sequences = [_with_class(text, padding_id) for text in texts]
    rows = laid_out(sequences, context_length, packed=packed)
    laid = [[sequences[index] for index in row] for row in rows]
    return make_batch(laid, epoch, padding_id or 0, packed=packed, context_length=context_length)


def _with_class(text: Encoded, padding_id: int | None) -> Encoded:
    """The text's class put behind its tokens, as the one thing that is learned: it becomes the last token's target."""
    ids = text.token_ids
    if padding_id is not None:
        content = np.flatnonzero(ids != padding_id)
        ids = ids[: int(content[-1]) + 1] if len(content) else ids[:1]
    return Encoded(np.append(ids, text.label), np.arange(len(ids) + 1) == len(ids), text.origin, text.label)
