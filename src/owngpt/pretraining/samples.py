"""What a model writes after the openings of text it never saw."""

from __future__ import annotations

from typing import Any

from owngpt.config.generation import GenerationConfig
from owngpt.data.corpus import Corpus
from owngpt.engine.engine import Engine
from owngpt.engine.texts import generate
from owngpt.engine.torch_runner import BLOCK, TorchRunner
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

SAMPLE_TOKENS = 60
SAMPLES = 3


def openings(corpus: Corpus, tokenizer: Tokenizer) -> list[list[int]]:
    """The openings of held-out passages (of training text when nothing is held out), as token ids."""
    split = corpus.validation if corpus.validation.documents else corpus.train
    pieces = split.sample(SAMPLES * 2000, piece_bytes=2000)[:SAMPLES]
    return [tokenizer.encode(piece[:300])[:24] for piece in pieces]


def write_samples(network: GPT, tokenizer: Tokenizer, prompts: list[list[int]], seed: int) -> list[dict[str, Any]]:
    """One continuation of each prompt: ``prompt`` and ``text``."""
    limit = network.config.context_length
    config = GenerationConfig(max_new_tokens=min(SAMPLE_TOKENS, limit // 2), temperature=0.8, top_p=0.95, seed=seed % 2**32)
    was_training = network.training
    runner = TorchRunner(network, 2 + -(-limit // BLOCK))
    samples = []
    with Engine(runner, tokenizer, context_length=limit) as engine:
        for prompt in prompts:
            ids = _whole_characters(prompt[: limit // 2], tokenizer)
            samples.append({"prompt": tokenizer.decode(ids), "text": generate(engine, ids, config)[0].text})
    network.train(was_training)
    return samples


def _whole_characters(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """The ids without those at their end that are only a part of a character."""
    whole = next((stop for stop in range(len(ids), max(len(ids) - 4, 0), -1) if not _ends_inside(ids[:stop], tokenizer)), 0)
    return ids[:whole] or ids


def _ends_inside(ids: list[int], tokenizer: Tokenizer) -> bool:
    return tokenizer.decode(ids).endswith("\ufffd")
