"""Encoding on all cores: processes that each encode with the same tokenizer, and answer in the order in which they were asked.

A request holds a uint32 count n, n uint32 sizes in bytes, and the UTF-8 texts; an answer likewise n sizes in tokens and the
uint32 token ids.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from owngpt.data.encoder import BulkEncoder, Encoded
from owngpt.data.processes import Processes, serve
from owngpt.text.tokenizer import Tokenizer

Batch = TypeVar("Batch")
_UINT32 = np.dtype("<u4")


class EncoderPool:
    """Encodes batches of texts with `processes` processes; a context manager."""

    def __init__(self, tokenizer: Tokenizer, processes: int) -> None:
        self._tokenizer_folder = tempfile.TemporaryDirectory(prefix="owngpt-")
        tokenizer.save(self._tokenizer_folder.name)
        self._processes = Processes("owngpt.data.encoder_pool", [self._tokenizer_folder.name], processes)
        self._here = BulkEncoder(tokenizer)

    def __enter__(self) -> EncoderPool:
        self._processes.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._processes.__exit__(kind, error, traceback)
        self._tokenizer_folder.cleanup()

    def map(self, batches: Iterable[Batch], texts_of: Callable[[Batch], Sequence[str]]) -> Iterator[tuple[Batch, Encoded]]:
        """Each batch with its encoded texts, in order; a few batches are read ahead."""
        return self._processes.map(
            batches,
            request=lambda batch: _frame([text.encode("utf-8") for text in texts_of(batch)]),
            parsed=_encoded,
            here=lambda batch: self._here.encode(texts_of(batch)),
        )


def _frame(contents: Sequence[bytes]) -> bytes:
    return _head([len(content) for content in contents]) + b"".join(contents)


def _head(sizes: Sequence[int] | np.ndarray) -> bytes:
    return np.concatenate([[len(sizes)], sizes]).astype(_UINT32).tobytes()


def _parts(frame: bytes) -> tuple[np.ndarray, memoryview]:
    """The sizes in a frame, (n,) uint32, and its content."""
    count = int.from_bytes(frame[: _UINT32.itemsize], "little")
    end = _UINT32.itemsize * (1 + count)
    return np.frombuffer(frame[_UINT32.itemsize : end], dtype=_UINT32), memoryview(frame)[end:]


def _encoded(frame: bytes) -> Encoded:
    counts, content = _parts(frame)
    return Encoded(np.frombuffer(content, dtype=_UINT32), counts.astype(np.int64))


def _serve(tokenizer_folder: Path) -> None:
    encoder = BulkEncoder(Tokenizer.load(tokenizer_folder))

    def answer(request: bytes) -> bytes:
        sizes, content = _parts(request)
        ends = np.cumsum(sizes, dtype=np.int64).tolist()
        encoded = encoder.encode([str(content[low:high], "utf-8") for low, high in zip([0, *ends], ends, strict=False)])
        return _head(encoded.counts) + encoded.ids.astype(_UINT32).tobytes()

    serve(answer)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
