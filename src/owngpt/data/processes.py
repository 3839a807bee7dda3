"""Processes that help: each answers one request after the other over its pipes, and the answers come in the order of asking.

Threads would not do where the work holds the interpreter. The processes are started as commands rather than through
multiprocessing, which would run a person's script again in each. What is answered does not depend on how many there are.

Requests and answers are frames: a uint64 count of bytes, and the bytes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import BinaryIO, TypeVar, cast

Item = TypeVar("Item")
Answer = TypeVar("Answer")
_SIZE_BYTES = 8
_WAITING = 2
"""Requests for each process, so that it has the next when it is done with one."""


class Processes:
    """Some processes that run one module, whose main function calls :func:`serve`; a context manager."""

    def __init__(self, module: str, arguments: Sequence[str], count: int) -> None:
        self._command, self._count = [sys.executable, "-m", module, *arguments], count
        self.workers: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        self._lock = Lock()

    def __enter__(self) -> Processes:
        for _ in range(self._count):
            worker = _start(self._command)
            if worker is not None:
                self.workers.append(worker)
            self._idle.put(worker)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for worker in self.workers:
            if kind is not None:
                worker.kill()
            with suppress(OSError):
                worker.stdin.close()  # type: ignore[union-attr]  # a pipe; its end tells the process to go
            worker.wait()
            worker.stdout.close()  # type: ignore[union-attr]

    def map(
        self,
        items: Iterable[Item],
        request: Callable[[Item], bytes],
        parsed: Callable[[bytes], Answer],
        here: Callable[[Item], Answer],
    ) -> Iterator[tuple[Item, Answer]]:
        """Each item with its answer, in order; a few items are read ahead.

        :param here: answers in this process, in place of one that could not be started or has ended (for lack of memory,
            mostly, or over an error that comes again here); by one thread at a time.
        """
        threads = ThreadPoolExecutor(self._count)
        waiting: deque[tuple[Item, Future[Answer]]] = deque()
        try:
            for item in items:
                waiting.append((item, threads.submit(self._answer, item, request, parsed, here)))
                if len(waiting) > _WAITING * self._count:
                    first, answer = waiting.popleft()
                    yield first, answer.result()
            while waiting:
                first, answer = waiting.popleft()
                yield first, answer.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _answer(
        self,
        item: Item,
        request: Callable[[Item], bytes],
        parsed: Callable[[bytes], Answer],
        here: Callable[[Item], Answer],
    ) -> Answer:
        worker = self._idle.get()
        try:
            if worker is not None:
                with suppress(OSError, EOFError):
                    return parsed(_ask(worker, request(item)))
                worker = None
            with self._lock:
                return here(item)
        finally:
            self._idle.put(worker)


def serve(answer: Callable[[bytes], bytes]) -> None:
    """What each process does: answer requests until there is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asked, who then closes the pipe
    with suppress(BrokenPipeError, EOFError):
        while True:
            _write(sys.stdout.buffer, answer(_read(sys.stdin.buffer)))


def _start(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment)
    except OSError:
        return None


def _ask(worker: subprocess.Popen[bytes], request: bytes) -> bytes:
    _write(cast("BinaryIO", worker.stdin), request)
    return _read(cast("BinaryIO", worker.stdout))


def _write(stream: BinaryIO, content: bytes) -> None:
    stream.write(len(content).to_bytes(_SIZE_BYTES, "little"))
    stream.write(content)
    stream.flush()


def _read(stream: BinaryIO) -> bytes:
    """:raises EOFError: there is no more, or the other side has ended in the middle."""
    size = int.from_bytes(_exactly(stream, _SIZE_BYTES), "little")
    return _exactly(stream, size)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content
