"""The penalty on repetition: as small a one as keeps a model's answers from looping, and from repeating themselves much more than
their owner does, recommended to whoever serves it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import fmean

from owngpt.finetune.report.answers import FIRST, Answer, Question, answer
from owngpt.finetune.report.repetition import distinct_share
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

PENALTIES = (1.0, 1.05, 1.1)
"""Small models loop when they always take the likeliest token; more than these makes them avoid the words that they need."""
TOLERATED = 0.02
"""Share of the answers that may loop before a greater penalty is tried."""
LESS_DISTINCT = 0.05
"""By which the share of different groups of tokens may be below the owner's own before a greater penalty is tried: of a few dozen
answers none may happen to loop, while those that stop still show what others will do (benchmarks/NOTES.md)."""


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
    """The likeliest answers with the first of the penalties with which hardly one loops and they are nearly as distinct as the
    owner's, or else the best of them.

    :param penalties: in rising order, at least one. The rest of the arguments are those of
        :func:`owngpt.finetune.report.answers.answer`; when the deadline comes the best so far is taken.
    """
    first = best = Written(
        tuple(answer(network, tokenizer, questions, limit=limit, deadline=deadline, most=most, penalty=penalties[0])),
        penalties[0],
    )
    wanted = fmean([_owners(tokenizer, question) for question in questions] or [1.0]) - LESS_DISTINCT
    for penalty in penalties[1:]:
        is_late = deadline is not None and time.monotonic() >= deadline
        looping, distinct = _repetition(best.answers)
        if is_late or (looping <= TOLERATED and distinct >= wanted):
            break
        written = answer(
            network, tokenizer, questions[: len(best.answers)], limit=limit, deadline=deadline, most=most, penalty=penalty
        )
        best = better_of(best, Written(tuple(written), penalty, _repetition(first.answers)[0]))
    return best


def better_of(best: Written, other: Written) -> Written:
    """Whichever repeats itself less, by the answers that both have; where the time was too short for all of the other's, those
    that were finished decide, if there are some."""
    answers = tuple(takewhile(lambda each: each.counts, other.answers))
    looping, distinct = _repetition(best.answers[: len(answers)])
    now, now_distinct = _repetition(answers)
    is_better = len(answers) >= min(FIRST, len(best.answers)) and (now, -now_distinct) < (looping, -distinct)
    return replace(other, answers=answers) if is_better else best


def _repetition(answers: Sequence[Answer]) -> tuple[float, float]:
    """Of those that count: the share that loop, and how distinct they are."""
    counted = [answer for answer in answers if answer.counts]
    return fmean([answer.loops for answer in counted] or [0.0]), fmean([answer.distinct for answer in counted] or [1.0])


def _owners(tokenizer: Tokenizer, question: Question) -> float:
    """How distinct the owner's own answer is."""
    return distinct_share(tokenizer.encode(question.reference))
