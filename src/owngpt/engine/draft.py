"""A small model that guesses how texts go on, for :mod:`owngpt.engine.speculation`. It keeps a cache of its own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from owngpt.engine.layout import Part
from owngpt.engine.runner import Runner
from owngpt.errors import UsageError
from owngpt.text.tokenizer import Tokenizer

PIECE = 256
"""Most tokens of a text that are read in one step, so that a long prompt does not hold up the others."""
Key = TypeVar("Key", bound=Hashable)


@dataclass
class _Text:
    """What the cache holds of one text."""

    blocks: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    """Whose keys and values are there; guesses may be among the last."""
    settled: int = 0
    """The first of them, which are known to be the text's own."""


class DraftModel:
    """Writes a few likeliest tokens after each of several texts."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, *, for_tokenizer: Tokenizer) -> None:
        """
        :param runner: the small model.
        :param tokenizer: its own.
        :param for_tokenizer: that of the model which checks the guesses.
        :raises UsageError: the tokenizers differ, so that guesses would mean something else.
        """
        if tokenizer.fingerprint != for_tokenizer.fingerprint:
            raise UsageError("the draft model has another tokenizer than the model; use one of the same family")
        self._runner, self._vocabulary = runner, tokenizer.vocab_size
        self._free = list(range(runner.blocks - 1, 0, -1))
        self._texts: dict[Hashable, _Text] = {}

    def guess(self, asked: Mapping[Key, tuple[Sequence[int], int]]) -> dict[Key, list[int]]:
        """Guesses for texts, each with its tokens so far and how many to guess.

        A text that is too long for the model or its memory, or that is still being read, gets none.
        """
        ready = {}
        for key, (token_ids, most) in asked.items():
            text = self._texts.setdefault(key, _Text())
            self._settle(text, token_ids)
            if self._has_room(text, len(token_ids) + most) and self._reads(text, token_ids):
                ready[key] = most
        guesses: dict[Key, list[int]] = {key: [] for key in ready}
        inputs = {key: list(asked[key][0][len(self._texts[key].token_ids) :]) for key in ready}
        while inputs:
            logits = self._runner.run([self._part(self._texts[key], new) for key, new in inputs.items()])
            best = logits[:, : self._vocabulary].argmax(1).tolist()
            for (key, new), token_id in zip(inputs.items(), best, strict=True):
                self._texts[key].token_ids.extend(new)
                guesses[key].append(token_id)
            inputs = {key: [guesses[key][-1]] for key in inputs if len(guesses[key]) < ready[key]}
        return guesses

    def forget(self, key: Hashable) -> None:
        """A text has ended: its memory is free."""
        text = self._texts.pop(key, None)
        if text is not None:
            self._free.extend(text.blocks)

    @property
    def free_blocks(self) -> int:
        """Blocks that no text holds."""
        return len(self._free)

    def _settle(self, text: _Text, token_ids: Sequence[int]) -> None:
        """Drop guesses that turned out wrong; the last token is left to be computed, since only computing gives logits."""
        end = min(len(text.token_ids), len(token_ids) - 1)
        same = next((i for i in range(min(text.settled, end), end) if text.token_ids[i] != token_ids[i]), end)
        del text.token_ids[same:]
        text.settled = same

    def _has_room(self, text: _Text, tokens: int) -> bool:
        if tokens > self._runner.config.context_length:
            return False
        missing = -(-tokens // self._runner.block_size) - len(text.blocks)
        if missing > len(self._free):
            return False
        text.blocks.extend(self._free.pop() for _ in range(missing))
        return True

    def _reads(self, text: _Text, token_ids: Sequence[int]) -> bool:
        """Whether little of the text is left to read; else reads a piece of it."""
        start = len(text.token_ids)
        if len(token_ids) - start <= PIECE:
            return True
        piece = list(token_ids[start : start + PIECE])
        self._runner.run([Part(piece, start, text.blocks, 0)])
        text.token_ids.extend(piece)
        text.settled = len(text.token_ids)
        return False

    def _part(self, text: _Text, new: list[int]) -> Part:
        return Part(new, len(text.token_ids), text.blocks)
