"""What is measured: sizes of prompts and texts, and the prompts themselves, the same for every side."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from owngpt.errors import UsageError

SHORTEST_CONTEXT = 32
"""Tokens of context below which nothing could be measured."""


@dataclass(frozen=True)
class Load:
    """Requests that arrive together: so many, each with a prompt of its own, each writing a fixed number of tokens."""

    requests: int
    prompt: int
    new: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.requests} × {self.prompt} in, {self.new} out"


@dataclass(frozen=True)
class Sizes:
    """Lengths in tokens. The defaults are those of the project's table."""

    prefill: int = 512
    decode_prompt: int = 32
    decode_new: int = 128
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    loads: tuple[Load, ...] = (Load(16, 128, 128), Load(64, 128, 64))
    prefix: int = 1024
    prefix_tail: int = 16
    """What follows the shared beginning, different each time."""
    streams: int = 8
    """Texts being written when the long prompt arrives."""
    stream_new: int = 192
    arriving: int = 1024
    resident: Load = Load(8, 960, 64)
    """Requests whose texts are 1,024 tokens in the end, prompt included."""
    idle_seconds: float = 5.0

    def fitted(self, context_length: int) -> Sizes:
        """The same, shortened where a model's context does not hold it.

        :raises UsageError: the context is too short to measure anything.
        """
        if context_length < SHORTEST_CONTEXT:
            raise UsageError(f"the model's context is {context_length} tokens; measuring needs {SHORTEST_CONTEXT} or more")
        most, half = context_length - 1, context_length // 2
        tail = min(self.prefix_tail, context_length // 8)

        def load(wanted: Load) -> Load:
            return Load(wanted.requests, min(wanted.prompt, half), min(wanted.new, half - 1))

        return Sizes(
            prefill=min(self.prefill, most - 1), decode_prompt=min(self.decode_prompt, half),
            decode_new=min(self.decode_new, half - 1), batches=self.batches, loads=tuple(map(load, self.loads)),
            prefix=min(self.prefix, most - 1 - tail), prefix_tail=tail, streams=self.streams,
            stream_new=min(self.stream_new, half - 1), arriving=min(self.arriving, most - 1),
            resident=_whole(self.resident, context_length), idle_seconds=self.idle_seconds,
        )  # fmt: skip

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        both = (load.prompt + load.new for load in (*self.loads, self.resident))
        single = (self.prefill, self.prefix + self.prefix_tail, self.arriving, self.decode_prompt + self.stream_new)
        return max(*both, *single, self.decode_prompt + self.decode_new) + 1

    @property
    def memory(self) -> int:
        """Tokens that a cache must hold for the largest load."""
        decoding = max(self.batches, default=1) * (self.decode_prompt + self.decode_new)
        loads = (load.requests * (load.prompt + load.new) for load in (*self.loads, self.resident))
        arrival = self.streams * (self.decode_prompt + self.stream_new) + self.arriving
        return max(decoding, *loads, arrival, 2 * (self.prefix + self.prefix_tail)) + self.longest

    @property
    def most_requests(self) -> int:
        """Texts written side by side at most."""
        loads = (load.requests for load in (*self.loads, self.resident))
        return max(*self.batches, *loads, self.streams + 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


QUICK = Sizes(
    prefill=64, decode_prompt=16, decode_new=16, batches=(1, 4), loads=(Load(4, 32, 16),), prefix=128, prefix_tail=8,
    streams=3, stream_new=48, arriving=128, resident=Load(2, 112, 16), idle_seconds=0.5,
)  # fmt: skip
"""Shows in a minute that everything runs; its numbers mean little."""


class Prompts:
    """Random tokens, each prompt another: what is not meant to be found in a cache is not."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        """Control tokens lie at the ends of vocabularies; the prompts are from the middle."""
        self._low, self._high = vocab_size // 10, max(vocab_size // 10 + 1, vocab_size * 9 // 10)
        self._random = random.Random(seed)

    def take(self, length: int) -> list[int]:
        """A prompt of that many tokens."""
        return [self._random.randrange(self._low, self._high) for _ in range(length)]

    def several(self, count: int, length: int) -> list[list[int]]:
        """So many prompts."""
        return [self.take(length) for _ in range(count)]


def _whole(load: Load, context_length: int) -> Load:
    new = min(load.new, context_length // 4)
    return Load(load.requests, min(load.prompt, context_length - new - 1), new)
