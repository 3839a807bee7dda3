"""Token shards: the corpus as memory-mapped integers, with a manifest that says exactly what they were made from.

A split is a stream `end-of-text, document, end-of-text, document, …, end-of-text`: every document has one in front of it
(what a model sees before the first token) and one behind it (what it must predict to stop).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from owngpt.config.files import storage_errors
from owngpt.data.corpus import Corpus, TextSplit
from owngpt.data.encoder import BulkEncoder, TextEncoder
from owngpt.data.files import MANIFEST, own_folder, read_json, write_json
from owngpt.data.progress import TOKENIZING, Progress, Stage
from owngpt.errors import DataError

FORMAT_VERSION = 1
SHARD_TOKENS = 64 * 2**20
_BATCH_BYTES = 4 * 2**20
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

    `workers` 1 encodes one text after the other; any other number lets the tokenizer use all cores.

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
    encoder = BulkEncoder(tokenizer, threads=workers != 1)
    splits = {}
    with Stage(progress, TOKENIZING, corpus.train.bytes + corpus.validation.bytes) as stage:
        for name, text in (("train", corpus.train), ("validation", corpus.validation)):
            splits[name] = _write_split(target, name, text, tokenizer, encoder, stage)
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


def _write_split(
    folder: Path, name: str, text: TextSplit, tokenizer: TextEncoder, encoder: BulkEncoder, stage: Stage
) -> dict[str, Any]:
    dtype = np.dtype("<u2") if tokenizer.vocab_size <= 2**16 else np.dtype("<u4")
    writer = _ShardWriter(folder, name, dtype)
    documents = byte_count = 0
    with storage_errors(folder), writer:
        for pieces, size in _batches(text):
            tokens, finished = _encode(pieces, encoder, tokenizer.end_of_text_id)
            if documents == 0 and writer.token_count == 0:
                tokens.insert(0, tokenizer.end_of_text_id)
            writer.write(np.array(tokens, dtype=dtype))
            documents += finished
            byte_count += size
            stage.add(size)
    return {
        "tokens": writer.token_count,
        "bytes": byte_count,
        "documents": documents,
        "dtype": dtype.name,
        "shards": writer.shards,
    }


def _batches(text: TextSplit) -> Iterator[tuple[list[tuple[str, bool]], int]]:
    """Pieces of documents, some megabytes at a time: enough to keep every core busy, little enough to hold in memory."""
    pieces: list[tuple[str, bool]] = []
    size = 0
    for piece, last in text.pieces(_PIECE_BYTES):
        pieces.append((piece, last))
        size += len(piece.encode("utf-8")) if not piece.isascii() else len(piece)
        if size >= _BATCH_BYTES:
            yield pieces, size
            pieces, size = [], 0
    if pieces:
        yield pieces, size


def _encode(pieces: list[tuple[str, bool]], encoder: BulkEncoder, end_of_text: int) -> tuple[list[int], int]:
    encoded = encoder.encode_batch([piece for piece, _ in pieces])
    end = [end_of_text]
    tokens = list(chain.from_iterable(chain(ids, end) if last else ids for ids, (_, last) in zip(encoded, pieces, strict=True)))
    return tokens, sum(last for _, last in pieces)


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
