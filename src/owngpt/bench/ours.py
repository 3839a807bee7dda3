"""Our own side: the engine, asked through its streams as any client asks it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import torch

from owngpt import __version__
from owngpt.bench.open import open_weights, weight_bytes
from owngpt.bench.side import Figures, Prompt, SideSpec, gaps, split_gaps
from owngpt.config.generation import GenerationConfig
from owngpt.engine.request import Failed, Piece, Request, Stream


class OwnGPT:
    """See :class:`owngpt.bench.side.Side`."""

    def __init__(self, spec: SideSpec) -> None:
        torch.set_num_threads(spec.threads)
        self.engine = open_weights(spec.path, spec.weights, spec.most_requests)

    def info(self) -> dict[str, Any]:
        """See :class:`owngpt.bench.side.Side`."""
        return {"version": __version__, "settings": str(self.engine.setup), "weight_bytes": weight_bytes(self.engine)}

    def tune(self, prompt: Prompt) -> dict[str, Any]:
        """The engine has chosen when it was opened."""
        return {}

    def prefill(self, prompt: Prompt) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        began = time.perf_counter()
        times = list(_times(self._submit(prompt, 1)))
        return {"seconds": times[0] - began}

    def write(self, prompts: Sequence[Prompt], new: int) -> Figures:
        """See :class:`owngpt.bench.side.Side`. Requests start in the order in which they came, so all are written between
        the last one's first token and the first one's end."""
        began = time.perf_counter()
        streams = [self._submit(prompt, new) for prompt in prompts]
        last = _Reader(streams[-1])
        if len(streams) == 1:
            last.join()
            first_end = last.times[-1]
        else:
            first_end = list(_times(streams[0]))[-1]
            for stream in streams[1:-1]:
                stream.result()
            last.join()
        seconds = time.perf_counter() - began
        common = [at for at in last.times if at <= first_end]
        figures = {"seconds": seconds}
        if len(common) > 1:
            figures["rate"] = len(streams) * (len(common) - 1) / (common[-1] - common[0])
        return figures

    def prefix(self, cold: Prompt, seen: Prompt) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        return {"cold": self.prefill(cold)["seconds"], "seen": self.prefill(seen)["seconds"]}

    def arrival(self, prompts: Sequence[Prompt], new: int, arriving: Prompt) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        readers = [_Reader(self._submit(prompt, new)) for prompt in prompts]
        while min(len(reader.times) for reader in readers) < new // 3:
            time.sleep(0.005)
        start = time.perf_counter()
        end = next(_times(self._submit(arriving, 1)))
        for reader in readers:
            reader.stream.cancel()
            reader.join()
        return gaps(*split_gaps([reader.times for reader in readers], start, end), end - start)

    def process_id(self) -> int:
        """See :class:`owngpt.bench.side.Side`."""
        return os.getpid()

    def close(self) -> None:
        """See :class:`owngpt.bench.side.Side`."""
        self.engine.close()

    def _submit(self, prompt: Prompt, new: int) -> Stream:
        config = GenerationConfig(max_new_tokens=new, temperature=0.0, ignore_end=True)
        return self.engine.submit(Request(tuple(prompt), config, end_ids=frozenset()))


class _Reader(Thread):
    """Notes when each token of a stream came."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.times: list[float] = []
        self._failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for at in _times(self.stream):
                self.times.append(at)
        except Exception as error:
            self._failure = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self._failure is not None:
            raise self._failure


def _times(stream: Stream) -> Iterator[float]:
    """When each token came.

    :raises OwnGPTError: the request failed.
    """
    for event in stream:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Piece):
            yield time.perf_counter()
