"""Requests as texts: whole, or piece by piece."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

from owngpt.config.generation import GenerationConfig
from owngpt.engine.engine import Engine
from owngpt.engine.request import Failed, Finished, Piece, Request, Stream
from owngpt.engine.sequence import Generation
from owngpt.errors import UsageError


def generate(
    engine: Engine,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    end_ids: frozenset[int] | None = None,
    adapter: str | None = None,
) -> list[Generation]:
    """Write ``config.num_return_sequences`` continuations of a prompt.

    :param prompt_ids: the prompt's tokens; empty starts a new document, if the tokenizer has a token for that.
    :param end_ids: tokens that end a text; by default the tokenizer's ``stop_ids``.
    :raises UsageError: an option is out of range, or the prompt does not fit.
    """
    stream = engine.submit(Request(tuple(prompt_ids), config, end_ids, adapter))
    try:
        return stream.result()
    except BaseException:  # also Ctrl-C: nobody will read it
        stream.cancel()
        raise


def generate_stream(
    engine: Engine,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    end_ids: frozenset[int] | None = None,
    adapter: str | None = None,
) -> TextStream:
    """Write one continuation, handing on its text as it comes; the same text as :func:`generate` with the same seed.

    :raises UsageError: as :func:`generate`, and when several sequences or beams are asked for, which cannot stream.
    """
    for name in ("num_return_sequences", "num_beams"):
        if getattr(config, name) != 1:
            raise UsageError(
                f"{name} is {getattr(config, name)}; a stream is a single text: use 1, or generate without streaming"
            )
    return TextStream(engine.submit(Request(tuple(prompt_ids), config, end_ids, adapter)))


class TextStream(Iterator[str]):
    """The pieces of one text, each valid UTF-8 and not empty. Dropping or closing it stops the work."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._generation: Generation | None = None
        self._finalizer = weakref.finalize(self, stream.cancel)

    def __next__(self) -> str:
        for event in self._stream:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                self._generation = event.generation
                self._finalizer.detach()
            elif isinstance(event, Piece) and event.text:
                return event.text
        raise StopIteration

    def close(self) -> None:
        """Stop writing."""
        self._finalizer()

    @property
    def generation(self) -> Generation:
        """The whole text and why it ended; only after the last piece."""
        assert self._generation is not None, "the text has not ended"
        return self._generation
