"""Batches in a file, so that all sides learn from the same ones in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """One batch, padded on the right."""

    inputs: np.ndarray
    """(B, T) int64 token ids."""
    targets: np.ndarray
    """(B, T) int64: the token after each, or -100 where nothing is learned."""

    @classmethod
    def of(cls, sequences: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> Rows:
        """From (token ids, which of them are learned), cut to nothing and padded with id 0 to the longest."""
        length = max(len(ids) for ids, _ in sequences) - 1
        inputs = np.zeros((len(sequences), length), dtype=np.int64)
        targets = np.full((len(sequences), length), IGNORED, dtype=np.int64)
        for row, (ids, learned) in enumerate(sequences):
            inputs[row, : len(ids) - 1] = ids[:-1]
            targets[row, : len(ids) - 1] = np.where(learned[1:], ids[1:], IGNORED)
        return cls(inputs, targets)

    @staticmethod
    def write(path: Path, batches: Iterable[Rows]) -> None:
        """A .npz of all of them."""
        arrays = {}
        for index, batch in enumerate(batches):
            arrays |= {f"inputs{index}": batch.inputs, f"targets{index}": batch.targets}
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @staticmethod
    def read(path: str | Path) -> list[Rows]:
        """What :meth:`write` wrote, in order."""
        with np.load(path, allow_pickle=False) as file:
            return [Rows(file[f"inputs{index}"], file[f"targets{index}"]) for index in range(len(file.files) // 2)]
