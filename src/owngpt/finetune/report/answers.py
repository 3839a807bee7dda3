"""Held-out prompts, and what a network answers to them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from owngpt.config.generation import GenerationConfig
from owngpt.engine.engine import Engine
from owngpt.engine.request import Failed, Piece, Request, Stream
from owngpt.finetune.examples.example import Chat, Completion, Example, Labelled, PlainText, Preference
from owngpt.finetune.report.repetition import distinct_share, loops
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.writing import open_writer
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

SHORTEST_LIMIT, LONGEST_LIMIT = 48, 384
"""Tokens that an answer may have, whatever the owner's own answers have."""
FIRST = 10
"""Answers that are written first: what a report shows, whatever time there is."""
OPENING = 32
"""Tokens of a plain text from which the network goes on."""


@dataclass(frozen=True)
class Question:
    """A prompt as the network is asked it, and the owner's own answer."""

    index: int
    """Of the example."""
    prompt_ids: tuple[int, ...]
    shown: str
    """The prompt for a person: what was asked last."""
    reference: str
    reference_tokens: int


@dataclass(frozen=True)
class Answer:
    """What a network wrote."""

    index: int
    shown: str
    reference: str
    text: str
    tokens: int
    ended: str
    """end: it stopped by itself; length or context: it was stopped there; time: the time for measuring was over."""
    distinct: float
    """Of its groups of four tokens in a row, the share that are different."""
    loops: bool
    """It ends by saying the same again and again."""
    counts: bool = True
    """False where the clock cut off answers that were written side by side with it: only the short ones of them were finished,
    so a rate of these would flatter."""


def question_of(index: int, example: Example, encoded: Sequence[Encoded], tokenizer: Tokenizer) -> Question | None:
    """The last thing that is to be answered in an example, or None where nothing is.

    :param encoded: the example as it is learned from: what stands before the last learned tokens is the very prompt that
        serving sees. Of a preference the chosen answer comes first; of a chat the last answer comes last.
    """
    if isinstance(example, Labelled) or not encoded:
        return None
    sequence = encoded[0 if isinstance(example, Preference) else -1]
    token_ids, start, stop = sequence.token_ids, *_last_learned(sequence.learned)
    if isinstance(example, PlainText):
        start = min(OPENING, len(token_ids) // 2)
    answer = [int(token) for token in token_ids[start:stop] if int(token) not in tokenizer.stop_ids]
    reference = tokenizer.decode(answer).strip()
    if start < 1 or not reference:
        return None
    prompt = tuple(int(token) for token in token_ids[:start])
    return Question(index, prompt, _shown(example) or tokenizer.decode(prompt), reference, len(answer))


def answer_limit(questions: Sequence[Question]) -> int:
    """Tokens that an answer may have: half as much again as the owner's longer answers."""
    lengths = sorted(question.reference_tokens for question in questions)
    long = lengths[int(0.95 * (len(lengths) - 1))] if lengths else 0
    return min(max(long * 3 // 2 + 16, SHORTEST_LIMIT), LONGEST_LIMIT)


def answer(
    network: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    limit: int,
    deadline: float | None,
    most: int,
    penalty: float = 1.0,
) -> list[Answer]:
    """The likeliest answer to each question, in order, as many as the time allows, side by side.

    :param limit: most tokens of an answer.
    :param deadline: of ``time.monotonic()``. Then the answers that are being written are cut off, and no more are begun.
    :param most: answers.
    :param penalty: on repetition (arXiv 1909.05858, section 4.1); 1 is none.
    """
    room = network.config.context_length
    fitting = [question for question in questions if len(question.prompt_ids) + SHORTEST_LIMIT // 4 <= room][:most]
    if not fitting:
        return []
    longest = min(room, max(len(question.prompt_ids) for question in fitting) + limit)
    config = GenerationConfig(max_new_tokens=limit, temperature=0.0, repetition_penalty=penalty)
    answers: list[Answer] = []
    with open_writer(network, tokenizer, longest=longest, most=len(fitting)) as (engine, rows):
        size = min(rows, FIRST)
        while fitting:
            began = time.monotonic()
            answers += _wave(engine, tokenizer, fitting[:size], config, deadline)
            took = time.monotonic() - began
            fitting = fitting[size:]
            following = min(rows, len(fitting))
            # More texts side by side make a step longer, though not in proportion.
            expected = took * (1 + max(following / size - 1, 0) / 2)
            if deadline is not None and time.monotonic() + expected > deadline:
                break
            size = following
    return answers


def _wave(
    engine: Engine, tokenizer: Tokenizer, questions: Sequence[Question], config: GenerationConfig, deadline: float | None
) -> list[Answer]:
    streams = [engine.submit(Request(question.prompt_ids, config)) for question in questions]
    try:
        answers = [_read(question, stream, tokenizer, deadline) for question, stream in zip(questions, streams, strict=True)]
    finally:
        for stream in streams:
            stream.cancel()
    is_whole = all(answer.ended != "time" for answer in answers)
    return [replace(answer, counts=is_whole) for answer in answers]


def _read(question: Question, stream: Stream, tokenizer: Tokenizer, deadline: float | None) -> Answer:
    token_ids: list[int] = []
    ended = "time"
    for event in stream:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Piece):
            token_ids.append(event.token_id)
        else:
            ended, token_ids = event.generation.stop_reason, list(event.generation.token_ids)
        if deadline is not None and time.monotonic() > deadline and ended == "time":
            stream.cancel()
    text = tokenizer.decode(token_ids).strip()
    return Answer(
        question.index, question.shown, question.reference, text, len(token_ids), ended, distinct_share(token_ids),
        loops(token_ids),
    )  # fmt: skip


def _last_learned(learned: np.ndarray) -> tuple[int, int]:
    """The last run of learned tokens, [start, stop); (0, 0) where nothing is learned."""
    places = np.flatnonzero(learned)
    if not len(places):
        return 0, 0
    breaks = np.flatnonzero(np.diff(places) > 1)
    return int(places[breaks[-1] + 1] if len(breaks) else places[0]), int(places[-1]) + 1


def _shown(example: Example) -> str:
    match example:
        case Completion(prompt=str(prompt)) | Preference(prompt=str(prompt)):
            return prompt.strip()
        case Chat(messages=messages) | Preference(prompt=tuple(messages)):
            asked = [message.get("content") for message in messages if message.get("role") == "user"]
            return asked[-1].strip() if asked and isinstance(asked[-1], str) else ""
    return ""
