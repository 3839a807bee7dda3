"""Texts of a small model through an engine of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from owngpt.config.generation import GenerationConfig
from owngpt.engine import texts
from owngpt.engine.engine import Engine
from owngpt.engine.sequence import Generation
from owngpt.engine.torch_runner import TorchRunner
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

BLOCKS = 300


@contextmanager
def engine_of(model: GPT, tokenizer: Tokenizer) -> Iterator[Engine]:
    with Engine(TorchRunner(model, BLOCKS), tokenizer, context_length=model.config.context_length) as engine:
        yield engine


def generate(
    model: GPT, tokenizer: Tokenizer, prompt_ids: Sequence[int], config: GenerationConfig, end_ids: Collection[int] | None = None
) -> list[Generation]:
    with engine_of(model, tokenizer) as engine:
        return texts.generate(engine, prompt_ids, config, None if end_ids is None else frozenset(end_ids))
