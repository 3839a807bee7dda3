"""Token shards: the corpus as memory-mapped integers, with a manifest that says exactly what they were made from.

A split is a stream `end-of-text, document, end-of-text, document, …, end-of-text`: every document has one in front of it
(what a model sees before the first token) and one behind it (what it must predict to stop).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from owngpt.config.files import storage_errors
from owngpt.data.corpus import Corpus
from owngpt.data.encoder import BulkEncoder, Encoded, TextEncoder
from owngpt.data.encoder_pool import EncoderPool
from owngpt.data.files import MANIFEST, own_folder, read_json, write_json
from owngpt.data.progress import TOKENIZING, Progress, Stage
from owngpt.data.text_split import TextSplit
from owngpt.errors import DataError
from owngpt.kernels.machine import usable_cores
from owngpt.text.tokenizer import Tokenizer

FORMAT_VERSION = 1
SHARD_TOKENS = 64 * 2**20
_BATCH_BYTES = 2**20
_PROCESS_BYTES = 4 * 2**20
"""Text that makes another process worth its start."""
_PIECE_BYTES = 64 * 2**10


@dataclass(frozen=True)
class TokenSplit:
    """One split (training or validation) as a stream of tokens over memory-mapped shards."""

    shards: tuple[np.ndarray, ...] = field(repr=False)
    """Read-only (n,) uint16 or uint32 arrays, in order."""
    token_count: int
    """All tokens, end-of-text ones included."""
    byte_count: int
    """UTF-8 bytes of the text behind the tokens."""
    document_count: int
    end_of_text_id: int

    @property
    def bytes_per_token(self) -> float:
        """Text bytes a token, end-of-text tokens counted as tokens: turns a loss a token into bits a byte."""
        return self.byte_count / self.token_count if self.token_count else 0.0

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens (stop - start,) uint16 or uint32 of the stream, copied out of the shards."""
        assert 0 <= start <= stop <= self.token_count, (start, stop, self.token_count)
        parts, begin = [], 0
        for shard in self.shards:
            end = begin + len(shard)
            if start < end and stop > begin:
                parts.append(shard[max(start - begin, 0) : stop - begin])
            begin = end
        if not parts:
            return np.empty(0, dtype=np.uint16)
        return np.array(parts[0]) if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class PreparedData:
    """Tokenized text, ready to be trained on."""

    folder: Path
    train: TokenSplit
    validation: TokenSplit
    manifest: dict[str, Any] = field(repr=False)
    """Sources with hashes, counts, tokenizer and corpus fingerprints, shards with SHA-256."""


def tokenize(
    corpus: Corpus, tokenizer: TextEncoder, folder: str | os.PathLike[str], *, workers: int = 0, progress: Progress | None = None
) -> PreparedData:
    """Encode both splits of `corpus` into `folder`; shards made of the same text by the same tokenizer are used again.

    `workers` is the number of processes that encode, 0 for one a core; a small corpus takes none. The tokens do not depend on it.

    Raises:
        UsageError: the folder holds something else. StorageError: it cannot be written.
    """
    target = Path(folder)
    own_folder(target, MANIFEST, _is_ours)
    made_from = {
        "format": FORMAT_VERSION,
        "corpus": corpus.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text_id": tokenizer.end_of_text_id,
    }
    if (ready := _reusable(target, made_from)) is not None:
        return ready
    _remove_old(target)
    splits = {}
    total = corpus.train.bytes + corpus.validation.bytes
    with Stage(progress, TOKENIZING, total) as stage, _encoding(tokenizer, workers, total) as encode:
        for name, text in (("train", corpus.train), ("validation", corpus.validation)):
            splits[name] = _write_split(target, name, encode(_batches(text)), tokenizer, stage)
    write_json(
        target / MANIFEST, made_from | {"splits": splits, "sources": corpus.report.sources, "text_sha256": corpus.text_sha256}
    )
    return load_prepared(target, verify=False)


def load_prepared(folder: str | os.PathLike[str], *, verify: bool = True) -> PreparedData:
    """Open what :func:`tokenize` wrote.

    Raises:
        DataError: the manifest or a shard is missing or damaged (with `verify`, every shard's SHA-256 is compared).
    """
    path = Path(folder)
    manifest = read_json(path / MANIFEST)
    try:
        splits = {name: _open_split(path, manifest, name, verify) for name in ("train", "validation")}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path / MANIFEST} is damaged ({error!r}); delete {path} and prepare the data again") from error
    return PreparedData(path, splits["train"], splits["validation"], manifest)


def _reusable(folder: Path, made_from: dict[str, Any]) -> PreparedData | None:
    if not (folder / MANIFEST).exists():
        return None
    try:
        ready = load_prepared(folder)
    except DataError:
        return None
    return ready if all(ready.manifest.get(name) == value for name, value in made_from.items()) else None


def _is_ours(name: str) -> bool:
    return name == MANIFEST or name.startswith(("train-", "validation-", f".{MANIFEST}"))  # the last: an interrupted write


def _remove_old(folder: Path) -> None:
    """The manifest goes first: from then on nothing can take the old shards for whole ones."""
    with storage_errors(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in [*folder.glob("train-*.bin"), *folder.glob("validation-*.bin")]:
            path.unlink()


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some pieces of documents: enough to keep a core busy, little enough to hold many in memory."""

    texts: list[str]
    ends_document: list[bool]
    """For each piece."""
    bytes: int


_Encode = Callable[[Iterable[_Batch]], Iterator[tuple[_Batch, Encoded]]]


@contextmanager
def _encoding(tokenizer: TextEncoder, workers: int, total_bytes: int) -> Iterator[_Encode]:
    """How batches are encoded: by several processes where that saves time, else here."""
    processes = workers or min(usable_cores(), total_bytes // _PROCESS_BYTES)
    if processes > 1 and isinstance(tokenizer, Tokenizer):
        with EncoderPool(tokenizer, processes) as pool:
            yield lambda batches: pool.map(batches, lambda batch: batch.texts)
        return
    encoder = BulkEncoder(tokenizer)
    yield lambda batches: ((batch, encoder.encode(batch.texts)) for batch in batches)


def _batches(text: TextSplit) -> Iterator[_Batch]:
    texts, ends, size = list[str](), list[bool](), 0
    for piece, last in text.pieces(_PIECE_BYTES):
        texts.append(piece)
        ends.append(last)
        size += len(piece) if piece.isascii() else len(piece.encode("utf-8"))
        if size >= _BATCH_BYTES:
            yield _Batch(texts, ends, size)
            texts, ends, size = [], [], 0
    if texts:
        yield _Batch(texts, ends, size)


def _write_split(
    folder: Path, name: str, encoded: Iterator[tuple[_Batch, Encoded]], tokenizer: TextEncoder, stage: Stage
) -> dict[str, Any]:
    dtype = np.dtype("<u2") if tokenizer.vocab_size <= 2**16 else np.dtype("<u4")
    writer = _ShardWriter(folder, name, dtype)
    documents = byte_count = 0
    with storage_errors(folder), writer:
        for batch, tokens in encoded:
            if documents == 0 and writer.token_count == 0:
                writer.write(np.array([tokenizer.end_of_text_id], dtype=dtype))
            writer.write(_with_ends(tokens, batch.ends_document, tokenizer.end_of_text_id).astype(dtype))
            documents += sum(batch.ends_document)
            byte_count += batch.bytes
            stage.add(batch.bytes)
    return {
        "tokens": writer.token_count,
        "bytes": byte_count,
        "documents": documents,
        "dtype": dtype.name,
        "shards": writer.shards,
    }


def _with_ends(encoded: Encoded, ends_document: list[bool], end_of_text: int) -> np.ndarray:
    """The tokens with an end-of-text token behind every piece that ends its document."""
    places = np.cumsum(encoded.counts)[np.array(ends_document, dtype=bool)]
    return np.insert(encoded.ids, places, end_of_text)


class _ShardWriter:
    """Writes a stream of tokens into files of at most SHARD_TOKENS tokens, hashing as it goes."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype) -> None:
        self._folder, self._name, self._dtype = folder, name, dtype
        self._file: Any = None
        self._hash = hashlib.sha256()
        self._room = 0
        self.token_count = 0
        self.shards: list[dict[str, Any]] = []

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish_shard()

    def write(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self._room == 0:
                self._finish_shard()
                self._start_shard()
            part, tokens = tokens[: self._room], tokens[self._room :]
            data = part.tobytes()
            self._file.write(data)
            self._hash.update(data)
            self._room -= len(part)
            self.token_count += len(part)
            self.shards[-1]["tokens"] += len(part)

    def _start_shard(self) -> None:
        file_name = f"{self._name}-{len(self.shards):05d}.bin"
        self._file = open(self._folder / file_name, "wb")  # noqa: SIM115 - closed in _finish_shard
        self._hash = hashlib.sha256()
        self._room = SHARD_TOKENS
        self.shards.append({"file": file_name, "tokens": 0})

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.shards[-1]["sha256"] = self._hash.hexdigest()


def _open_split(folder: Path, manifest: dict[str, Any], name: str, verify: bool) -> TokenSplit:
    described = manifest["splits"][name]
    dtype = np.dtype(described["dtype"]).newbyteorder("<")
    if dtype.kind != "u":
        raise ValueError(f"tokens of type {dtype}")
    shards = tuple(_open_shard(folder, shard, dtype, verify) for shard in described["shards"])
    count = sum(len(shard) for shard in shards)
    if count != described["tokens"]:
        raise ValueError(f"{count} tokens in the shards of {name}, {described['tokens']} in its count")
    return TokenSplit(shards, count, int(described["bytes"]), int(described["documents"]), int(manifest["end_of_text_id"]))


def _open_shard(folder: Path, described: dict[str, Any], dtype: np.dtype, verify: bool) -> np.ndarray:
    path = folder / Path(described["file"]).name
    expected = int(described["tokens"]) * dtype.itemsize
    try:
        size = path.stat().st_size
        if size != expected:
            raise DataError(
                f"{path} has {size} bytes where the manifest says {expected}; delete {folder} and prepare the data again"
            )
        tokens = np.memmap(path, dtype=dtype, mode="r")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); delete {folder} and prepare the data again") from error
    if verify and hashlib.sha256(tokens.data).hexdigest() != described["sha256"]:
        raise DataError(f"{path} is damaged (its SHA-256 differs from the manifest); delete {folder} and prepare the data again")
    return tokens
