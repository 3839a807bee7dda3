"""What happened to the text on its way in: the record behind `owngpt data report`."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import dropwhile, takewhile
from typing import Any

from owngpt.config.units import in_bytes

_SAMPLES = 5
_SAMPLE_CHARACTERS = 80
SMALL_CORPUS_BYTES = 100_000


@dataclass
class Removed:
    """Documents left out for one reason."""

    documents: int = 0
    bytes: int = 0
    samples: list[str] = field(default_factory=list)
    """Source and first words of the first few."""

    def add(self, source: str, text: str, size: int) -> None:
        """Count one document of `size` bytes that begins with `text`."""
        self.documents += 1
        self.bytes += size
        if len(self.samples) < _SAMPLES:
            words = " ".join(text[: 4 * _SAMPLE_CHARACTERS].split())[:_SAMPLE_CHARACTERS]
            self.samples.append(f"{source}: {words}")


@dataclass
class DataReport:
    """Counts and reasons; plain values only, so that it is JSON as it stands."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    """Path, bytes and SHA-256 of the files read (the first thousand)."""
    source_files: int = 0
    source_bytes: int = 0
    documents: int = 0
    """Documents kept, over both splits; a held-out section and the text around it count as one."""
    bytes: int = 0
    """UTF-8 bytes of the kept text, over both splits."""
    characters: int = 0
    train: dict[str, int] = field(default_factory=dict)
    """"documents", "bytes" and "characters" to train on."""
    validation: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    """Bytes by language."""
    encodings: dict[str, int] = field(default_factory=dict)
    """Bytes read by encoding, and the number of undecodable characters."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Files and records that could not be used, by reason."""
    skipped_samples: dict[str, list[str]] = field(default_factory=dict)
    removed: dict[str, Removed] = field(default_factory=dict)
    """Documents that were read and left out, by reason."""
    repaired: dict[str, int] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    """Personal data replaced, by label."""
    repeated_validation_bytes: int = 0
    """Held-out text dropped because it also stands in the training text."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Documents by length: the key is the bucket's upper bound in bytes (100, 200, 500, 1000 …), not itself in it."""
    median_length: int = 0
    """Bytes of the document in the middle."""
    longest: int = 0
    """Bytes of the longest document."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataReport:
        """The report that :meth:`to_dict` gave; names of another version are passed over."""
        known = {item.name for item in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        given["removed"] = {reason: Removed(**removed) for reason, removed in given.get("removed", {}).items()}
        return cls(**given)

    @property
    def _pieces(self) -> str:
        """What the splits consist of: sections cut out of long documents leave more pieces than there were documents."""
        split = self.train.get("documents", 0) + self.validation.get("documents", 0)
        return "document" if split == self.documents else "piece"

    def lines(self) -> list[str]:
        """The report for a person, a line at a time."""
        result = [
            f"Sources     {_number(self.source_files, 'file')}, {in_bytes(self.source_bytes)}",
            f"Kept        {_number(self.documents, 'document')}, {in_bytes(self.bytes)}, {self.characters:,} characters",
            f"Training    {_split_line(self.train, self._pieces)}",
            f"Validation  {_split_line(self.validation, self._pieces)}",
            f"Languages   {_shares(self.languages)}",
            f"Encodings   {_shares({name: count for name, count in self.encodings.items() if name != 'undecodable'})}",
        ]
        repaired = {name.removeprefix("repaired ").removesuffix("s"): count for name, count in self.repaired.items()}
        result += _listed("Repaired", [_number(count, name) for name, count in repaired.items() if count])
        result += _listed("Masked", [f"{count:,} {name}" for name, count in self.masked.items() if count])
        if self.repeated_validation_bytes:
            result.append(f"Held out    {in_bytes(self.repeated_validation_bytes)} dropped: the training text holds them too")
        for reason, removed in self.removed.items():
            result.append(f"Removed     {_number(removed.documents, 'document')}, {in_bytes(removed.bytes)}: {reason}")
            result += [f"              {sample}" for sample in removed.samples]
        for reason, count in self.skipped.items():
            result.append(f"Passed over {count:,}: {reason}")
            result += [f"              {sample}" for sample in self.skipped_samples.get(reason, [])]
        result.append(
            f"Lengths     median {in_bytes(self.median_length)}, longest {in_bytes(self.longest)}; documents by length:"
        )
        result += _histogram(self.lengths)
        result += [f"Note: {note}" for note in self.notes] + [f"Warning: {warning}" for warning in self.warnings]
        return result


def length_bucket(size: int) -> str:
    """The upper bound of the histogram bucket that a document of `size` bytes falls into."""
    return str(next(bound for bound in _bounds() if size < bound))


def _bounds() -> Iterator[int]:
    """100, 200, 500, 1000, 2000 …"""
    return (factor * 10**power for power in itertools.count(2) for factor in (1, 2, 5))


def corpus_warnings(train_bytes: int, validation_bytes: int, shares_text: bool) -> list[str]:
    """What a person should expect of a small or repetitive corpus."""
    result = []
    if train_bytes < SMALL_CORPUS_BYTES:
        result.append(
            f"only {in_bytes(train_bytes)} to train on: the model will mostly repeat them; "
            "a megabyte or more gives real sentences"
        )
    if validation_bytes < 2000:
        result.append(f"only {in_bytes(validation_bytes)} held out: the score is rough")
    if shares_text:
        result.append("the text repeats itself: all held-out text also stands in the training text, so the score flatters")
    return result


def sources_listed(hashes: dict[str, str], sizes: dict[str, int], limit: int = 1000) -> list[dict[str, Any]]:
    """The files read, for the report and the manifest."""
    return [{"path": name, "bytes": sizes.get(name, 0), "sha256": digest} for name, digest in list(hashes.items())[:limit]]


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _split_line(split: dict[str, int], noun: str) -> str:
    documents, size, characters = (split.get(name, 0) for name in ("documents", "bytes", "characters"))
    return f"{_number(documents, noun)}, {in_bytes(size)}, {characters:,} characters"


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values()) or 1
    shares = [(name, 100 * count / total) for name, count in Counter(counts).most_common()]
    return ", ".join(f"{name} {share:.1f}%" if share >= 0.05 else f"{name} <0.1%" for name, share in shares) or "none"


def _listed(title: str, named: list[str]) -> list[str]:
    return [f"{title:<12}{', '.join(named)}"] if named else []


def _histogram(lengths: dict[str, int]) -> list[str]:
    most = max(lengths.values(), default=1)
    used = [int(bound) for bound in lengths]
    shown = takewhile(
        lambda bound: bound <= max(used, default=0), dropwhile(lambda bound: bound < min(used, default=0), _bounds())
    )
    rows = [(bound, lengths.get(str(bound), 0)) for bound in shown]
    return [f"  < {in_bytes(bound):>12}  {number:>9,}  {'█' * math.ceil(30 * number / most)}" for bound, number in rows]
