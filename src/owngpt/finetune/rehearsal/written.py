"""Text that a model writes by itself before it learns anything new, so that it can be reminded of what it was.

Pseudo-rehearsal (Robins 1995) for language models: on text of its own, drawn from its own distribution, a model's expected
gradient is zero as long as it stays what it is, and pulls it back where it drifts away (arXiv 2403.01244 does so for
instructions).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from owngpt.config.generation import GenerationConfig
from owngpt.engine.request import Failed, Piece, Request, Stream
from owngpt.finetune.examples.example import Origin
from owngpt.finetune.objectives.learned_tokens import without_dropout
from owngpt.finetune.rehearsal.prompts import prompts
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.report.forgetting import GeneralLanguage, general_losses, known_languages
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.writing import MOST_ROWS, open_writer
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

LENGTH = 192
"""Tokens that a text is written on for, at most."""
LEAST = 8
"""A shorter text reminds of nothing."""
ORIGIN = "written by the model itself"


@dataclass(frozen=True)
class _Prompt:
    token_ids: tuple[int, ...]
    """Empty where a text begins from nothing."""


def written_texts(
    network: GPT, tokenizer: Tokenizer, *, tokens: int, context_length: int, deadline: float | None, seed: int
) -> Iterator[Encoded]:
    """Texts of the model's own, drawn at temperature 1: what it writes is learned, what it was given is not.

    Half are answers to questions where it has a chat template, in its own words and layout; the others go on from openings. In
    the languages that it knows.

    Where all of them are too short to remind of much, the longest one is what there is.

    :param tokens: of all texts together, about.
    :param deadline: of ``time.monotonic()``: what was written until then is used, and there is always something.
    """
    languages = _languages(network, tokenizer)
    pool = _prompts(tokenizer, prompts("openings", languages), prompts("questions", languages), context_length)
    generator = np.random.default_rng(seed % 2**32)
    longest = min(context_length, max(len(prompt) for prompt in pool) + LENGTH)
    written = useful = 0
    with open_writer(network, tokenizer, longest=longest, most=MOST_ROWS) as (engine, rows):
        number, spare = 0, None
        while written < tokens:
            streams: list[tuple[tuple[int, ...], Stream]] = []
            for _ in range(rows):
                prompt = pool[int(generator.integers(len(pool)))]
                config = GenerationConfig(
                    max_new_tokens=max(1, longest - len(prompt)), temperature=1.0, seed=int(generator.integers(2**32))
                )
                streams.append((prompt, engine.submit(Request(prompt, config))))
            for prompt, stream in streams:
                number += 1
                text = _encoded(prompt, _read(stream, deadline), number)
                written += len(text)
                if text.targets >= LEAST:
                    useful += 1
                    yield text
                elif text.targets and (spare is None or text.targets > spare.targets):
                    spare = text
            if (useful or spare) and deadline is not None and time.monotonic() >= deadline:
                break
        if not useful and spare is not None:
            yield spare


def _languages(network: GPT, tokenizer: Tokenizer) -> tuple[GeneralLanguage, ...]:
    with without_dropout(network):
        return known_languages(general_losses(network, tokenizer, time.monotonic()))


def _prompts(
    tokenizer: Tokenizer, openings: Sequence[str], questions: Sequence[str], context_length: int
) -> list[tuple[int, ...]]:
    """Token ids; where there are questions, as many of them as of openings."""
    found = [tuple(tokenizer.encode_prompt(opening)) for opening in openings]
    if tokenizer.chat_template:
        renderer = Renderer(tokenizer)
        asked = [tuple(renderer.chat_prompt([{"role": "user", "content": question}])) for question in questions]
        found = found[: len(asked)] + asked
    fitting = [prompt for prompt in found if prompt and len(prompt) + 2 * LEAST <= context_length]
    return fitting or [prompt[: max(1, context_length // 2)] for prompt in found if prompt]


def _read(stream: Stream, deadline: float | None) -> list[int]:
    """The tokens that were written until the end, which is among them, or until the deadline; a few even after it."""
    token_ids: list[int] = []
    for event in stream:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Piece):
            token_ids.append(event.token_id)
        if deadline is not None and time.monotonic() > deadline and len(token_ids) >= LEAST:
            stream.cancel()
    return token_ids


def _encoded(prompt: Sequence[int], written: Sequence[int], number: int) -> Encoded:
    learned = np.arange(len(prompt) + len(written)) >= max(len(prompt), 1)
    return Encoded(np.array([*prompt, *written], dtype=np.int64), learned, Origin(ORIGIN, number))
