"""The batches of a run, of whatever kind its method learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from owngpt.config.finetuning import PREFERENCE_METHODS
from owngpt.data.batches import Batch, BatchStream
from owngpt.finetune.material import Material
from owngpt.finetune.objectives.class_batches import ClassBatches, held_out_texts
from owngpt.finetune.objectives.preference_batches import PreferenceBatches, held_out_pairs
from owngpt.finetune.objectives.reference import kept_reference, reference_log_probabilities
from owngpt.finetune.plan import Shape
from owngpt.finetune.sequences.batches import ExampleBatches, ReplaySource, held_out_batches, padding_of
from owngpt.finetune.sequences.store import ExampleStore
from owngpt.model.gpt import GPT

VALIDATION_TOKENS = 65_536
"""Held-out tokens looked at during the run, at most."""
PROBE_ROWS = 2


@dataclass(frozen=True)
class References:
    """What the base thinks of the answers that a preference compares, before it is trained: (pairs, 2) each."""

    train: Tensor
    held_out: Tensor | None


class Feed:
    """Deals out the examples of one run."""

    def __init__(self, material: Material, seed: int, *, replay: ReplaySource | None = None) -> None:
        self._material, self._seed, self._replay = material, seed % 2**32, replay
        self._padding = padding_of(material.tokenizer)
        self._prefers = material.method in PREFERENCE_METHODS

    @property
    def examples(self) -> int:
        """To learn from: sequences, pairs or texts."""
        return len(self._material.train) // (2 if self._prefers else 1)

    def batches(self, shape: Shape, references: References | None = None) -> BatchStream:
        """An endless, resumable stream."""
        store, sizes = self._material.train, self._sizes(shape, self._material.train)
        if self._prefers:
            return PreferenceBatches(store, seed=self._seed, reference=references.train if references else None, **sizes)
        if self._material.method == "classify":
            return ClassBatches(store, seed=self._seed, **sizes)
        return ExampleBatches(store, seed=self._seed, replay=self._replay, **sizes)

    def steps_per_epoch(self, shape: Shape) -> float:
        """Steps of this shape that one pass over the examples takes, general text left out."""
        if self._prefers or self._material.method == "classify":
            passes = self.examples / shape.batch_size
        else:
            passes = ExampleBatches(
                self._material.train, seed=self._seed, **self._sizes(shape, self._material.train)
            ).steps_per_epoch
        return passes / shape.accumulation

    def held_out(self, shape: Shape, references: References | None = None) -> Sequence[Batch]:
        """What is looked at during the run."""
        store = self._material.held_out
        if not isinstance(store, ExampleStore):
            return []
        sizes = self._sizes(shape, store)
        if self._prefers:
            return held_out_pairs(store, reference=references.held_out if references else None, **sizes)
        if self._material.method == "classify":
            return held_out_texts(store, **sizes)
        return held_out_batches(store, max_tokens=VALIDATION_TOKENS, **sizes)

    def first(self, shape: Shape) -> list[Batch]:
        """A few batches as training will see them, for timing."""
        stream = self.batches(shape)
        return [stream.next() for _ in range(2)]

    def references(self, network: GPT, shape: Shape, folder: Path, identity: str) -> References:
        """What ``folder`` keeps of an interrupted run, or what this network, which is not trained yet, thinks.

        :param identity: of the network.
        """
        train, held_out = self._material.train, self._material.held_out
        scored = self._reference(network, held_out, shape, folder / "reference-held-out.safetensors", identity)
        of_train = self._reference(network, train, shape, folder / "reference.safetensors", identity)
        assert of_train is not None
        return References(of_train, scored)

    def _reference(self, network: GPT, store: object, shape: Shape, file: Path, identity: str) -> Tensor | None:
        if not isinstance(store, ExampleStore):
            return None

        def compute() -> Tensor:
            pairs = held_out_pairs(store, **self._sizes(shape, store))
            return reference_log_probabilities(network, pairs, len(store) // 2)

        return kept_reference(file, f"{identity} {store.fingerprint}", compute)

    def _sizes(self, shape: Shape, store: ExampleStore) -> dict[str, Any]:
        context = max(shape.context_length, store.stats.longest)
        padding = self._padding if self._material.method == "classify" else self._padding or 0
        return {"context_length": context, "batch_size": shape.batch_size, "pack": shape.pack, "padding_id": padding}
