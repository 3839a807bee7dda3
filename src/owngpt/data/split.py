"""Which text is held out for validation: never trained on, spread over the corpus, the same every time.

Documents that are small beside what is to be held out are held out whole, chosen by the hash of their content, so that
adding a document moves no other. Large ones (a novel, a play, one big file) give up sections instead, cut at paragraph
borders and spread evenly over them. Near-duplicates stay on one side, and a held-out passage that also stands in the
training text is dropped from the validation text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from owngpt.data.passages import count_in, passages
from owngpt.data.progress import DIVIDING, Progress, Stage

KIBIBYTE = 1024
_PLANNED_SHARE = 0.02
_LEAST_BYTES, _MOST_BYTES, _MOST_SHARE = 64 * KIBIBYTE, 256 * KIBIBYTE, 0.1
_LARGE_SHARE = 4
"""A document of more than a quarter of the held-out bytes is cut rather than held out whole."""
_SECTIONS = 8
_LEAST_SECTION, _SMALL_SECTION, _MOST_SECTION = 256, 4 * KIBIBYTE, 64 * KIBIBYTE
_TRIES = 3
WINDOW_BYTES = 2**20
"""Text looked at in one go."""
_LEAST_PIECE = 32

Range = tuple[int, int]


class Text(Protocol):
    """Bytes that can be searched without being read whole: bytes or an mmap."""

    def __getitem__(self, key: slice) -> bytes: ...
    def find(self, sub: bytes, start: int, end: int) -> int: ...
    def rfind(self, sub: bytes, start: int, end: int) -> int: ...


@dataclass(frozen=True)
class Split:
    """Byte ranges of the corpus text, each one document of its split."""

    train: np.ndarray
    """(N, 2) int64: first byte and the byte after the last."""
    validation: np.ndarray
    """(M, 2) int64."""
    repeated_bytes: int
    """Held-out text that was dropped because it also stands in the training text."""
    shares_text: bool
    """True for a corpus that repeats itself so much that all of the held-out text stands in the training text too."""


@dataclass(frozen=True)
class _Candidate:
    """A stretch of text that could be held out; of each slot one candidate at most is chosen."""

    start: int
    stop: int
    documents: tuple[int, ...]
    """Documents that are held out whole with it; empty for a section."""
    slot: int
    parts: tuple[Range, ...]


def planned_bytes(total: int, fraction: float | None) -> int:
    """How much of `total` bytes to hold out: the share asked for, or about 2 %, from 64 to 256 KiB, never over a tenth."""
    if fraction is not None:
        return round(total * fraction)
    return round(min(max(total * _PLANNED_SHARE, _LEAST_BYTES), _MOST_BYTES, total * _MOST_SHARE))


def split_documents(
    text: Text, ranges: Sequence[Range], digests: Sequence[bytes], groups: np.ndarray, *, fraction: float | None, seed: int,
    progress: Progress | None = None,
) -> Split:  # fmt: skip
    """Divide the documents at `ranges` of `text` into training and validation.

    `digests` are hashes of the documents' content; `groups` (N,) gives near-duplicate documents the same number.
    """
    target = planned_bytes(sum(stop - start for start, stop in ranges), fraction)
    sizes = Counter[int]()
    for (start, stop), group in zip(ranges, groups.tolist(), strict=True):
        sizes[group] += stop - start
    members = Counter(groups.tolist())
    large = [number for number, group in enumerate(groups.tolist()) if sizes[group] * _LARGE_SHARE > target]
    small_groups = [group for group, size in sizes.items() if size * _LARGE_SHARE <= target]
    # A section of a document that has a near-duplicate would still stand in the other one.
    single = [number for number in large if members[int(groups[number])] == 1] or large
    small_bytes = sum(sizes[group] for group in small_groups)
    small_target = round(target * small_bytes / max(sum(sizes.values()), 1))
    candidates = _whole_documents(ranges, digests, groups, set(small_groups), small_target, seed)
    candidates += _sections(text, [ranges[number] for number in single], target - small_target, _mixed_seed(digests, seed))
    with Stage(progress, DIVIDING, sum(sizes.values())) as stage:
        counts = _passage_counts(text, ranges, candidates, stage)
    chosen = _choose(text, candidates, counts, small_target)
    return _assemble(text, ranges, chosen, counts)


def windows(text: Text, start: int, stop: int, size: int = WINDOW_BYTES) -> Iterator[Range]:
    """Cut a range into pieces of at most about `size` bytes, at a paragraph's, line's or character's end."""
    while stop - start > size:
        cut = _border_before(text, start + size // 2, start + size)
        yield start, cut
        start = cut
    if stop > start:
        yield start, stop


def _mixed_seed(digests: Sequence[bytes], seed: int) -> int:
    mixed = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=8)
    for digest in digests:
        mixed.update(digest)
    return int.from_bytes(mixed.digest(), "little")


def _whole_documents(
    ranges: Sequence[Range], digests: Sequence[bytes], groups: np.ndarray, allowed: set[int], target: int, seed: int
) -> list[_Candidate]:
    """Groups of small documents in the order of their hash: half as many again as needed, to choose from."""
    if target <= 0:
        return []
    members: dict[int, list[int]] = {}
    for number, group in enumerate(groups.tolist()):
        if group in allowed:
            members.setdefault(group, []).append(number)
    salt = seed.to_bytes(8, "little")
    order = sorted(members, key=lambda group: hashlib.blake2b(salt + digests[members[group][0]], digest_size=8).digest())
    candidates, taken = [], 0
    for slot, group in enumerate(order):
        parts = tuple(ranges[number] for number in members[group])
        size = sum(stop - start for start, stop in parts)
        if taken + size // 2 > 1.5 * target:
            break
        candidates.append(_Candidate(parts[0][0], parts[0][1], tuple(members[group]), -1 - slot, parts))
        taken += size
    return candidates


def _sections(text: Text, ranges: Sequence[Range], target: int, seed: int) -> list[_Candidate]:
    """Some candidate sections in each of equal strata laid over the large documents."""
    total = sum(stop - start for start, stop in ranges)
    if target < 1 or total < 2 * _LEAST_SECTION:
        return []
    size = min(max(target // _SECTIONS, _SMALL_SECTION), _MOST_SECTION, max(target, _LEAST_SECTION))
    count = max(round(target / size), 1)
    generator = np.random.Generator(np.random.PCG64(seed))
    ends = np.cumsum([stop - start for start, stop in ranges])
    candidates = []
    for slot in range(count):
        low, high = slot * total // count, (slot + 1) * total // count
        for _ in range(_TRIES):
            place = int(generator.integers(low, max(high - size, low + 1)))
            number = int(np.searchsorted(ends, place, side="right"))
            start, stop = ranges[number]
            section = _section(text, start, stop, start + place - int(ends[number] - (stop - start)), size)
            candidates.append(_Candidate(*section, (), slot, (section,)))
    return candidates


def _section(text: Text, start: int, stop: int, place: int, size: int) -> Range:
    """A section of about `size` bytes of the document [start, stop) near `place`, between borders of the text."""
    if stop - start <= size + _LEAST_SECTION:
        return start, stop
    place = min(place, stop - size)
    first = start if place - start < _LEAST_SECTION else _border_after(text, place, min(place + size // 2, stop))
    last = min(first + size, stop)
    if stop - last < _LEAST_SECTION:
        return first, stop
    return first, _border_before(text, first + size // 2, last)


def _border_after(text: Text, start: int, limit: int) -> int:
    for mark in (b"\n\n", b"\n", "。".encode(), b". ", b" "):
        place = text.find(mark, start, limit)
        if place >= 0:
            return place + len(mark)
    return _character_start(text, start)


def _border_before(text: Text, start: int, limit: int) -> int:
    for mark in (b"\n\n", b"\n", "。".encode(), b". ", b" "):
        place = text.rfind(mark, start, limit)
        if place >= 0:
            return place + len(mark)
    return _character_start(text, limit)


def _character_start(text: Text, place: int) -> int:
    """`place` moved back to the first byte of a UTF-8 character."""
    around = text[max(place - 3, 0) : place + 1]
    back = 0
    while back < len(around) - 1 and around[len(around) - 1 - back] & 0xC0 == 0x80:
        back += 1
    return place - back


def _passage_counts(text: Text, ranges: Sequence[Range], candidates: list[_Candidate], stage: Stage) -> Counter[bytes]:
    wanted = {content for candidate in candidates for content in _own_passages(text, candidate)}
    if not wanted:
        return Counter()
    return count_in(wanted, _together(text, ranges, stage))


def _together(text: Text, ranges: Sequence[Range], stage: Stage) -> Iterator[bytes]:
    """The documents, small ones many at a time with a blank line between them, large ones in windows."""
    batch: list[bytes] = []
    size = 0
    for start, stop in ranges:
        for low, high in windows(text, start, stop):
            batch.append(text[low:high])
            size += high - low
            if size >= WINDOW_BYTES:
                yield b"\n\n".join(batch)
                stage.add(size)
                batch, size = [], 0
    yield b"\n\n".join(batch)


def _own_passages(text: Text, candidate: _Candidate) -> Counter[bytes]:
    own: Counter[bytes] = Counter()
    for start, stop in candidate.parts:
        own.update(content for _, _, content in passages(text[start:stop]))
    return own


def _choose(text: Text, candidates: list[_Candidate], counts: Counter[bytes], small_target: int) -> list[_Candidate]:
    """Of each stratum the section that repeats least; of the documents the first in order, those that repeat much last."""
    shares = {candidate: _repeated_share(text, candidate, counts) for candidate in candidates}
    slots: dict[int, _Candidate] = {}
    for candidate in candidates:
        best = slots.get(candidate.slot)
        if best is None or shares[candidate] < shares[best]:
            slots[candidate.slot] = candidate
    documents = sorted((c for c in slots.values() if c.documents), key=lambda c: (shares[c] > 0.3, -c.slot))
    chosen, taken = [], 0
    for candidate in documents:
        size = sum(stop - start for start, stop in candidate.parts)
        if taken + size // 2 <= small_target:
            chosen.append(candidate)
            taken += size
    return chosen + [candidate for candidate in slots.values() if not candidate.documents]


def _repeated_share(text: Text, candidate: _Candidate, counts: Counter[bytes]) -> float:
    own = _own_passages(text, candidate)
    repeated = sum(len(content) * count for content, count in own.items() if counts[content] > count)
    return repeated / max(sum(stop - start for start, stop in candidate.parts), 1)


def _assemble(text: Text, ranges: Sequence[Range], chosen: list[_Candidate], counts: Counter[bytes]) -> Split:
    held = _merged(sorted(part for candidate in chosen for part in candidate.parts))
    own: Counter[bytes] = Counter()
    for start, stop in held:
        own.update(content for _, _, content in passages(text[start:stop]))
    kept = [piece for start, stop in held for piece in _without_repeated(text, start, stop, counts, own)]
    shares_text = bool(held) and not kept
    validation = held if shares_text else kept
    train = [piece for piece in _subtract(ranges, held) if text[piece[0] : min(piece[1], piece[0] + WINDOW_BYTES)].strip()]
    return Split(_as_array(train), _as_array(validation), _size(held) - _size(validation), shares_text)


def _size(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _merged(held: list[Range]) -> list[Range]:
    """Sorted ranges without overlap: a later one begins where the earlier one ends."""
    result: list[Range] = []
    for start, stop in held:
        start = max(start, result[-1][1]) if result else start
        if stop > start:
            result.append((start, stop))
    return result


def _subtract(ranges: Sequence[Range], held: list[Range]) -> list[Range]:
    result: list[Range] = []
    position = 0
    for start, stop in ranges:
        while position < len(held) and held[position][1] <= start:
            position += 1
        cursor, scan = start, position
        while scan < len(held) and held[scan][0] < stop:
            if held[scan][0] > cursor:
                result.append((cursor, held[scan][0]))
            cursor = max(cursor, held[scan][1])
            scan += 1
        if cursor < stop:
            result.append((cursor, stop))
    return result


def _without_repeated(text: Text, start: int, stop: int, counts: Counter[bytes], own: Counter[bytes]) -> Iterator[Range]:
    piece = start
    for low, high, content in passages(text[start:stop]):
        if counts[content] > own[content]:
            if _worth_keeping(text, piece, start + low):
                yield piece, start + low
            piece = start + high
    if _worth_keeping(text, piece, stop):
        yield piece, stop


def _worth_keeping(text: Text, start: int, stop: int) -> bool:
    return len(text[start:stop].strip()) >= _LEAST_PIECE


def _as_array(ranges: list[Range]) -> np.ndarray:
    return np.array(ranges, dtype=np.int64).reshape(-1, 2)
