"""One text being written: its tokens, the text they are so far, and why it ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from owngpt.config.generation import GenerationConfig
from owngpt.engine.stop import StopMatcher
from owngpt.text.tokenizer import Tokenizer

StopReason = Literal["end", "stop", "length", "context"]
"""The model, or its constraint, ended the text; a stop string or token came; ``max_new_tokens`` were written; the model's
context is full."""


@dataclass(frozen=True)
class Generation:
    """A finished text."""

    text: str
    """What was written, without the prompt, the stop string, and a character that the end of the text cut in two."""
    token_ids: tuple[int, ...]
    """The tokens that were written, a stop token and those of a stop string included, the end token not."""
    stop_reason: StopReason


class TextSequence:
    """Turns the tokens of one sequence into text, piece by piece, and notices its end."""

    def __init__(self, tokenizer: Tokenizer, config: GenerationConfig, end_ids: Collection[int], limit: int) -> None:
        """:param limit: most tokens that fit the model's context after the prompt."""
        self._decoder = tokenizer.stream()
        self._matcher = StopMatcher(config.stop)
        self._end_ids, self._stop_ids = end_ids, frozenset(config.stop_token_ids)
        self._most = min(config.max_new_tokens, limit)
        self._limit_reason: StopReason = "length" if config.max_new_tokens <= limit else "context"
        self._text: list[str] = []
        self.token_ids: list[int] = []
        self.stop_reason: StopReason | None = None

    def push(self, token_id: int) -> str:
        """Append a token. :returns: the text that it lets us show, whole characters only, perhaps none."""
        assert self.stop_reason is None, "the sequence has ended"
        piece = ""
        if token_id in self._end_ids:
            self.stop_reason = "end"
        else:
            self.token_ids.append(token_id)
            if token_id in self._stop_ids:
                self.stop_reason = "stop"
            else:
                piece = self._matcher.push(self._decoder.push(token_id))
            if self.stop_reason is None and not self._matcher.matched and len(self.token_ids) >= self._most:
                self.stop_reason = self._limit_reason
        if self.stop_reason is not None:
            piece += self._last_piece()
        if self._matcher.matched:
            self.stop_reason = "stop"
        self._text.append(piece)
        return piece

    def finish(self) -> str:
        """The text is complete without a token that ends it. :returns: what was held back."""
        assert self.stop_reason is None, "the sequence has ended"
        self.stop_reason = "end"
        piece = self._last_piece()
        if self._matcher.matched:
            self.stop_reason = "stop"
        self._text.append(piece)
        return piece

    def _last_piece(self) -> str:
        """The text ends here: nothing more can complete a character or a stop string."""
        return self._matcher.push(self._decoder.finish(whole=True)) + self._matcher.finish()

    def result(self) -> Generation:
        """What was written; only once the sequence has ended."""
        assert self.stop_reason is not None, "the sequence has not ended"
        return Generation("".join(self._text), tuple(self.token_ids), self.stop_reason)


def replay(sequence: TextSequence, token_ids: Sequence[int]) -> TextSequence:
    """Push tokens until they or the sequence end, for a search that knows the tokens first."""
    for token_id in token_ids:
        if sequence.stop_reason is not None:
            break
        sequence.push(token_id)
    return sequence
