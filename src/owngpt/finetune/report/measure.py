"""Measure a network on held-out examples: the same before and after it learns, so that the two can be compared."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from owngpt.config.files import atomic_write_text
from owngpt.errors import DataError
from owngpt.evaluate.windows import IGNORED
from owngpt.finetune.examples.example import Example, Kind
from owngpt.finetune.objectives.label_words import LabelWords, WordRenderer
from owngpt.finetune.report.answers import Answer, Question, answer_limit, question_of
from owngpt.finetune.report.classes import class_scores, word_scores
from owngpt.finetune.report.forgetting import GeneralLoss, general_losses
from owngpt.finetune.report.kinds import kind_of
from owngpt.finetune.report.labels import Guess
from owngpt.finetune.report.losses import SequenceLoss, window_nats, window_of
from owngpt.finetune.report.penalty import write_answers
from owngpt.finetune.sequences.batches import padding_of
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.train.random_state import random_state, set_random_state

MOST_SEQUENCES = 512
MOST_ANSWERS = 64
SHARES = {"loss": 0.25, "general": 0.3}
"""Of the time, for what is measured first; answers have the rest."""


class Sequences(Protocol):
    """What is read of a store of examples."""

    def __len__(self) -> int: ...

    def example(self, index: int) -> Encoded:
        """One sequence."""
        ...


class Encoder(Protocol):
    """What is asked of a renderer."""

    def encode(self, example: Example) -> Sequence[Encoded]:
        """An example's sequences."""
        ...


@dataclass(frozen=True)
class Measurement:
    """What was measured, example by example: two of them are compared on what both have."""

    kind: Kind
    examples: int
    """That are held out."""
    losses: tuple[SequenceLoss, ...]
    """Of the sequences of a preference, those at 2i and 2i + 1 are the chosen and the rejected answer to the same."""
    general: tuple[GeneralLoss, ...]
    """On general text, for what was forgotten."""
    answers: tuple[Answer, ...]
    guesses: tuple[Guess, ...]
    """Of a classifier."""
    answer_limit: int
    """Tokens after which an answer was stopped."""
    seconds: float
    """That measuring took."""
    penalty: float = 1.0
    """On repetition, with which the answers were written."""
    looped: float | None = None
    """Share of the answers that looped with a smaller penalty, where that is why this one was chosen."""

    @property
    def loss(self) -> float:
        """Mean -ln P of a held-out target; not-a-number where none was measured."""
        targets = sum(loss.targets for loss in self.losses)
        return sum(loss.nats for loss in self.losses) / targets if targets else math.nan

    @property
    def stop_rate(self) -> float:
        """Share of the answers that the network ended by itself, among those that count."""
        ended = [answer.ended == "end" for answer in self.answers if answer.counts]
        return sum(ended) / len(ended) if ended else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """The inverse of :meth:`to_dict`.

        :raises DataError: it is none.
        """
        lists = {"losses": SequenceLoss, "general": GeneralLoss, "answers": Answer, "guesses": Guess}
        try:
            made = {name: tuple(record(**each) for each in values[name]) for name, record in lists.items()}
            return cls(**{**values, **made})
        except (KeyError, TypeError) as error:
            raise DataError(f"this is no measurement of a run: {error}; measure again") from error

    def write(self, file: Path) -> None:
        """Keep it, so that a resumed run knows what was before."""
        atomic_write_text(file, json.dumps(self.to_dict(), ensure_ascii=False))

    @classmethod
    def read(cls, file: Path) -> Measurement:
        """The inverse of :meth:`write`.

        :raises DataError: the file is not there, or not of ours.
        """
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read ({error}); delete it to measure again") from error


def measure(
    network: GPT,
    tokenizer: Tokenizer,
    renderer: Encoder,
    held_out: Sequence[Example],
    store: Sequences,
    *,
    seconds: float | None,
    seed: int,
    labels: Sequence[str] = (),
    penalties: Sequence[float] = (1.0,),
) -> Measurement:
    """Loss on held-out examples and on general text, and the likeliest answers to held-out prompts.

    The order of the examples follows from the seed, and a shorter time measures fewer of them; so two measurements share
    the beginning of the order. The global random state and the network's mode stay as they are.

    :param renderer: that the network is trained with.
    :param held_out: the examples.
    :param store: their sequences.
    :param seconds: time for all of it. The least that says anything is always measured, so a second or two may come on top.
    :param labels: the classes in the order of their indices, where the network has a head over them or answers with them.
    :param penalties: on repetition, in rising order: the first with which hardly an answer loops is taken.
    """
    began = time.monotonic()
    budget = math.inf if seconds is None else seconds
    device = network.embedding.weight.device
    state, was_training = random_state(device), network.training
    network.eval()
    kind = kind_of(held_out)
    questions = _questions(held_out, renderer, tokenizer, seed)
    limit = answer_limit(questions)
    try:
        deadline = _finite(began + SHARES["loss"] * budget)
        words = LabelWords(renderer, labels) if labels and isinstance(renderer, WordRenderer) else None
        padding_id = padding_of(tokenizer) if kind == "label" else 0
        losses, guesses = _scores(network, store, kind, seed, deadline, labels, words, padding_id)
        general = general_losses(network, tokenizer, _finite(time.monotonic() + SHARES["general"] * budget))
        written = write_answers(
            network, tokenizer, questions, penalties, limit=limit, deadline=_finite(began + budget), most=MOST_ANSWERS
        )
    finally:
        network.train(was_training)
        set_random_state(state, device)
    return Measurement(
        kind, len(held_out), tuple(losses), tuple(general), written.answers, tuple(guesses), limit, time.monotonic() - began,
        written.penalty, written.looped,
    )  # fmt: skip


def _scores(
    network: GPT,
    store: Sequences,
    kind: Kind,
    seed: int,
    deadline: float | None,
    labels: Sequence[str],
    words: LabelWords | None,
    padding_id: int | None,
) -> tuple[list[SequenceLoss], list[Guess]]:
    """The loss of each sequence in the drawn order, and of a text with a label what it is taken for."""
    order = _sequence_order(len(store), kind, seed)
    if kind == "label" and words is not None:
        return word_scores(network, [(index, store.example(index)) for index in order], words, deadline)
    if kind == "label":
        return class_scores(network, [(index, store.example(index)) for index in order], labels, deadline, padding_id)
    windows = [window_of(store.example(index)) for index in order]
    found = []
    for place, nats in sorted(window_nats(network, windows, deadline)):
        targets = sum(target != IGNORED for target in windows[place].targets)
        found.append(SequenceLoss(order[place], nats, targets))
    return found, []


def _sequence_order(count: int, kind: Kind, seed: int) -> list[int]:
    """Indices into the store in a drawn order; the two of a preference stay together."""
    if kind != "preference":
        return _order(count, seed)[:MOST_SEQUENCES]
    pairs = _order(count // 2, seed)[: MOST_SEQUENCES // 2]
    return [index for pair in pairs for index in (2 * pair, 2 * pair + 1)]


def _questions(held_out: Sequence[Example], renderer: Encoder, tokenizer: Tokenizer, seed: int) -> list[Question]:
    questions: list[Question] = []
    for index in _order(len(held_out), seed):
        question = question_of(index, held_out[index], renderer.encode(held_out[index]), tokenizer)
        if question is not None:
            questions.append(question)
        if len(questions) == MOST_ANSWERS:
            break
    return questions


def _order(count: int, seed: int) -> list[int]:
    return [int(index) for index in np.random.default_rng(seed % 2**32).permutation(count)]


def _finite(deadline: float) -> float | None:
    return deadline if math.isfinite(deadline) else None
