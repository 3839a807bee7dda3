"""The penalty on repetition: as small a one as keeps a model's answers from looping, recommended to whoever serves it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from owngpt.finetune.report.answers import Answer, Question, answer
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

PENALTIES = (1.0, 1.05, 1.1)
"""Small models loop when they always take the likeliest token; more than these makes them avoid the words that they need."""
TOLERATED = 0.02
"""Share of the answers that may loop before a greater penalty is tried."""


@dataclass(frozen=True)
class Written:
    """Answers, and how they were written."""

    answers: tuple[Answer, ...]
    penalty: float
    looped: float | None = None
    """Share that looped with the first penalty, where a greater one was taken."""


def write_answers(
    network: GPT, tokenizer: Tokenizer, questions: Sequence[Question], penalties: Sequence[float], *, limit: int,
    deadline: float | None, most: int,
) -> Written:  # fmt: skip
    """The likeliest answers with the first of the penalties with which hardly one loops, or the one with which fewest do.

    :param penalties: in rising order, at least one. The rest of the arguments are those of
        :func:`owngpt.finetune.report.answers.answer`; when the deadline comes the best so far is taken.
    """
    first = best = Written(
        tuple(answer(network, tokenizer, questions, limit=limit, deadline=deadline, most=most, penalty=penalties[0])),
        penalties[0],
    )
    for penalty in penalties[1:]:
        is_late = deadline is not None and time.monotonic() >= deadline
        if is_late or _looping(best.answers) <= TOLERATED:
            break
        answers = answer(
            network, tokenizer, questions[: len(first.answers)], limit=limit, deadline=deadline, most=most, penalty=penalty
        )
        is_whole = len(answers) == len(first.answers) and all(each.counts for each in answers)
        if is_whole and _looping(answers) < _looping(best.answers):
            best = Written(tuple(answers), penalty, _looping(first.answers))
    return best


def _looping(answers: Sequence[Answer]) -> float:
    """Share of those that count."""
    counted = [answer.loops for answer in answers if answer.counts]
    return sum(counted) / len(counted) if counted else 0.0
