"""What happens to sequences that are longer than the model's context, and the count of all that happened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from owngpt.errors import DataError, UsageError
from owngpt.finetune.sequences.encoded import Encoded

Overflow = Literal["drop", "split", "error"]
MOST_ORIGINS = 5


@dataclass
class Tally:
    """How often something happened, and where first."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    """file:line"""

    def add(self, origin: object) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < MOST_ORIGINS and str(origin) not in self.first:
            self.first.append(str(origin))

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.first) else ""
        return f"{self.count:,} ({', '.join(self.first)}{more})"


@dataclass
class StoreStats:
    """What a store holds, and what was left out of it."""

    examples: int = 0
    """Sequences."""
    tokens: int = 0
    learned: int = 0
    """Tokens that are learned."""
    labelled: int = 0
    """Sequences with a label."""
    longest: int = 0
    """Tokens of the longest sequence that is in it."""
    longest_given: int = 0
    """Tokens of the longest one before anything was left out or cut."""
    dropped: Tally = field(default_factory=Tally)
    """Too long, left out; a pair counts once."""
    split: Tally = field(default_factory=Tally)
    """Too long, cut into several."""
    shortened: Tally = field(default_factory=Tally)
    """Texts with a label that were too long and kept their beginning."""
    masked: Tally = field(default_factory=Tally)
    """Nothing in them is learned; left out."""
    equal: Tally = field(default_factory=Tally)
    """Pairs with the same answer twice; left out."""

    def keep(self, sequence: Encoded) -> Encoded:
        """Count a sequence that is in the store."""
        self.examples += 1
        self.tokens += len(sequence)
        self.learned += sequence.targets
        self.labelled += sequence.label >= 0
        self.longest = max(self.longest, len(sequence))
        return sequence

    def sentence(self) -> str:
        """For a person: what there is, and what was left out."""
        share = f", {self.learned:,} of them learned ({self.learned / self.tokens:.0%})" if self.learned else ""
        parts = [f"{self.examples:,} sequences, {self.tokens:,} tokens{share}, the longest {self.longest:,}"]
        names = {
            "too long, left out": self.dropped,
            "too long, split": self.split,
            "too long, shortened": self.shortened,
            "without anything to learn, left out": self.masked,
            "with the same answer twice, left out": self.equal,
        }
        return "; ".join(parts + [f"{name}: {tally}" for name, tally in names.items() if tally.count])

    def check(self, context_length: int) -> None:
        """:raises DataError: nothing was kept; the message says why and what to change."""
        if self.examples:
            return
        if self.dropped.count and self.dropped.count >= self.masked.count:
            raise DataError(
                f"every example is too long: {self.dropped} have more than {context_length:,} tokens, the longest "
                f"{self.longest_given:,}; use --context-length {self.longest_given} if the model has it, or --overflow split"
            )
        if self.equal.count:
            raise DataError(f"in every pair chosen and rejected are the same: {self.equal}; give answers that differ")
        if self.masked.count:
            raise DataError(
                f"nothing would be learned: every token of {self.masked} is masked. Either no example has an answer of the "
                "assistant (look at the roles), or every answer has weight 0, or the chat template's {% generation %} "
                "blocks are empty; look with --show 3"
            )
        raise DataError("there is no example; give at least one row")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StoreStats:
        """The inverse of :meth:`to_dict`."""
        known: dict[str, Any] = {
            name: Tally(**value) if isinstance(value, dict) else int(value) for name, value in values.items()
        }
        return cls(**known)


def fitted(
    encoded: Iterable[Encoded], stats: StoreStats, *, context_length: int, overflow: Overflow, pairs: bool
) -> Iterator[Encoded]:
    """The sequences that are to be kept, each at most ``context_length`` tokens long; everything is counted.

    :raises DataError: a sequence is too long and ``overflow`` is error, or a pair is not whole.
    """
    if overflow not in get_args(Overflow):
        raise UsageError(f"overflow is {overflow!r}; choose one of {', '.join(get_args(Overflow))}")
    for group in _groups(encoded, 2 if pairs else 1):
        origin, longest = group[0].origin, max(map(len, group))
        stats.longest_given = max(stats.longest_given, longest)
        if any(not sequence.targets and sequence.label < 0 for sequence in group):
            stats.masked.add(origin)
        elif pairs and np.array_equal(group[0].token_ids, group[1].token_ids):
            stats.equal.add(origin)
        elif longest <= context_length:
            yield from map(stats.keep, group)
        elif overflow == "error":
            raise DataError(
                f"{origin}: {longest:,} tokens, more than the context of {context_length:,}; shorten it, use a larger "
                "--context-length, or --overflow drop or split"
            )
        elif overflow == "drop":
            stats.dropped.add(origin)
        else:
            yield from map(stats.keep, _cut(group[0], context_length, stats))


def _groups(encoded: Iterable[Encoded], size: int) -> Iterator[list[Encoded]]:
    group: list[Encoded] = []
    for sequence in encoded:
        group.append(sequence)
        if len(group) == size:
            yield group
            group = []
    if group:
        raise DataError(f"{group[0].origin}: a preference has one answer; it needs a chosen and a rejected one")


def _cut(sequence: Encoded, limit: int, stats: StoreStats) -> Iterator[Encoded]:
    """Parts of at most ``limit`` tokens. Each begins with the last token of the one before, so that every learned token is
    learned once; parts in which nothing is learned are left out."""
    ids, learned = sequence.token_ids, sequence.learned
    if sequence.label >= 0:
        stats.shortened.add(sequence.origin)
        yield Encoded(ids[:limit], learned[:limit], sequence.origin, sequence.label)
        return
    stats.split.add(sequence.origin)
    for start in range(0, len(ids) - 1, limit - 1):
        part = learned[start : start + limit].copy()
        part[0] = False
        if part.any():
            yield Encoded(ids[start : start + limit], part, sequence.origin)
