"""Bits per byte and perplexity of a model on text.

Bits per byte is the length, in bits, of the text compressed by the model, over its length in UTF-8 bytes: the one number
by which models with different tokenizers compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from owngpt.errors import DataError, UsageError
from owngpt.evaluate.windows import IGNORED, Window, batches, windows
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096
"""Positions the model sees in one call: enough to keep the processor busy, few enough for a small memory."""
LOGIT_BYTES = 64 * 2**20
"""Most memory for the logits of one chunk."""

Progress = Callable[[int], None]
"""Called with the number of tokens scored so far."""


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text. Every token is scored exactly once, every byte is counted."""

    bits_per_byte: float
    """Sum of -log2 P(token) over all tokens / UTF-8 bytes of the text."""
    perplexity: float
    """e^loss; depends on the tokenizer."""
    loss: float
    """Mean -ln P(token), in nats."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the text that was scored."""
    context_length: int
    """Tokens of a window."""
    stride: int
    """Tokens between the starts of windows: a token has at least context_length - stride tokens of history where the
    document has them."""
    documents: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def score_text(
    model: GPT,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    context_length: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score documents with a sliding window; they are independent of each other and streamed, never all in memory.

    The first token of a document is predicted from the token that begins a text (for our tokenizers the end of the text
    before). Where a tokenizer has none, a document's first token costs ln V nats, a uniform code, so that no byte is free.

    :param context_length: tokens of a window, by default the model's context length.
    :param stride: tokens between windows, by default half the window. Smaller is slower and a little better.
    :raises UsageError: when context_length or stride are out of range.
    :raises DataError: when there is no text.
    """
    context_length, stride = _checked_window(model, context_length, stride)
    documents = _Documents(tokenizer, texts)
    total, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        pieces = documents.windows(context_length, stride)
        for inputs, targets in batches(pieces, BATCH_TOKENS):
            nats, count = _score_batch(model, inputs, targets)
            total, tokens = total + nats, tokens + count
            if progress is not None:
                progress(tokens)
    finally:
        model.train(was_training)
    if documents.bytes == 0:
        raise DataError("there is no text to score: every document is empty")
    total += documents.unconditioned * math.log(model.config.vocab_size)
    return _score(total, tokens + documents.unconditioned, documents, context_length, stride)


def _score(nats: float, tokens: int, documents: _Documents, context_length: int, stride: int) -> Score:
    loss = nats / tokens
    return Score(
        bits_per_byte=nats / math.log(2) / documents.bytes,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        loss=loss,
        tokens=tokens,
        bytes=documents.bytes,
        context_length=context_length,
        stride=stride,
        documents=documents.count,
    )


class _Documents:
    """Tokenizes documents as they are asked for and counts them."""

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        self.count = 0
        self.bytes = 0
        self.unconditioned = 0
        """First tokens that had nothing to be predicted from."""

    def windows(self, context_length: int, stride: int) -> Iterator[Window]:
        """The windows of all documents that are not empty."""
        start = self._tokenizer.begin_of_text_id
        for text in self._texts:
            token_ids = self._tokenizer.encode(text)
            if not token_ids:
                continue
            self.count += 1
            self.bytes += len(text.encode("utf-8"))
            if start is None:
                self.unconditioned += 1
            else:
                token_ids = [start, *token_ids]
            yield from windows(token_ids, context_length=context_length, stride=stride)


def _score_batch(model: GPT, inputs: Tensor, targets: Tensor) -> tuple[float, int]:
    """Sum of -ln P over the targets that count, in float64, and their number. Logits of other positions are not computed."""
    device = model.embedding.weight.device
    inputs, targets = inputs.to(device), targets.to(device)
    rows = max(1, LOGIT_BYTES // (4 * model.config.vocab_size))
    total = 0.0
    with torch.inference_mode():
        scored = targets != IGNORED
        hidden, wanted = model(inputs)[scored], targets[scored]  # (N, C), (N,)
        for start in range(0, len(wanted), rows):
            logits = model.head(hidden[start : start + rows])
            total += cross_entropy(logits, wanted[start : start + rows], reduction="none").double().sum().item()
    return total, len(wanted)


def _checked_window(model: GPT, context_length: int | None, stride: int | None) -> tuple[int, int]:
    most = model.config.context_length
    context_length = most if context_length is None else context_length
    if context_length < 1:
        raise UsageError(f"context_length is {context_length}; it must be at least 1")
    if context_length > most:
        raise UsageError(
            f"context_length {context_length} is longer than the model's {most}; use --context-length {most} or less"
        )
    stride = max(1, context_length // 2) if stride is None else stride
    if not 1 <= stride <= context_length:
        raise UsageError(f"stride is {stride}; it must be between 1 and the context length {context_length}")
    return context_length, stride
