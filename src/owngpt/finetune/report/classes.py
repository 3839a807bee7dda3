"""What a network takes held-out texts for: by its head over classes, or by the label that it would answer."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from owngpt.finetune.objectives.class_batches import text_batch
from owngpt.finetune.objectives.classification import class_logits, head_of
from owngpt.finetune.objectives.label_words import LabelWords
from owngpt.finetune.report.labels import Guess
from owngpt.finetune.report.losses import SequenceLoss
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.model.gpt import GPT

TEXTS = 16
"""In one pass."""


@torch.no_grad()
def class_scores(
    network: GPT, texts: Sequence[tuple[int, Encoded]], labels: Sequence[str], deadline: float | None, padding_id: int | None
) -> tuple[list[SequenceLoss], list[Guess]]:
    """Cross-entropy of each text's class, one target a text, and the likeliest class; nothing where there is no head yet.

    :param texts: index in the store, and the text.
    :param labels: the classes in the order of their indices.
    :param deadline: of ``time.monotonic()``; the first texts are always read.
    :param padding_id: as the network was trained with.
    """
    losses: list[SequenceLoss] = []
    guesses: list[Guess] = []
    size = 1 if network.config.turns_by_length else TEXTS
    for first in range(0, len(texts) if head_of(network) is not None else 0, size):
        group = texts[first : first + size]
        batch = text_batch((text for _, text in group), network.config.context_length, packed=False, padding_id=padding_id)
        logits, classes = class_logits(network, batch)
        nats = -logits.log_softmax(-1).gather(1, classes[:, None])[:, 0]
        for (index, text), loss, guess in zip(group, nats.tolist(), logits.argmax(-1).tolist(), strict=True):
            losses.append(SequenceLoss(index, loss, 1))
            guesses.append(Guess(index, labels[text.label], labels[guess]))
        if deadline is not None and time.monotonic() >= deadline:
            break
    return losses, guesses


def word_scores(
    network: GPT, texts: Sequence[tuple[int, Encoded]], words: LabelWords, deadline: float | None
) -> tuple[list[SequenceLoss], list[Guess]]:
    """Negative log-likelihood of each text's label as an answer, its tokens being the targets, and the likeliest label.

    :param texts: index in the store, and the text with its label's words.
    :param deadline: of ``time.monotonic()``; the first text is always read.
    """
    losses: list[SequenceLoss] = []
    guesses: list[Guess] = []
    scores = words.scores(network, [text for _, text in texts], deadline)
    for (index, text), score in zip(texts, scores, strict=False):  # fewer at the deadline
        losses.append(SequenceLoss(index, -float(score[text.label]), text.targets))
        guesses.append(Guess(index, words.labels[text.label], words.labels[int(score.argmax())]))
    return losses, guesses
