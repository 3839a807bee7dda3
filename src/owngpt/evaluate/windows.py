"""Cut a document into overlapping windows so that every token is scored once, with history before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Target of a position that is not scored."""


@dataclass(frozen=True)
class Window:
    """A piece of a document as the model sees it."""

    inputs: Sequence[int]
    """t tokens, t at most the context length."""
    targets: Sequence[int]
    """The token after each input."""
    first_scored: int
    """Targets before this index were scored by an earlier window."""


def windows(token_ids: Sequence[int], *, context_length: int, stride: int) -> Iterator[Window]:
    """The windows of one document.

    Each begins ``stride`` tokens after the one before and scores the targets that are new to it. The last one is moved
    back to end with the document, so that its tokens have as much history as fits.

    :param token_ids: the document; its first token is history only.
    """
    count = len(token_ids) - 1  # targets
    scored = 0
    while scored < count:
        end = min(count, scored + (context_length if scored == 0 else stride))
        start = max(0, end - context_length)
        yield Window(token_ids[start:end], token_ids[start + 1 : end + 1], scored - start)
        scored = end


def batches(pieces: Iterable[Window], tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows side by side, at most ``tokens`` positions (padding included) in a batch unless one window alone is longer.

    Padding stands after the text, where a causal model's other positions cannot see it.

    :returns: inputs and targets, (B, T) int64 each; targets that are not to be scored are :data:`IGNORED`.
    """
    waiting: list[Window] = []
    longest = 0
    for window in pieces:
        longest = max(longest, len(window.inputs))
        if waiting and longest * (len(waiting) + 1) > tokens:
            yield _stack(waiting)
            waiting, longest = [], len(window.inputs)
        waiting.append(window)
    if waiting:
        yield _stack(waiting)


def _stack(group: list[Window]) -> tuple[Tensor, Tensor]:
    longest = max(len(window.inputs) for window in group)
    inputs = torch.zeros(len(group), longest, dtype=torch.int64)
    targets = torch.full((len(group), longest), IGNORED, dtype=torch.int64)
    for row, window in enumerate(group):
        length, first = len(window.inputs), window.first_scored
        inputs[row, :length] = torch.tensor(window.inputs)
        targets[row, first:length] = torch.tensor(window.targets[first:])
    return inputs, targets
