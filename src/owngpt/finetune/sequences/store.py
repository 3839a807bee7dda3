"""Encoded examples on disk: written once, memory-mapped afterwards, with a manifest that says exactly what they hold.

A token is one 32-bit word: its id, and in the highest bit whether it is learned.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from owngpt.config.files import sha256_of_file, storage_errors
from owngpt.data.files import MANIFEST, own_folder, read_json, write_json
from owngpt.errors import DataError, UsageError
from owngpt.finetune.examples.example import Origin
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.overflow import Overflow, StoreStats, fitted

FORMAT = "examples 1"
TOKENS, RECORDS = "tokens.bin", "examples.bin"
LEARNED = np.uint32(1 << 31)
RECORD = np.dtype([("start", "<u8"), ("line", "<u8"), ("length", "<u4"), ("targets", "<u4"), ("file", "<u4"), ("label", "<i4")])


def words_of(sequence: Encoded) -> np.ndarray:
    """A sequence as one word a token: (T,) uint32, little-endian."""
    ids, learned = np.asarray(sequence.token_ids), np.asarray(sequence.learned)
    assert len(ids) == len(learned)
    assert not len(ids) or 0 <= ids.min() <= ids.max() < LEARNED
    return ids.astype("<u4") | (learned.astype("<u4") << np.uint32(31))


def from_words(words: np.ndarray, origin: Origin, label: int) -> Encoded:
    """The inverse of :func:`words_of`; the words are copied."""
    return Encoded((words & ~LEARNED).astype(np.int64), (words & LEARNED) != 0, origin, label)


@dataclass(frozen=True)
class ExampleStore:
    """Sequences in the order in which they were written. Of a preference, chosen and rejected are 2i and 2i + 1."""

    folder: Path
    context_length: int
    """No sequence has more tokens."""
    stats: StoreStats
    pairs: bool
    fingerprint: str
    """SHA-256 of the manifest, which holds those of the files."""
    _tokens: np.ndarray = field(repr=False)
    _records: np.ndarray = field(repr=False)
    _files: tuple[str, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> ExampleStore:
        """What :func:`write_store` wrote.

        :param verify: compare the SHA-256 of the files with the manifest's.
        :raises DataError: something is missing or damaged.
        """
        path = Path(folder)
        manifest = read_json(path / MANIFEST)
        try:
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']!r}, this program reads {FORMAT!r}")
            arrays = [_mapped(path, manifest["files"][name], name, verify) for name in (TOKENS, RECORDS)]
            stats = StoreStats.from_dict(manifest["stats"])
            origins = tuple(str(name) for name in manifest["sources"])
            length, pairs = int(manifest["context_length"]), bool(manifest["pairs"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path / MANIFEST} is damaged ({error}); delete {path} and start again") from error
        digest = sha256_of_file(path / MANIFEST)
        return cls(path, length, stats, pairs, digest, arrays[0].view("<u4"), arrays[1].view(RECORD), origins)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Encoded]:
        return (self.example(index) for index in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens of each sequence."""
        return self._records["length"].astype(np.int64)

    @property
    def targets(self) -> np.ndarray:
        """(N,) int64 learned tokens of each sequence."""
        return self._records["targets"].astype(np.int64)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 index of each sequence's class, -1 where there is none."""
        return self._records["label"].astype(np.int64)

    def example(self, index: int) -> Encoded:
        """The sequence with this index, copied out of the files."""
        record = self._records[index]
        start, length = int(record["start"]), int(record["length"])
        origin = Origin(self._files[record["file"]], int(record["line"]))
        return from_words(self._tokens[start : start + length], origin, int(record["label"]))


def write_store(
    encoded: Iterable[Encoded],
    folder: str | os.PathLike[str],
    *,
    context_length: int,
    overflow: Overflow = "drop",
    pairs: bool = False,
) -> ExampleStore:
    """Write sequences as they come, one in memory at a time, and open what was written.

    Sequences in which nothing is learned are left out and counted, unless they have a label.

    :param overflow: what happens to a sequence of more than ``context_length`` tokens: drop leaves it out, split cuts it into
        sequences that fit (a text with a label keeps its beginning), error refuses it.
    :param pairs: the sequences are chosen and rejected answers in turn: both are kept, or none.
    :raises DataError: nothing is left, with the reason; or a sequence is too long and ``overflow`` is error.
    :raises UsageError: the folder holds something else, or pairs are to be split.
    :raises StorageError: the folder cannot be written.
    """
    if context_length < 2:
        raise UsageError(f"context length {context_length} is too short; a sequence has at least 2 tokens")
    if pairs and overflow == "split":
        raise UsageError("a preference cannot be split, since both answers need their prompt; use --overflow drop or error")
    target = Path(folder)
    own_folder(target, MANIFEST, lambda name: name in (TOKENS, RECORDS) or name.startswith(f".{MANIFEST}"))
    stats = StoreStats()
    with storage_errors(target):
        (target / MANIFEST).unlink(missing_ok=True)  # first: from now on nothing takes the old files for whole ones
        with _Writer(target) as writer:
            for sequence in fitted(encoded, stats, context_length=context_length, overflow=overflow, pairs=pairs):
                writer.add(sequence)
        stats.check(context_length)
    write_json(
        target / MANIFEST,
        {
            "format": FORMAT,
            "context_length": context_length,
            "pairs": pairs,
            "files": writer.described,
            "stats": stats.to_dict(),
            "sources": list(writer.sources),
        },
    )
    return ExampleStore.open(target, verify=False)


class _Writer:
    """Appends sequences to the two files, hashing as it goes."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: _Hashed(folder / name) for name in (TOKENS, RECORDS)}
        self.sources: dict[str, int] = {}
        self.described: dict[str, dict[str, Any]] = {}
        self._start = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.described = {name: file.close() for name, file in self._files.items()}

    def add(self, sequence: Encoded) -> None:
        self._files[TOKENS].write(words_of(sequence))
        file = self.sources.setdefault(sequence.origin.file, len(self.sources))
        record = (self._start, max(sequence.origin.line, 0), len(sequence), sequence.targets, file, sequence.label)
        self._files[RECORDS].write(np.array([record], dtype=RECORD))
        self._start += len(sequence)


class _Hashed:
    """A file that is written from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed in close
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, values: np.ndarray) -> None:
        data = values.tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)

    def close(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}


def _mapped(folder: Path, described: dict[str, Any], name: str, verify: bool) -> np.ndarray:
    """The bytes of a file (N,) uint8, read-only."""
    path, expected = folder / name, int(described["bytes"])
    try:
        size = path.stat().st_size
        if size != expected:
            raise DataError(f"{path} has {size} bytes where the manifest says {expected}; delete {folder} and start again")
        content = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); delete {folder} and start again") from error
    if verify and sha256_of_file(path) != described["sha256"]:
        raise DataError(f"{path} is damaged (its SHA-256 differs from the manifest's); delete {folder} and start again")
    return content
