"""Examples to learn from and examples held out, such that nothing that is asked in one is asked in the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from owngpt.config.checks import within
from owngpt.finetune.examples.example import Example

if TYPE_CHECKING:
    from owngpt.finetune.examples.dataset import ExampleSet

FEWEST = 5
"""Of fewer examples none is held out by default."""
_USUAL_SHARE = 0.1
_USUALLY_AT_MOST = 500


@dataclass(frozen=True)
class Keys:
    """Who is who among examples, in their order."""

    contents: np.ndarray
    """(N,) uint64: equal for examples that say the same."""
    prompts: np.ndarray
    """(N,) uint64: equal for examples that are asked the same."""
    labels: np.ndarray
    """(N,) int64: number of the class; (0,) where there are no classes."""

    def without_labels(self, numbers: set[int]) -> Keys:
        """The keys of the examples with other labels than these."""
        kept = ~np.isin(self.labels, list(numbers))
        return Keys(self.contents[kept], self.prompts[kept], self.labels[kept])


class Side:
    """The examples on one side of a split, in their order; iterating reads the files anew."""

    def __init__(self, examples: ExampleSet, chosen: np.ndarray) -> None:
        self._examples = examples
        self._chosen = chosen
        """(N,) bool"""

    def __len__(self) -> int:
        return int(self._chosen.sum())

    def __iter__(self) -> Iterator[Example]:
        if not len(self):
            return
        left = len(self)
        for example, chosen in zip(self._examples, self._chosen, strict=False):
            if chosen:
                yield example
                left -= 1
                if not left:
                    return


def split_examples(examples: ExampleSet, *, held_out: float | None = None, seed: int = 0) -> tuple[Side, Side]:
    """Examples to learn from, and examples held out.

    Which side an example is on is decided by what is asked in it and by the seed, so repeats and answers to the same
    question stay together and a set that grows keeps most of its choices. Where all examples ask the same, what is said
    decides.

    Args:
        held_out: share of the examples; None holds a tenth out, at most 500, and nothing of fewer than 5; 0 holds none out.

    Raises:
        UsageError: the share is not from 0 to 0.5.
    """
    if held_out is not None:
        within("held_out", held_out, 0, 0.5)
    within("seed", seed, 0, 2**63 - 1)
    chosen = _chosen(examples.keys, _wanted(len(examples), held_out), seed)
    return Side(examples, ~chosen), Side(examples, chosen)


def shared_prompts(learned: ExampleSet, others: ExampleSet) -> int:
    """How many of `others` ask what is asked in `learned`, so that they tell little about what was learned."""
    return int(np.isin(others.keys.prompts, learned.keys.prompts).sum())


def _wanted(count: int, share: float | None) -> int:
    """How many examples are held out of `count`."""
    if share is None:
        return 0 if count < FEWEST else min(max(1, round(_USUAL_SHARE * count)), _USUALLY_AT_MOST)
    if share == 0 or count < 2:
        return 0
    return max(1, round(share * count))


def _chosen(keys: Keys, wanted: int, seed: int) -> np.ndarray:
    """(N,) bool: held out."""
    for names in (keys.prompts, keys.contents):
        unique, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
        if len(unique) > 1:
            taken = _taken(group, sizes, np.argsort(_mixed(unique, seed), kind="stable"), keys.labels, wanted)
            if taken:
                return np.isin(group, taken)
    return np.zeros(len(keys.prompts), bool)


def _taken(group: np.ndarray, sizes: np.ndarray, order: np.ndarray, labels: np.ndarray, wanted: int) -> list[int]:
    """Groups, in `order`, that together have about `wanted` examples and leave every label one to learn from."""
    remaining, taken = wanted, list[int]()
    left = np.bincount(labels) if len(labels) else None
    members = _members(group, sizes) if left is not None else None
    for index in order:
        if remaining <= 0:
            return taken
        if sizes[index] > remaining:
            continue
        if left is not None and members is not None:
            counts = np.bincount(labels[members[index]], minlength=len(left))
            if (left - counts)[counts > 0].min() < 1:
                continue
            left = left - counts
        taken.append(int(index))
        remaining -= int(sizes[index])
    if not taken and wanted and left is None:  # every group is larger: the smallest, if enough is left to learn from
        smallest = int(order[np.argmin(sizes[order])])
        if 2 * sizes[smallest] <= sizes.sum():
            return [smallest]
    return taken


def _members(group: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    return np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])


def _mixed(keys: np.ndarray, seed: int) -> np.ndarray:
    """Keys in another order for every seed: SplitMix64 (Steele, Lea, Flood 2014) of each key and the seed."""
    value = keys + np.uint64(((2 * seed + 1) * 0x9E3779B97F4A7C15) % 2**64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
