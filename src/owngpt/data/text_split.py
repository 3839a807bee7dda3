"""The training or the validation text of a corpus: byte ranges of one UTF-8 file, of which only pieces are ever in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from owngpt.data.split import WINDOW_BYTES, windows


@dataclass(frozen=True)
class TextSplit:
    """The training or the validation text of a corpus."""

    path: Path
    ranges: np.ndarray = field(repr=False)
    """(N, 2) int64 first byte and byte after the last of each document in the file at `path`."""
    characters: int

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return int((self.ranges[:, 1] - self.ranges[:, 0]).sum())

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.ranges)

    def texts(self) -> Iterator[str]:
        """The documents, one whole string each; for documents of any size use :meth:`pieces`."""
        for start, stop in self.ranges.tolist():
            with open(self.path, "rb") as file:
                file.seek(start)
                yield file.read(stop - start).decode("utf-8")

    def pieces(self, max_bytes: int = WINDOW_BYTES) -> Iterator[tuple[str, bool]]:
        """The documents in pieces of at most about `max_bytes`, each with whether its document ends with it.

        A piece ends with a paragraph, a line or a sentence where there is one, always with a whole character.
        """
        with mapped(self.path) as text:
            for start, stop in self.ranges.tolist():
                if stop - start <= max_bytes:
                    yield str(text[start:stop], "utf-8"), True
                    continue
                for low, high in windows(text, start, stop, max_bytes):
                    yield str(text[low:high], "utf-8"), high == stop

    def sample(self, max_bytes: int, *, piece_bytes: int = 64 * 1024) -> list[str]:
        """About `max_bytes` of text in pieces spread evenly over the split; all of it when there is no more."""
        total = self.bytes
        if total <= max_bytes:
            return [piece for piece, _ in self.pieces(piece_bytes)]
        chosen: list[str] = []
        seen = taken = 0
        for piece, _ in self.pieces(min(piece_bytes, max(max_bytes // 16, 1024))):
            size = len(piece.encode("utf-8"))
            if taken * total <= seen * max_bytes:
                chosen.append(piece)
                taken += size
            seen += size
        return chosen


def mapped(path: Path) -> mmap.mmap:
    """The bytes of a file that is not empty, as a read-only map."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def character_count(text: mmap.mmap, ranges: np.ndarray) -> int:
    """Characters in the ranges: bytes that do not continue a UTF-8 character."""
    if not len(ranges):
        return 0
    whole = np.frombuffer(text, dtype=np.int8)
    count = 0
    ends_run = np.r_[ranges[1:, 0] != ranges[:-1, 1], True]  # neighbours are counted in one go
    for start, stop in zip(ranges[np.r_[True, ends_run[:-1]], 0].tolist(), ranges[ends_run, 1].tolist(), strict=True):
        for low in range(start, stop, WINDOW_BYTES):
            count += int(np.count_nonzero(whole[low : min(low + WINDOW_BYTES, stop)] >= -64))
    del whole  # the map cannot be closed while an array looks into it
    return count
