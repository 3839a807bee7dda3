"""A model that was tuned to tell classes apart, in use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from owngpt.errors import UsageError
from owngpt.finetune.examples.example import Labelled, Origin
from owngpt.finetune.objectives.class_batches import text_batch
from owngpt.finetune.objectives.classification import HEAD, class_logits, head_of
from owngpt.finetune.objectives.learned_tokens import without_dropout
from owngpt.finetune.sequences.batches import padding_of
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.formats.classifier import ClassifierParts, load_classifier, save_classifier
from owngpt.model.gpt import GPT
from owngpt.model.linear import Linear
from owngpt.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096
"""Read in one forward pass, about."""


class Classifier:
    """Tells which class texts are of."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, labels: Sequence[str]) -> None:
        """:param model: with a head over as many classes (:func:`owngpt.finetune.objectives.classification.attach_head`)."""
        head = head_of(model)
        if head is None or len(head.weight) != len(labels):
            found = "no head over classes" if head is None else f"{len(head.weight)} classes"
            raise UsageError(f"the model has {found}, but there are {len(labels)} labels; they do not belong together")
        self.model, self.tokenizer, self.labels = model, tokenizer, tuple(labels)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Classifier:
        """Open a folder that :meth:`save`, or transformers, wrote.

        :raises ModelFolderError: it is not a classifier, or something in it is missing or damaged.
        """
        parts = load_classifier(folder, dtype=dtype)
        head = Linear(parts.head.shape[1], len(parts.head), False)
        head.weight = torch.nn.Parameter(parts.head)
        parts.model.add_module(HEAD, head)
        return cls(parts.model, parts.tokenizer, parts.labels)

    def save(
        self, folder: str | Path, *, card: str | None = None, dtype: str = "float32", family: str | None = None
    ) -> list[Path]:
        """Write a folder that transformers opens with AutoModelForSequenceClassification; see
        :func:`owngpt.formats.classifier.save_classifier`."""
        head = head_of(self.model)
        assert head is not None
        parts = ClassifierParts(self.model, head.weight, self.labels, self.tokenizer)
        return save_classifier(folder, parts, card=card, dtype=dtype, family=family)

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Tensor:
        """(N, classes) float32. A text that is longer than the model's context is read up to there.

        :raises UsageError: a text is empty.
        """
        sequences = [self._encoded(text, index) for index, text in enumerate(texts)]
        result = torch.empty(len(texts), len(self.labels))
        context = self.model.config.context_length
        with without_dropout(self.model):
            for group in _groups([len(sequence) for sequence in sequences]):
                padding = padding_of(self.tokenizer)
                batch = text_batch([sequences[index] for index in group], context, packed=False, padding_id=padding)
                result[group] = class_logits(self.model, batch)[0].cpu()
        return result

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """(N, classes) float32, in the order of ``labels``.

        :raises UsageError: a text is empty.
        """
        return self.logits(texts).softmax(-1)

    def guess(self, texts: Sequence[str]) -> list[str]:
        """The most probable label of each text.

        :raises UsageError: a text is empty.
        """
        return [self.labels[index] for index in self.logits(texts).argmax(-1).tolist()]

    def _encoded(self, text: str, index: int) -> Encoded:
        ids = self.tokenizer.encode_prompt(text)[: self.model.config.context_length]
        if not ids:
            raise UsageError(f"text {index + 1} is empty; give at least one word")
        return Encoded(np.array(ids, dtype=np.int64), np.zeros(len(ids), dtype=bool), Origin("text", index + 1), 0)


def guess_labels(network: GPT, examples: Sequence[Labelled], *, tokenizer: Tokenizer, labels: Sequence[str]) -> list[str]:
    """The most probable label of each example, for reports."""
    return Classifier(network, tokenizer, labels).guess([example.text for example in examples])


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Texts of nearly one length together, so that little is filled up."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if not groups or (len(groups[-1]) + 1) * longest > BATCH_TOKENS:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups
