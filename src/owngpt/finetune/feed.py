"""The batches of a run, of whatever kind its method learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from owngpt.config.finetuning import PREFERENCE_METHODS
from owngpt.data.batches import Batch
from owngpt.finetune.batches import ExampleBatches, ReplaySource, held_out_batches
from owngpt.finetune.material import Material
from owngpt.finetune.plan import Shape
from owngpt.finetune.store import ExampleStore
from owngpt.finetune.trainee import Trainee

VALIDATION_TOKENS = 65_536
"""Held-out tokens looked at during the run, at most."""
PROBE_ROWS = 2


class Feed:
    """Deals out the examples of one run."""

    def __init__(self, material: Material, seed: int, *, folder: Path | None = None, replay: ReplaySource | None = None) -> None:
        """:param folder: keeps what is computed once, such as what the base thinks of preferences."""
        self._material, self._seed, self._folder, self._replay = material, seed % 2**32, folder, replay
        self._padding = material.tokenizer.padding_id or 0

    @property
    def examples(self) -> int:
        """To learn from: sequences, or pairs."""
        return len(self._material.train) // (2 if self._material.method in PREFERENCE_METHODS else 1)

    def batches(self, shape: Shape, trainee: Trainee | None = None) -> ExampleBatches:
        """An endless, resumable stream."""
        return ExampleBatches(
            self._material.train, context_length=shape.context_length, batch_size=shape.batch_size, seed=self._seed,
            pack=shape.pack, replay=self._replay, padding_id=self._padding,
        )  # fmt: skip

    def held_out(self, shape: Shape, trainee: Trainee | None = None) -> list[Batch]:
        """What is looked at during the run."""
        store = self._material.held_out
        if not isinstance(store, ExampleStore):
            return []
        context = max(shape.context_length, store.stats.longest)
        return held_out_batches(
            store, context_length=context, batch_size=shape.batch_size, pack=shape.pack, max_tokens=VALIDATION_TOKENS,
            padding_id=self._padding,
        )  # fmt: skip

    def first(self, context_length: int) -> Sequence[Batch]:
        """A few batches as training will see them, for timing."""
        context = min(context_length, max(512, self._material.train.stats.longest))
        stream = self.batches(Shape(context, PROBE_ROWS, 1, self._material.method == "sft"))
        return [stream.next() for _ in range(2)]
