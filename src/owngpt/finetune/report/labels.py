"""How well classes are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

OTHER = "(no label)"
"""A guess that is none of the classes, of a network that writes its labels."""


@dataclass(frozen=True)
class Guess:
    """Which class a network takes a text for."""

    index: int
    label: str
    guess: str


@dataclass(frozen=True)
class Confusion:
    """Who was taken for whom."""

    labels: tuple[str, ...]
    counts: np.ndarray
    """(L, L) int64: texts of the class of the row that were given the class of the column."""

    @classmethod
    def of(cls, guesses: Sequence[Guess]) -> Confusion:
        """Count guesses; classes are in the order of their names."""
        known = sorted({guess.label for guess in guesses})
        others = any(guess.guess not in known for guess in guesses)
        labels = (*known, *([OTHER] if others and OTHER not in known else []))
        place = {label: index for index, label in enumerate(labels)}
        counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
        for guess in guesses:
            counts[place[guess.label], place.get(guess.guess, len(labels) - 1)] += 1
        return cls(labels, counts)

    @property
    def accuracy(self) -> float:
        """Share of the texts that were given their own class."""
        return float(np.trace(self.counts) / self.counts.sum())

    @property
    def f1(self) -> dict[str, float]:
        """Of each class that there are texts of: the harmonic mean of precision and recall."""
        right = np.diag(self.counts)
        both = self.counts.sum(0) + self.counts.sum(1)
        rows = self.counts.sum(1)
        return {label: float(2 * right[index] / both[index]) for index, label in enumerate(self.labels) if rows[index]}

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes: a rare one counts as much as a common one."""
        scores = self.f1.values()
        return sum(scores) / len(scores)

    @property
    def share_of_commonest(self) -> float:
        """Share of the texts that were given the one class that was given most often."""
        return float(self.counts.sum(0).max() / self.counts.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "labels": list(self.labels), "counts": self.counts.tolist(), "accuracy": self.accuracy, "macro_f1": self.macro_f1,
            "f1": self.f1,
        }  # fmt: skip
