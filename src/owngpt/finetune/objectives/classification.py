"""Classes instead of tokens: a small head reads the last token's hidden state (GPT-1, Radford et al. 2018, section 3.2).

The head is a part of the model, ``score``, laid out as the ``ForSequenceClassification`` models of transformers have it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from owngpt.data.batches import Batch
from owngpt.errors import UsageError
from owngpt.finetune.objectives.learned_tokens import learned_tokens
from owngpt.model.gpt import GPT
from owngpt.model.linear import Linear

HEAD = "score"
DEVIATION = 0.02
"""Of the head's first weights, as transformers draws them."""


def attach_head(model: GPT, classes: int, *, seed: int) -> Linear:
    """Give a model a trainable head over classes, in place; where adapters are attached, afterwards. The head over tokens is
    no longer trained.

    :raises UsageError: there are fewer than two classes.
    """
    if classes < 2:
        raise UsageError(f"there are {classes} labels; at least 2 are needed to tell texts apart")
    embedding = model.embedding.weight
    head = Linear(model.config.hidden_size, classes, False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, DEVIATION, generator=generator)
    model.add_module(HEAD, head.to(embedding.device))
    for unused in (model.output_head, model.head_bias):
        if unused is not None:
            unused.requires_grad_(False)
    return head


def head_of(model: GPT) -> Linear | None:
    """The head over classes, where the model has one."""
    head = getattr(model, HEAD, None)
    return head if isinstance(head, Linear) else None


class Classification:
    """Cross-entropy of each text's class. Targets of a batch are classes, at the last token of each text."""

    def __init__(self) -> None:
        self._seen = self._right = 0

    def count(self, batch: Batch) -> int:
        """Texts."""
        return int((batch.targets >= 0).sum())

    def loss(self, model: GPT, batch: Batch, scale: float) -> Tensor:
        """scale * sum of the cross-entropies, nats, float32."""
        logits, classes = class_logits(model, batch)
        self._seen += len(classes)
        self._right += int((logits.detach().argmax(-1) == classes).sum())
        return scale * functional.cross_entropy(logits, classes, reduction="sum")

    def metrics(self) -> dict[str, float]:
        """``accuracy`` since the last call."""
        result = {"accuracy": self._right / self._seen} if self._seen else {}
        self._seen = self._right = 0
        return result


def class_logits(model: GPT, batch: Batch) -> tuple[Tensor, Tensor]:
    """(N, K) float32 over classes, with gradient, and (N,) the classes, of the N texts of a batch, row by row."""
    head = head_of(model)
    assert head is not None, "attach_head comes first"
    learned = learned_tokens(model, batch)
    return functional.linear(learned.hidden.float(), head.weight.float()), learned.targets
