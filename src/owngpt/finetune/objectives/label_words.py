"""Classes by their names: the model answers a text with its label, in words that it knows already.

Where a few examples must do, this beats a head that begins from nothing, and what comes out is an ordinary language model. A
text is what the user says and its label what the assistant answers; without a chat template "Label:" and the label follow it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from owngpt.errors import DataError
from owngpt.finetune.examples.example import Chat, Completion, Labelled, Origin
from owngpt.finetune.objectives.learned_tokens import sequence_log_probabilities, without_dropout
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.sequences.batches import make_batch
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.model.gpt import GPT

BATCH_TOKENS = 4096
"""Read in one forward pass, about."""
LIKELIEST = 4
"""Labels that are read to their end at first, by what their first token says."""


class WordRenderer(Renderer):
    """Encodes a text with a label as the text and, to be learned, the label's words."""

    def _labelled(self, example: Labelled) -> Encoded:
        plain = super()._labelled(example)  # refuses labels that are not known
        (sequence,) = self.encode(self.answered(example))
        return Encoded(sequence.token_ids, sequence.learned, example.origin, plain.label)

    def answered(self, example: Labelled) -> Chat | Completion:
        """The example as the conversation, or the text, that shows it."""
        if self.template is None and not self.tokenizer.chat_template and not self.tokenizer.named_chat_templates:
            return Completion(f"{example.text}\n\nLabel:", f" {example.label}", example.origin)
        said = ({"role": "user", "content": example.text}, {"role": "assistant", "content": example.label})
        return Chat(said, example.origin)


class LabelWords:
    """Finds the label that a model would most probably answer."""

    def __init__(self, renderer: WordRenderer, labels: Sequence[str]) -> None:
        """:raises DataError: a label is not told apart from another by its words."""
        self._renderer, self.labels = renderer, tuple(labels)
        shown = [renderer.encode(Labelled("x", label, Origin("labels", index + 1)))[0] for index, label in enumerate(labels)]
        self.words = [sequence.token_ids[_prompt_length(sequence) :] for sequence in shown]
        """(W,) int64 of each label: its tokens and what ends an answer."""
        if len({words.tobytes() for words in self.words}) < len(labels):
            raise DataError("two labels are the same words to the tokenizer; call one of them otherwise")

    def guess(self, model: GPT, texts: Sequence[str]) -> list[str]:
        """The most probable label of each text."""
        examples = [Labelled(text, self.labels[0], Origin("text", index + 1)) for index, text in enumerate(texts)]
        sequences = [self._renderer.encode(example)[0] for example in examples]
        return [self.labels[int(scores.argmax())] for scores in self.scores(model, sequences)]

    def scores(self, model: GPT, sequences: Sequence[Encoded], deadline: float | None = None) -> Iterator[Tensor]:
        """For each text (labels,) float32: log-probability of each label as its answer, in nats; minus infinity for labels
        that cannot be the most probable one, and are not the text's own.

        :param sequences: of :class:`WordRenderer`.
        :param deadline: of ``time.monotonic()``: no further text is read after it.
        """
        for sequence in sequences:
            yield self._scores_of(model, sequence.token_ids[: _prompt_length(sequence)], sequence.label)
            if deadline is not None and time.monotonic() >= deadline:
                return

    @torch.no_grad()
    def _scores_of(self, model: GPT, prompt: np.ndarray, own: int) -> Tensor:
        """A label is at most as probable as its first token, so that few of many need be read to their end."""
        with without_dropout(model):
            ids = torch.from_numpy(prompt)[None].to(model.embedding.weight.device)
            bounds = model.head(model(ids)[0, -1]).log_softmax(-1).cpu()[[int(words[0]) for words in self.words]]
            order = bounds.argsort(descending=True, stable=True).tolist()
            result = torch.full((len(order),), -torch.inf)
            first = [label for place, label in enumerate(order) if place < LIKELIEST or label == own]
            rest = [label for label in order if label not in first]
            result[first] = self._full(model, prompt, first)
            if rest and float(bounds[rest[0]]) > float(result.max()):
                result[rest] = self._full(model, prompt, rest)
        return result

    def _full(self, model: GPT, prompt: np.ndarray, labels: Sequence[int]) -> Tensor:
        """(len(labels),) log-probability of all words of each label."""
        parts = []
        size = max(1, BATCH_TOKENS // (len(prompt) + max(len(words) for words in self.words)))
        for start in range(0, len(labels), size):
            rows = [[_joined(prompt, self.words[label])] for label in labels[start : start + size]]
            batch = make_batch(rows, 0.0, packed=False, context_length=model.config.context_length)
            owners = torch.arange(len(rows))[:, None].expand(batch.inputs.shape)
            parts.append(sequence_log_probabilities(model, batch, owners, len(rows)).cpu())
        return torch.cat(parts)


def _prompt_length(sequence: Encoded) -> int:
    """Tokens before the answer."""
    return int(np.flatnonzero(sequence.learned)[0])


def _joined(prompt: np.ndarray, words: np.ndarray) -> Encoded:
    ids = np.concatenate([prompt, words])
    return Encoded(ids, np.arange(len(ids)) >= len(prompt), Origin("label", 0))
