"""Lets a network write while it is in training: many texts side by side, and it stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from owngpt.engine.engine import Engine
from owngpt.engine.packing import packed_copy, recordable
from owngpt.engine.runner import PackedRunner, Runner
from owngpt.engine.torch_runner import BLOCK, TorchRunner
from owngpt.engine.tuning import tune
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

CACHE_BYTES = 128 * 2**20
"""For the keys and values of all texts that are written side by side."""
MOST_ROWS = 32


@contextmanager
def open_writer(network: GPT, tokenizer: Tokenizer, *, longest: int, most: int) -> Iterator[tuple[Engine, int]]:
    """An engine over a network, and how many texts fit side by side.

    :param longest: tokens of a text, prompt included.
    :param most: texts that there are.
    """
    rows = max(1, min(_rows(network, longest), most))
    was_training = network.training
    try:
        runner = _runner(network.eval(), 1 + rows * (1 + -(-longest // BLOCK)))
        with Engine(runner, tokenizer, context_length=network.config.context_length, most_rows=rows) as engine:
            yield engine, rows
    finally:
        network.train(was_training)


def _runner(network: GPT, blocks: int) -> Runner:
    """What serves this network, without taking it apart: it may have to learn on."""
    weight = network.embedding.weight
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or recordable(network) is not None:
        return TorchRunner(network, blocks)
    runner = PackedRunner(packed_copy(network, "bf16"), blocks)
    tune(runner)
    return runner


def _rows(network: GPT, tokens: int) -> int:
    config = network.config
    size = network.embedding.weight.element_size()
    per_token = 2 * config.layers * config.key_value_heads * config.head_size * size
    return min(max(CACHE_BYTES // (per_token * tokens), 1), MOST_ROWS)
