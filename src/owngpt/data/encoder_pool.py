"""Encoding on all cores: processes that each encode with the same tokenizer, and answer in the order in which they were asked.

Threads would not do: most of the work is cutting text into words and looking these up, which holds the interpreter. The
processes are started as commands rather than through multiprocessing, which would run a person's script again in each.
What is encoded does not depend on how many there are.

Between the processes run frames: a uint32 count n, n uint32 sizes, and the content, UTF-8 texts one way (sizes in bytes)
and uint32 token ids the other way (sizes in tokens).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import BinaryIO, TypeVar, cast

import numpy as np

from owngpt.data.encoder import BulkEncoder, Encoded
from owngpt.text.tokenizer import Tokenizer

Batch = TypeVar("Batch")
_UINT32 = np.dtype("<u4")
_WAITING_BATCHES = 2
"""For each process, so that it has the next batch when it is done with one."""


class EncoderPool:
    """Encodes batches of texts with `processes` processes; a context manager."""

    def __init__(self, tokenizer: Tokenizer, processes: int) -> None:
        self._processes = processes
        self._tokenizer_folder = tempfile.TemporaryDirectory(prefix="owngpt-")
        tokenizer.save(self._tokenizer_folder.name)
        self._workers: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        self._here, self._lock = BulkEncoder(tokenizer), Lock()

    def __enter__(self) -> EncoderPool:
        for _ in range(self._processes):
            worker = _start(Path(self._tokenizer_folder.name))
            if worker is not None:
                self._workers.append(worker)
            self._idle.put(worker)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for worker in self._workers:
            if kind is not None:
                worker.kill()
            with suppress(OSError):
                worker.stdin.close()  # type: ignore[union-attr]  # a pipe; its end tells the process to go
            worker.wait()
            worker.stdout.close()  # type: ignore[union-attr]
        self._tokenizer_folder.cleanup()

    def map(self, batches: Iterable[Batch], texts_of: Callable[[Batch], Sequence[str]]) -> Iterator[tuple[Batch, Encoded]]:
        """Each batch with its encoded texts, in order; a few batches are read ahead."""
        threads = ThreadPoolExecutor(self._processes)
        waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, threads.submit(self._encode, texts_of(batch))))
                if len(waiting) > _WAITING_BATCHES * self._processes:
                    first, encoded = waiting.popleft()
                    yield first, encoded.result()
            while waiting:
                first, encoded = waiting.popleft()
                yield first, encoded.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _encode(self, texts: Sequence[str]) -> Encoded:
        """By a process, or here in place of one that could not be started or has ended (for lack of memory, mostly)."""
        worker = self._idle.get()
        try:
            if worker is not None:
                with suppress(OSError, EOFError):
                    return _ask(worker, texts)
                worker = None
            with self._lock:
                return self._here.encode(texts)
        finally:
            self._idle.put(worker)


def _start(tokenizer_folder: Path) -> subprocess.Popen[bytes] | None:
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "owngpt.data.encoder_pool", str(tokenizer_folder)]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
    except OSError:
        return None


def _ask(worker: subprocess.Popen[bytes], texts: Sequence[str]) -> Encoded:
    to, back = cast("BinaryIO", worker.stdin), cast("BinaryIO", worker.stdout)
    contents = [text.encode("utf-8") for text in texts]
    _write_frame(to, np.array([len(content) for content in contents], dtype=_UINT32), b"".join(contents))
    counts = _read_sizes(back)
    if counts is None:
        raise EOFError
    ids = np.frombuffer(_read(back, int(counts.sum(dtype=np.int64)) * _UINT32.itemsize), dtype=_UINT32)
    return Encoded(ids, counts.astype(np.int64))


def _write_frame(stream: BinaryIO, sizes: np.ndarray, content: bytes) -> None:
    stream.write(np.array([len(sizes)], dtype=_UINT32).tobytes())
    stream.write(sizes.astype(_UINT32).tobytes())
    stream.write(content)
    stream.flush()


def _read_sizes(stream: BinaryIO) -> np.ndarray | None:
    """The head of the next frame: (n,) uint32, none at the end of the stream."""
    head = stream.read(_UINT32.itemsize)
    if len(head) < _UINT32.itemsize:
        return None
    return np.frombuffer(_read(stream, int.from_bytes(head, "little") * _UINT32.itemsize), dtype=_UINT32)


def _read(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _serve(tokenizer_folder: Path) -> None:
    """What each process does: read texts, write their token ids, until there is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asked, who then closes the pipe
    encoder = BulkEncoder(Tokenizer.load(tokenizer_folder))
    while (sizes := _read_sizes(sys.stdin.buffer)) is not None:
        content = _read(sys.stdin.buffer, int(sizes.sum(dtype=np.int64)))
        ends = np.cumsum(sizes, dtype=np.int64).tolist()
        texts = [str(content[low:high], "utf-8") for low, high in zip([0, *ends], ends, strict=False)]
        encoded = encoder.encode(texts)
        _write_frame(sys.stdout.buffer, encoded.counts, encoded.ids.astype(_UINT32).tobytes())


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        _serve(Path(sys.argv[1]))
