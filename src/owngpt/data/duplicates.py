"""Near-duplicate documents by MinHash and locality-sensitive hashing.

A document becomes the set of all runs of SHINGLE_BYTES bytes of its text without spaces, punctuation and case, which
works for every language without cutting it into words. MinHash (Broder, "On the resemblance and containment of
documents", 1997) estimates the Jaccard similarity of two such sets; banding (Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", section 3.4) finds the pairs worth comparing without comparing all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from owngpt.data.progress import COMPARING, Progress, Stage
from owngpt.data.split import Range, Text, windows

PERMUTATIONS = 128
SHINGLE_BYTES = 24
_CHUNK_BYTES = 4 * 2**20
_BLOCK_BYTES = 64 * 2**10
_SEED = 1
# Odd constants of one multiplicative hash a doubling (fractional parts of square roots of primes).
_MULTIPLIERS = {
    1: np.uint64(0x6A09E667F3BCC909),
    2: np.uint64(0xBB67AE8584CAA73B),
    4: np.uint64(0x3C6EF372FE94F82B),
    8: np.uint64(0xA54FF53A5F1D36F1),
    16: np.uint64(0x510E527FADE682D1),
}
_IGNORED = b" \t\r\n\x0b\x0c!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_LOWER = bytes(range(256)).lower()


class Signatures:
    """Collects the MinHash signature of each document; a long document may be added in parts."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._pending: list[tuple[int, bytes]] = []
        self._pending_bytes = 0
        self._tail = b""
        self._count = 0

    def add(self, text: bytes, *, last: bool = True) -> None:
        """Add a document's UTF-8 `text`, or with `last` False a part of it (the next call goes on with it)."""
        kept = self._tail + text.translate(_LOWER, _IGNORED)
        self._tail = b"" if last else kept[-(SHINGLE_BYTES - 1) :]
        self._pending.append((self._count, kept))
        self._pending_bytes += len(kept)
        self._count += last
        if self._pending_bytes >= _CHUNK_BYTES:
            self._flush()

    def matrix(self) -> np.ndarray:
        """Signatures (documents, PERMUTATIONS) uint32; all ones for a document too short to compare."""
        self._flush()
        return np.stack(self._rows) if self._rows else np.empty((0, PERMUTATIONS), dtype=np.uint32)

    def _flush(self) -> None:
        if not self._pending:
            return
        signatures = _minhash([text for _, text in self._pending])
        for (number, _), signature in zip(self._pending, signatures, strict=True):
            if number < len(self._rows):
                # The minimum over a union is the minimum of the minima.
                np.minimum(self._rows[number], signature, out=self._rows[number])
            else:
                self._rows.append(signature)
        self._pending, self._pending_bytes = [], 0


def groups(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """For each document (N,) int64 the number of the first document of its group of near-duplicates (itself if alone).

    Two documents are joined when at least `threshold` of their signatures agree; groups are the connected parts.
    """
    parents = np.arange(len(signatures), dtype=np.int64)
    comparable = np.flatnonzero((signatures != np.uint32(0xFFFFFFFF)).any(axis=1)) if len(signatures) else parents
    if len(comparable) < 2:
        return parents
    rows = signatures[comparable]
    first, second = _candidates(rows, _rows_per_band(threshold))
    alike = (rows[first] == rows[second]).mean(axis=1) >= threshold
    for one, other in zip(comparable[first[alike]], comparable[second[alike]], strict=True):
        _join(parents, int(one), int(other))
    for number in range(len(parents)):
        parents[number] = _root(parents, number)
    return parents


def group_documents(
    text: Text, ranges: Sequence[Range], digests: Sequence[bytes], threshold: float, progress: Progress | None = None
) -> np.ndarray:
    """For each document at `ranges` of `text` (N,) int64 the number of the first document that it equals or nearly equals.

    `digests` are hashes of the documents' content; only documents of similar size are compared.
    """
    firsts = np.arange(len(ranges), dtype=np.int64)
    compared = _of_similar_size(ranges, threshold)
    signatures = Signatures()
    with Stage(progress, COMPARING, sum(ranges[number][1] - ranges[number][0] for number in compared)) as stage:
        for number in compared:
            start, stop = ranges[number]
            for low, high in windows(text, start, stop):
                signatures.add(text[low:high], last=high == stop)
                stage.add(high - low)
    for number, first in zip(compared, groups(signatures.matrix(), threshold).tolist(), strict=True):
        firsts[number] = compared[first]
    first_of: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        firsts[number] = min(int(firsts[number]), int(firsts[first_of.setdefault(digest, number)]))
    return firsts


def _of_similar_size(ranges: Sequence[Range], threshold: float) -> list[int]:
    """Documents that have another one near enough in size to be their near-duplicate at all; a book among poems has none."""
    sizes = np.array([stop - start for start, stop in ranges], dtype=np.float64)
    order = np.argsort(sizes, kind="stable")
    # Spaces and punctuation do not count in the comparison, so sizes may differ somewhat more than the sets.
    near = sizes[order][:-1] >= 0.8 * threshold * sizes[order][1:]
    return sorted(order[np.r_[near, False] | np.r_[False, near]].tolist())


def _minhash(texts: Sequence[bytes]) -> np.ndarray:
    from rensa import RMinHash

    counts = [max(len(text) - SHINGLE_BYTES + 1, 0) for text in texts]
    offsets = np.zeros(len(texts) + 1, dtype=np.uint64)
    np.cumsum(counts, out=offsets[1:])
    hashes = np.concatenate([_shingle_hashes(block) for block in _blocks(texts)])
    digest = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, _SEED)
    signatures = np.array(digest.to_rows(), dtype=np.uint32).reshape(len(texts), PERMUTATIONS)
    signatures[np.array(counts) == 0] = np.uint32(0xFFFFFFFF)
    return signatures


def _blocks(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Texts hashed together: many at once because numpy is slow on small arrays, few enough to stay in the cache."""
    block: list[bytes] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _shingle_hashes(texts: list[bytes]) -> np.ndarray:
    """A 64-bit hash of every run of SHINGLE_BYTES bytes within a text, by doubling: the hash of 2n bytes is made of two of n."""
    ends = np.cumsum([len(text) for text in texts])
    values = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.uint64)
    if len(values) < SHINGLE_BYTES:
        return np.empty(0, dtype=np.uint64)
    values += np.uint64(1)
    by_width = {1: values}
    for width in (1, 2, 4, 8):
        by_width[2 * width] = _pair(by_width[width], by_width[width], width)
    hashes = _pair(by_width[16], by_width[8], 16)
    hashes ^= hashes >> np.uint64(31)
    hashes *= _MULTIPLIERS[1]
    inside = np.ones(len(values), dtype=bool)  # a run that begins in the last bytes of a text reaches into the next one
    inside[np.maximum(ends[:, None] - np.arange(1, SHINGLE_BYTES), 0).ravel()] = False
    return hashes[inside[: len(hashes)]]


def _pair(first: np.ndarray, second: np.ndarray, distance: int) -> np.ndarray:
    count = len(second) - distance
    mixed = first[:count] * _MULTIPLIERS[distance]
    mixed += second[distance:]
    return mixed


def _rows_per_band(threshold: float) -> int:
    """The longest band that still finds nearly all pairs at `threshold`: a miss has probability (1 - t^r)^(n/r)."""
    sizes: Iterable[int] = (32, 16, 8, 4, 2)
    return next((rows for rows in sizes if (1 - threshold**rows) ** (PERMUTATIONS // rows) < 0.01), 1)


def _candidates(rows: np.ndarray, rows_per_band: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of row numbers that share a band, each with the first row of that band's bucket and with its neighbour in it."""
    pairs = [np.empty(0, dtype=np.int64)]
    for start in range(0, PERMUTATIONS, rows_per_band):
        order, same = _buckets(_band_hashes(rows[:, start : start + rows_per_band]))
        first_of = np.zeros(len(order), dtype=np.int64)
        first_of[~same] = np.flatnonzero(~same)
        first_of = order[np.maximum.accumulate(first_of)]
        places = np.flatnonzero(same)
        for others in (first_of[places], order[places - 1]):
            pairs.append(others * len(rows) + order[places])
    return np.divmod(np.unique(np.concatenate(pairs)), len(rows))


def _band_hashes(band: np.ndarray) -> np.ndarray:
    hashes = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        hashes = (hashes ^ column) * _MULTIPLIERS[1]
        hashes ^= hashes >> np.uint64(31)
    return hashes


def _buckets(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers sorted by hash, and for each place in that order whether it shares its hash with the place before."""
    order = np.argsort(hashes, kind="stable")
    same = np.zeros(len(order), dtype=bool)
    same[1:] = hashes[order][1:] == hashes[order][:-1]
    return order, same


def _root(parents: np.ndarray, number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = int(parents[number])
    return number


def _join(parents: np.ndarray, one: int, other: int) -> None:
    low, high = sorted((_root(parents, one), _root(parents, other)))
    parents[high] = low  # the first document stands for its group
