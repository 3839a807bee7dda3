"""What the engine is asked for, and what it tells while it works."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from owngpt.config.generation import GenerationConfig
from owngpt.engine.sequence import Generation
from owngpt.errors import OwnGPTError


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it. Checked when it is submitted."""

    prompt_ids: tuple[int, ...]
    config: GenerationConfig = field(default_factory=GenerationConfig)
    end_ids: frozenset[int] | None = None
    """Tokens that end a text; None takes the tokenizer's."""
    adapter: str | None = None
    """Name of a loaded adapter."""


@dataclass(frozen=True)
class TokenScore:
    """A token and the natural logarithm of its probability, before temperature and truncation."""

    token_id: int
    log_probability: float


@dataclass(frozen=True)
class Piece:
    """One more token of one text."""

    index: int
    """Which of the request's texts."""
    text: str
    """What may be shown now: whole characters, perhaps none."""
    token_id: int
    score: TokenScore | None = None
    """Of the chosen token, where log-probabilities were asked for."""
    top: tuple[TokenScore, ...] = ()
    """The likeliest tokens, most likely first."""


@dataclass(frozen=True)
class Usage:
    """What a request cost."""

    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were not computed again."""
    completion_tokens: int


@dataclass(frozen=True)
class Finished:
    """A text is complete."""

    index: int
    generation: Generation
    usage: Usage


@dataclass(frozen=True)
class Failed:
    """The request ended with an error; no more events follow."""

    error: OwnGPTError


Event = Piece | Finished | Failed


class Stream(Iterator[Event]):
    """The events of one request, in order. Ends after every text has finished, after a failure, or after :meth:`cancel`.

    A reader that stops reading does not hold up the engine: at most ``max_new_tokens`` events a text wait.
    """

    def __init__(self, texts: int, cancel: Callable[[], None]) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._open, self._cancel, self._over = texts, cancel, False

    def __next__(self) -> Event:
        """The next event; waits for it. A failure is an event here, and raised by :meth:`result`."""
        if self._over:
            raise StopIteration
        event = self._events.get()
        if event is None:
            self._over = True
            raise StopIteration
        if isinstance(event, Finished):
            self._open -= 1
        self._over = isinstance(event, Failed) or self._open == 0
        return event

    def put(self, event: Event | None) -> None:
        """The engine's side: hand on an event; None ends a cancelled stream."""
        self._events.put(event)

    def cancel(self) -> None:
        """Stop the request; its memory is free within one step of the engine. The stream ends after what has come already."""
        self._cancel()

    def result(self) -> list[Generation]:
        """Wait for all texts, in the order of their indices.

        :raises OwnGPTError: the request failed.
        """
        finished = {}
        for event in self:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                finished[event.index] = event.generation
        return [finished[index] for index in sorted(finished)]
